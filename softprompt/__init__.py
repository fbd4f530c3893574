"""Train, study and serve soft prompts for frozen language models.

import softprompt

lm = softprompt.load_model("smollm2-135m")
config = softprompt.resolve({"data": "examples/helpdesk", "name": "helpdesk", "train.minutes": 4})
result = softprompt.fit(softprompt.prepare(config), lm)

prompt, card = softprompt.load(result.folder, lm.geometry)
prompts = softprompt.load_prompts(lm, ["helpdesk"])
print(softprompt.generate(lm, prompts, [softprompt.Request("Where is my parcel?", "helpdesk")], softprompt.Sampling()))
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public names by the module that defines them. Loaded when first used: torch and transformers take seconds, and
# `softprompt --help` needs neither. Type checkers read the same table from __init__.pyi (scripts/stubs writes it).
_PUBLIC = {
    "softprompt.data.read_options": ("ReadOptions",),
    "softprompt.data.splits": ("load_rows", "load_splits"),
    "softprompt.distillation.config": ("resolve_distillation",),
    "softprompt.distillation.prepare": ("prepare_distillation",),
    "softprompt.distillation.run": ("distill",),
    "softprompt.errors": ("SoftpromptError",),
    "softprompt.evaluation.compare": ("compare",),
    "softprompt.evaluation.evaluate": ("Evaluation", "evaluate"),
    "softprompt.evaluation.held_out": ("held_out_rows",),
    "softprompt.formatting.formatted_prompt": ("FormattedPrompt", "from_card", "no_prompt"),
    "softprompt.formatting.text_prompt": ("text_prompt",),
    "softprompt.inference.decoding": ("Answer",),
    "softprompt.inference.generate": ("Request", "generate", "load_prompts"),
    "softprompt.inference.sampling": ("Sampling",),
    "softprompt.inspection.inspection": ("Inspection", "inspect"),
    "softprompt.inspection.verbalize": ("Verbalization", "verbalize"),
    "softprompt.modeling.soft_prompt_model": ("SoftPromptModel",),
    "softprompt.models.frozen_lm": ("FrozenLM",),
    "softprompt.models.geometry": ("Geometry",),
    "softprompt.models.loading": ("load_model",),
    "softprompt.prompts.card": ("Card",),
    "softprompt.prompts.embedding_prompt": ("EmbeddingPrompt",),
    "softprompt.prompts.kv_prompt": ("KVPrompt",),
    "softprompt.prompts.sharing": ("pull", "push"),
    "softprompt.prompts.store": ("load", "save"),
    "softprompt.training.config": ("Config", "resolve"),
    "softprompt.training.prepare": ("prepare",),
    "softprompt.training.run": ("fit",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
_RENAMED = {  # names of 0.1
    "Subject": "FormattedPrompt",
    "answer": "generate",
    "base_subject": "no_prompt",
    "card_subject": "from_card",
    "evaluation_rows": "held_out_rows",
    "load_subjects": "load_prompts",
    "text_subject": "text_prompt",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        from softprompt.deprecation import warn_renamed

        warn_renamed(f"softprompt.{name}", f"softprompt.{_RENAMED[name]}")
        name = _RENAMED[name]
    if name not in _HOME:
        raise AttributeError(f"module 'softprompt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
