"""Every setting of a distillation, with its default and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from softprompt.settings import flag, split_names
from softprompt.training.config import MethodConfig, TrainConfig

OWN: dict[str, dict[str, Any]] = {
    "method": {"frozen_tokens": 1, "init": "attended"},
    "train": {"steps": 160, "batch_size": 4, "lr": 4e-3, "patience": None, "evals": 4, "eval_rows": 48},
}

DOCUMENT_LR = 1e-2  # details of a document are learned by training, not by the fit (docs/log)


class StudyConfig(BaseModel):
    """What the text is distilled on."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    inputs: int = Field(
        default=320,
        ge=8,
        description="messages to answer, the held-out ones with them",
        json_schema_extra=flag("--queries", old=("--inputs",), help="Queries to distill on, with the held-out ones."),
    )
    held_out: int = Field(default=48, ge=4, description="of them for the fidelity report alone")
    input_tokens: int = Field(default=48, ge=4, description="longest message that the model writes itself")
    answer_tokens: int = Field(default=32, ge=1, description="longest answer of the teacher")
    details: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of them that are about details and answered by the text itself: questions, gaps, passages "
        "to go on with (default: 0.75 of a document's, 0.25 of a text's)",
    )
    temperatures: Annotated[tuple[float, ...], BeforeValidator(split_names)] = Field(
        default=(0.7, 1.0), min_length=1, description="that messages are drawn at, in turn"
    )
    answer_temperature: float = Field(default=0.7, ge=0, lt=100, description="that the teacher's answers are drawn at")
    top_k: int = Field(default=20, ge=1, description="likeliest tokens that the teacher tells of; the rest are one")
    temperature: float = Field(default=1.0, gt=0, description="that logits of teacher and student are divided by")
    hard: float = Field(default=0.0, ge=0, description="weight of the answers' own tokens (cross entropy)")
    chunk_tokens: int = Field(default=512, ge=16, description="longest piece of a document that the teacher reads")


class DistillConfig(BaseModel):
    """A distillation: a text (or document, or demonstrations) into virtual tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = Field(
        default="smollm2-135m",
        description="base model: Hub id, folder, GGUF file or smollm2-135m",
        json_schema_extra=flag("--model", "-m", help="Base model: Hub id, folder, GGUF, smollm2-135m."),
    )
    text: str | None = Field(
        default=None,
        description="file with the text, e.g. a system prompt",
        json_schema_extra=flag("--text", help="File with the text, e.g. a system prompt."),
    )
    document: str | None = Field(
        default=None,
        description="file with a text of any length, read in chunks",
        json_schema_extra=flag("--document", help="File with a text of any length, read in chunks."),
    )
    demonstrations: str | None = Field(
        default=None,
        description="rows with answers, as examples in the context",
        json_schema_extra=flag("--demonstrations", help="Rows with answers, as examples in the context."),
    )
    shots: int = Field(
        default=16,
        ge=1,
        description="how many demonstrations",
        json_schema_extra=flag("--shots", help="How many demonstrations."),
    )
    data: str | None = Field(
        default=None,
        description="inputs: file, folder or Hub data set; written by the model itself if not given",
        json_schema_extra=flag("--data", "-d", help="Inputs to distill on; the model writes its own if not given."),
    )
    name: str | None = Field(
        default=None,
        description="name of the soft prompt",
        json_schema_extra=flag("--name", "-n", help="Name of the soft prompt."),
    )
    template: str | None = Field(
        default=None,
        description='how a row becomes text, e.g. "Question: {prompt}\\nAnswer:"',
        json_schema_extra=flag("--template", help="Row to text, e.g. 'Question: {prompt}\\nAnswer:'."),
    )
    chat: bool | None = Field(
        default=None,
        description="use the model's chat template (default: if there is one)",
        json_schema_extra=flag("--chat/--no-chat", help="Use the model's chat template."),
    )
    keep_text: bool = Field(
        default=False,
        description="put the text itself into the card",
        json_schema_extra=flag("--keep-text", help="Put the text itself into the card."),
    )
    dtype: str = Field(
        default="auto",
        description="auto, float32, bfloat16, float16 (of the base model)",
        json_schema_extra=flag("--dtype", help="auto, float32, bfloat16 or float16."),
    )
    device: str = Field(
        default="auto",
        description="auto, cpu, cuda, mps",
        json_schema_extra=flag("--device", help="auto, cpu, cuda or mps."),
    )
    sizes: Annotated[tuple[int, ...], BeforeValidator(split_names)] = Field(
        default=(),
        description="several numbers of virtual tokens, trained together: 4,8,16,32",
        json_schema_extra=flag("--n-tokens", help="Virtual tokens; several sizes at once: 4,8,16,32."),
    )
    fit_steps: int | None = Field(
        default=None,
        ge=0,
        description="steps that fit the start before training, 0: none (default: 200 of a KV prompt, 800 of the other)",
        json_schema_extra=flag("--fit-steps", help="Steps that fit the start before training; 0: none."),
    )
    study: StudyConfig = StudyConfig()
    method: MethodConfig = MethodConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, given: Any) -> Any:
        """Other defaults than in training, where a section is given in part or not at all."""
        filled = dict(given)
        for section, own in OWN.items():
            part = filled.get(section, {})
            if isinstance(part, dict):
                if section == "train" and filled.get("document"):
                    own = own | {"lr": DOCUMENT_LR}
                filled[section] = own | part
                if section == "train" and part.get("minutes") is not None and "steps" not in part:
                    filled[section]["steps"] = None
        return filled


def study_0_1(study: Mapping[str, Any]) -> dict[str, Any]:
    """The study section as softprompt 0.1 spelled it: digests and cards of 0.1 cover it."""
    return dict(study)
