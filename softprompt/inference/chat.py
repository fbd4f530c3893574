"""A conversation with one soft prompt, a text prompt or the base model, without a server."""

from __future__ import annotations

from collections.abc import Callable

import torch

from softprompt.data.records import Message
from softprompt.formatting.context import check_context, end_ids
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.formatting.inputs import chat_input_ids
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.prepare import prepare_prefixes


class ChatSession:
    """The turns so far, and the keys and values of the prefix, which are computed once."""

    def __init__(self, lm: FrozenLM, formatted: FormattedPrompt, sampling: Sampling) -> None:
        self.said: list[Message] = []
        self._lm, self._sampling = lm, sampling
        self._formatted = formatted
        self._ends = end_ids(lm, formatted.template)
        self._prefix = formatted.prefix(lm)
        with torch.no_grad():
            self._prefix_kv = prepare_prefixes(lm, [self._prefix])

    def say(self, text: str, on_text: Callable[[str], None]) -> None:
        """Stream the answer to a text. An interrupted answer is remembered as far as it came.

        Raises DataError for a text that does not fit the template or the context; it is not remembered then.
        """
        turns = [*self.said, Message("user", text)]
        ids = chat_input_ids(turns, self._formatted, self._lm.tokenizer)
        around = self._prefix_kv.lengths[0] + self._sampling.max_new_tokens
        check_context(self._lm, [("the conversation", len(ids), around)], "/reset, or fewer --max-new-tokens")
        answer = list[str]()

        def keep(_: int, new: str) -> None:
            answer.append(new)
            on_text(new)

        try:
            decode_batch(
                self._lm,
                self._prefix_kv,
                [ids],
                [0],
                self._sampling,
                end_ids=[self._ends],
                before=[(*self._prefix.lead, *self._prefix.follow)],
                on_text=keep,
            )
        finally:
            self.said = [*turns, Message("assistant", "".join(answer))]

    def reset(self) -> None:
        """Forget all turns."""
        self.said = []
