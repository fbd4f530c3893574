"""Questions to the model behind a soft prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence

from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.inference.generate import Request, generate
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM


def answers_to(lm: FrozenLM, formatted: FormattedPrompt, questions: Sequence[str], max_new_tokens: int) -> list[str]:
    """The greedy answer to each question, which is a conversation's turn, or fills every field of the template.

    Raises DataError for a question that does not fit in the context.
    """
    names, requests = formatted.template.names, list[Request]()
    for question in questions:
        whole = json.dumps(dict.fromkeys(names, question)) if len(names) > 1 else question
        requests.append(Request(whole if names else [{"role": "user", "content": question}]))
    return [answer.text for answer in generate(lm, {"": formatted}, requests, Sampling(max_new_tokens=max_new_tokens))]
