"""Token ids that stand for virtual tokens in engines that take nothing but token ids.

An engine that runs ids looks each up in its table of embeddings; an adapter or a changed table puts the virtual tokens
there. So the ids must be ones that no text of a user holds.

Shapes: P virtual tokens, H embedding width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from softprompt.data.tokenizer import bos_ids, decode, eos_id
from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM

# Spellings of tokens that a model's authors set aside: Llama 3, Gemma, Mistral, Phi, Qwen, others. In brackets, since
# every vocabulary has the word "reserved".
_SET_ASIDE = re.compile(
    r"[<\[].*(?:reserved|unused|dummy|placeholder|control_\d|SPECIAL_\d|extra_(?:id_)?\d|special_token_\d|blank\d).*[>\]]",
    re.IGNORECASE,
)
_WORD = re.compile(r" [A-Za-z]+")  # a token that merges with no neighbor of its kind


@dataclass(frozen=True)
class ReservedIds:
    """One token id for each virtual token.

    Attributes:
        ids: P of them.
        kind: "reserved": set aside by the model's authors; "padding": rows of the table beyond the tokenizer's last
            token; "rare": the tokens that were learned last, which a user's text may hold, though seldom does.
        text: a string that the tokenizer reads as exactly these ids; "" if there is none, so that only ids work.
    """

    ids: tuple[int, ...]
    kind: Literal["reserved", "padding", "rare"]
    text: str

    @property
    def note(self) -> str:
        """A sentence for users."""
        shown = f"{min(self.ids)} to {max(self.ids)}" if len(self.ids) > 1 else str(max(self.ids))
        if self.kind == "reserved":
            return f"The ids {shown} stand for the virtual tokens; the model's authors set them aside."
        if self.kind == "padding":
            return f"The ids {shown} stand for the virtual tokens; no text holds them, so the engine must take ids."
        return (
            f"The ids {shown} stand for the virtual tokens. This model has none set aside, so they are those of rare "
            "words: a text that holds such a word is read wrongly while the adapter is on."
        )


def choose_reserved_ids(lm: FrozenLM, n_tokens: int) -> ReservedIds:
    """Ids for `n_tokens` virtual tokens: set aside ones, else padding, else rare words.

    Raises UnsupportedModelError if the vocabulary has too few of each.
    """
    vocabulary: dict[str, int] = lm.tokenizer.get_vocab()
    rows = lm.geometry.vocab
    used = {*bos_ids(lm.tokenizer), eos_id(lm.tokenizer), *lm.end_ids}
    padding_id = lm.tokenizer.pad_token_id
    free = {i: text for text, i in vocabulary.items() if i < rows and i not in used and i != padding_id}
    aside = sorted(i for i, text in free.items() if _SET_ASIDE.fullmatch(text))
    padding = sorted(set(range(rows)) - set(vocabulary.values()))
    if len(aside) >= n_tokens:
        return _chosen(lm, aside[-n_tokens:], "reserved")
    if len(padding) >= n_tokens:
        return _chosen(lm, padding[-n_tokens:], "padding")
    if len(aside) + len(padding) >= n_tokens:
        return _chosen(lm, sorted([*aside, *padding])[-n_tokens:], "reserved")
    rare = [i for i in sorted(free, reverse=True) if _is_word(lm, i)][:n_tokens]
    if len(rare) < n_tokens:
        got = f"{len(aside)} set aside, {len(padding)} unused rows, {len(rare)} rare words"
        raise UnsupportedModelError(
            "the model's vocabulary has too few ids that could stand for the virtual tokens",
            where=lm.name,
            expected=f"{n_tokens} of one kind",
            got=got,
            hint="fewer virtual tokens (softprompt compose), or --to llama-slot or vocabulary",
        )
    return _chosen(lm, rare[::-1], "rare")


def _is_word(lm: FrozenLM, token: int) -> bool:
    """Whether the token is read back from its own text, and begins with a space: then it stands alone anywhere."""
    text = decode([token], lm.tokenizer)
    return bool(_WORD.fullmatch(text)) and lm.encode(text) == [token]


def _chosen(lm: FrozenLM, ids: Sequence[int], kind: Literal["reserved", "padding", "rare"]) -> ReservedIds:
    known = all(i in lm.tokenizer.get_vocab().values() for i in ids[:1]) and kind != "padding"
    text = decode(list(ids), lm.tokenizer) if known else ""
    return ReservedIds(tuple(ids), kind, text if text and lm.encode(text) == list(ids) else "")
