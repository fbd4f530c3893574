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
    from softprompt.card import Card
    from softprompt.comparison import compare, evaluation_rows
    from softprompt.config import Config, resolve
    from softprompt.data.load import load_rows, load_splits
    from softprompt.decode import Answer, Sampling
    from softprompt.errors import SoftpromptError
    from softprompt.evaluation import Evaluation, evaluate
    from softprompt.framing import Subject, base_subject, card_subject, text_subject
    from softprompt.generation import Request, answer, load_subjects
    from softprompt.geometry import Geometry
    from softprompt.model import FrozenLM
    from softprompt.model import load as load_model
    from softprompt.preparation import prepare
    from softprompt.prompt import EmbeddingPrompt, KVPrompt
    from softprompt.recipe import fit
    from softprompt.store import load, save

# Loaded when first used: torch and transformers take seconds, and `softprompt --help` needs neither.
_HOME = {
    "Answer": ("softprompt.decode", "Answer"),
    "Card": ("softprompt.card", "Card"),
    "Config": ("softprompt.config", "Config"),
    "EmbeddingPrompt": ("softprompt.prompt", "EmbeddingPrompt"),
    "Evaluation": ("softprompt.evaluation", "Evaluation"),
    "FrozenLM": ("softprompt.model", "FrozenLM"),
    "Geometry": ("softprompt.geometry", "Geometry"),
    "KVPrompt": ("softprompt.prompt", "KVPrompt"),
    "Request": ("softprompt.generation", "Request"),
    "Sampling": ("softprompt.decode", "Sampling"),
    "SoftpromptError": ("softprompt.errors", "SoftpromptError"),
    "Subject": ("softprompt.framing", "Subject"),
    "answer": ("softprompt.generation", "answer"),
    "base_subject": ("softprompt.framing", "base_subject"),
    "card_subject": ("softprompt.framing", "card_subject"),
    "compare": ("softprompt.comparison", "compare"),
    "evaluate": ("softprompt.evaluation", "evaluate"),
    "evaluation_rows": ("softprompt.comparison", "evaluation_rows"),
    "fit": ("softprompt.recipe", "fit"),
    "load": ("softprompt.store", "load"),
    "load_model": ("softprompt.model", "load"),
    "load_rows": ("softprompt.data.load", "load_rows"),
    "load_splits": ("softprompt.data.load", "load_splits"),
    "load_subjects": ("softprompt.generation", "load_subjects"),
    "prepare": ("softprompt.preparation", "prepare"),
    "resolve": ("softprompt.config", "resolve"),
    "save": ("softprompt.store", "save"),
    "text_subject": ("softprompt.framing", "text_subject"),
}

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Card",
    "Config",
    "EmbeddingPrompt",
    "Evaluation",
    "FrozenLM",
    "Geometry",
    "KVPrompt",
    "Request",
    "Sampling",
    "SoftpromptError",
    "Subject",
    "answer",
    "base_subject",
    "card_subject",
    "compare",
    "evaluate",
    "evaluation_rows",
    "fit",
    "load",
    "load_model",
    "load_rows",
    "load_splits",
    "load_subjects",
    "prepare",
    "resolve",
    "save",
    "text_subject",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'softprompt' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(importlib.import_module(module), attribute)
