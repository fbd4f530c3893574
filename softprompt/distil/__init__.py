"""Long texts into few virtual tokens: the frozen model with the text teaches the same model with a soft prompt."""

from softprompt.distil.again import TEXTS, WORSE, Kept, measure, sources_of, studied
from softprompt.distil.fidelity import Fidelity, Measured
from softprompt.distil.job import Distilled, distil
from softprompt.distil.settings import DistilConfig, StudyConfig
from softprompt.distil.source import Prepared, prepare

__all__ = [
    "TEXTS",
    "WORSE",
    "DistilConfig",
    "Distilled",
    "Fidelity",
    "Kept",
    "Measured",
    "Prepared",
    "StudyConfig",
    "distil",
    "measure",
    "prepare",
    "sources_of",
    "studied",
]
