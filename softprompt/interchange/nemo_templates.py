"""The templates in NeMo's config: where a task's virtual tokens stand, and the text around them.

Format: https://github.com/NVIDIA/NeMo (gpt_prompt_learning_dataset.py), in `model_config.yaml`:

    task_templates:
    - taskname: sentiment
      prompt_template: "<|VIRTUAL_PROMPT_0|> {sentence} sentiment: {label}"
      total_virtual_tokens: 10
      virtual_token_splits: [10]
      answer_field: label

The virtual tokens of split i stand at `<|VIRTUAL_PROMPT_i|>`. A soft prompt here is one piece before the text: virtual
tokens with text before or between them are refused, since they would be read at other places than they were trained at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from softprompt.data.template import Template
from softprompt.errors import DataError, StoreError
from softprompt.interchange.base import ImportedLayout

_PLACE = re.compile(r"<\|VIRTUAL_PROMPT_(\d+)\|>")
_HINT = "in NeMo, train it with all virtual tokens in front: prompt_template '<|VIRTUAL_PROMPT_0|> …'"


@dataclass(frozen=True)
class NemoTemplate:
    """One task's template.

    Attributes:
        text: with `<|VIRTUAL_PROMPT_i|>` and {fields}.
        splits: virtual tokens of each place, by its number; empty if the file does not say.
        answer_field: the field with the answer; may be empty.
    """

    text: str
    splits: tuple[int, ...]
    answer_field: str

    def layout(self, n_tokens: int, where: object) -> ImportedLayout | None:
        """The template after the virtual tokens; None if it is none that a soft prompt can have.

        Raises StoreError if not all virtual tokens come first, in their order.
        """
        places = list(_PLACE.finditer(self.text))
        rest = self.text[places[-1].end() :] if places else self.text
        in_front = self.text[: len(self.text) - len(rest)] == "".join(place[0] for place in places)
        in_order = [int(place[1]) for place in places] == list(range(len(places)))
        if not places or not in_front or not in_order:
            what = "the virtual tokens stand in several places of the template, or after some of its text"
            raise StoreError(what, where=where, expected="all in front", got=repr(self.text[:200]), hint=_HINT)
        if self.splits and (len(self.splits) != len(places) or sum(self.splits) != n_tokens):
            expected = f"{n_tokens} in {len(places)} places"
            raise StoreError("the template has other virtual tokens", where=where, expected=expected, got=self.splits)
        answer = f"{{{self.answer_field}}}"
        if not self.answer_field or not rest.endswith(answer):
            return None
        try:
            return ImportedLayout(Template("text", rest.removesuffix(answer).rstrip(" ")), bos=False)
        except DataError:  # no field but the answer
            return None


def nemo_templates(config: bytes, where: object) -> dict[str, NemoTemplate]:
    """The template of each task by its name; none if the config has none. Raises StoreError for a damaged config."""
    try:
        text = config.decode("utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("aliases, which can blow up memory")
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise StoreError("not a readable config", where=where, got=str(error)[:120]) from error
    listed = data.get("task_templates") if isinstance(data, Mapping) else None
    templates: dict[str, NemoTemplate] = {}
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("prompt_template"), str):
            splits = entry.get("virtual_token_splits")
            plain = tuple(n for n in splits if isinstance(n, int)) if isinstance(splits, list) else ()
            answer = entry.get("answer_field")
            template = NemoTemplate(entry["prompt_template"], plain, answer if isinstance(answer, str) else "")
            templates[str(entry.get("taskname"))] = template
    return templates
