"""Train, study and serve soft prompts for frozen language models.

import softprompt

lm = softprompt.load_model("smollm2-135m")
config = softprompt.resolve({"data": "examples/helpdesk", "name": "helpdesk", "train.minutes": 4})
outcome = softprompt.fit(softprompt.prepare(config), lm)

prompt, card = softprompt.load(outcome.folder, lm.geometry)
subjects = softprompt.load_subjects(lm, ["helpdesk"])
print(softprompt.answer(lm, subjects, [softprompt.Request("Where is my parcel?", "helpdesk")], softprompt.Sampling()))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompt.data.splits import load_rows, load_splits
    from softprompt.errors import SoftpromptError
    from softprompt.evaluation.compare import compare
    from softprompt.evaluation.evaluate import Evaluation, evaluate
    from softprompt.evaluation.held_out import held_out_rows
    from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, no_prompt
    from softprompt.formatting.text_prompt import text_prompt
    from softprompt.inference.decoding import Answer
    from softprompt.inference.generate import Request, generate, load_prompts
    from softprompt.inference.sampling import Sampling
    from softprompt.models.frozen_lm import FrozenLM
    from softprompt.models.geometry import Geometry
    from softprompt.models.loading import load_model as load_model
    from softprompt.prompts.card import Card
    from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
    from softprompt.prompts.store import load, save
    from softprompt.training.config import Config, resolve
    from softprompt.training.prepare import prepare
    from softprompt.training.run import fit

# Loaded when first used: torch and transformers take seconds, and `softprompt --help` needs neither.
_HOME = {
    "Answer": ("softprompt.inference.decoding", "Answer"),
    "Card": ("softprompt.prompts.card", "Card"),
    "Config": ("softprompt.training.config", "Config"),
    "EmbeddingPrompt": ("softprompt.prompts.forms", "EmbeddingPrompt"),
    "Evaluation": ("softprompt.evaluation.evaluate", "Evaluation"),
    "FrozenLM": ("softprompt.models.frozen_lm", "FrozenLM"),
    "Geometry": ("softprompt.models.geometry", "Geometry"),
    "KVPrompt": ("softprompt.prompts.forms", "KVPrompt"),
    "Request": ("softprompt.inference.generate", "Request"),
    "Sampling": ("softprompt.inference.decoding", "Sampling"),
    "SoftpromptError": ("softprompt.errors", "SoftpromptError"),
    "Subject": ("softprompt.formatting.formatted_prompt", "Subject"),
    "answer": ("softprompt.inference.generate", "answer"),
    "base_subject": ("softprompt.formatting.formatted_prompt", "base_subject"),
    "card_subject": ("softprompt.formatting.formatted_prompt", "card_subject"),
    "compare": ("softprompt.evaluation.compare", "compare"),
    "evaluate": ("softprompt.evaluation.evaluate", "evaluate"),
    "evaluation_rows": ("softprompt.evaluation.compare", "evaluation_rows"),
    "fit": ("softprompt.training.run", "fit"),
    "load": ("softprompt.prompts.store", "load"),
    "load_model": ("softprompt.models.frozen_lm", "load"),
    "load_rows": ("softprompt.data.splits", "load_rows"),
    "load_splits": ("softprompt.data.splits", "load_splits"),
    "load_subjects": ("softprompt.inference.generate", "load_subjects"),
    "prepare": ("softprompt.training.prepare", "prepare"),
    "resolve": ("softprompt.training.config", "resolve"),
    "save": ("softprompt.prompts.store", "save"),
    "text_subject": ("softprompt.formatting.formatted_prompt", "text_subject"),
}

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Card",
    "Config",
    "EmbeddingPrompt",
    "Evaluation",
    "FormattedPrompt",
    "FrozenLM",
    "Geometry",
    "KVPrompt",
    "Request",
    "Sampling",
    "SoftpromptError",
    "compare",
    "evaluate",
    "fit",
    "from_card",
    "generate",
    "held_out_rows",
    "load",
    "load_model",
    "load_prompts",
    "load_rows",
    "load_splits",
    "no_prompt",
    "prepare",
    "resolve",
    "save",
    "text_prompt",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'softprompt' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(importlib.import_module(module), attribute)
