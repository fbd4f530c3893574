"""The body of POST /v1/fine_tuning/jobs: OpenAI's fields, and `soft_prompt` for what OpenAI's API cannot say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from softprompt.jobs.records import Hyperparameters, SoftPromptRequest, TuningMethod
from softprompt.server.error_responses import ApiError, invalid
from softprompt.server.schema import validated
from softprompt.server.strict import Strict

MAX_SEED = 2**31 - 1
_REFUSED_METHODS = {
    "reinforcement": "it needs graders, and this server runs none. softprompt train --objective grpo rewards answers "
    "by a function of yours.",
}
_Value = TypeVar("_Value")

FileId = Annotated[str, Field(min_length=1, max_length=64)]
Suffix = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
Epochs = Annotated[int, Field(ge=1, le=50)]
BatchSize = Annotated[int, Field(ge=1, le=256)]
Factor = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Labels = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class HyperparameterFields(Strict):
    """OpenAI's hyperparameters; "auto" and null are the recipe's choice."""

    n_epochs: Epochs | Literal["auto"] | None = None
    batch_size: BatchSize | Literal["auto"] | None = None
    learning_rate_multiplier: Factor | Literal["auto"] | None = None

    @property
    def record(self) -> Hyperparameters:
        """As jobs keep them."""
        return Hyperparameters(
            _or(self.n_epochs, "auto"), _or(self.batch_size, "auto"), _or(self.learning_rate_multiplier, "auto")
        )


class SupervisedFields(Strict):
    """The settings of supervised training."""

    hyperparameters: HyperparameterFields | None = None


class PreferenceHyperparameterFields(Strict):
    """OpenAI's hyperparameters of dpo; "auto" and null are the recipe's choice."""

    n_epochs: Epochs | Literal["auto"] | None = None
    batch_size: BatchSize | Literal["auto"] | None = None
    learning_rate_multiplier: Factor | Literal["auto"] | None = None
    beta: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] | Literal["auto"] | None = None

    @property
    def record(self) -> Hyperparameters:
        """As jobs keep them."""
        return Hyperparameters(
            _or(self.n_epochs, "auto"),
            _or(self.batch_size, "auto"),
            _or(self.learning_rate_multiplier, "auto"),
            _or(self.beta, "auto"),
        )


class PreferenceFields(Strict):
    """The settings of training on pairs of answers."""

    hyperparameters: PreferenceHyperparameterFields | None = None


class MethodFields(Strict):
    """OpenAI's kinds of training, of which two are supported."""

    type: TuningMethod
    supervised: SupervisedFields | None = None
    dpo: PreferenceFields | None = None
    reinforcement: None = None


class DistillFields(Strict):
    """A text to distill: the text itself, or an uploaded file with it; a document is longer than the context."""

    text: Annotated[str, Field(min_length=1)] | None = None
    file: FileId | None = None
    mode: Literal["text", "document"] | None = None


class SoftPromptFields(Strict):
    """Settings of the soft prompt; what is not given is the recipe's choice."""

    method: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")] | None = None
    n_tokens: Annotated[int, Field(ge=1, le=1024)] | None = None
    minutes: Annotated[float, Field(gt=0, le=43_200, allow_inf_nan=False)] | None = None
    distill: DistillFields | None = None


class JobRequest(Strict):
    """Body of POST /v1/fine_tuning/jobs."""

    model: str
    training_file: FileId | None = None
    validation_file: FileId | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    hyperparameters: HyperparameterFields | None = None
    method: MethodFields | None = None
    metadata: Labels | None = None
    integrations: Annotated[list[object], Field(max_length=0)] | None = None
    soft_prompt: SoftPromptFields | None = None

    @property
    def distill(self) -> DistillFields | None:
        """The text to distill."""
        return None if self.soft_prompt is None else self.soft_prompt.distill

    @property
    def slug(self) -> str:
        """The suffix as names of models have it: lower case, no spaces."""
        return "-".join((self.suffix or "").lower().split())


JOB_PARTS = (
    HyperparameterFields,
    SupervisedFields,
    PreferenceHyperparameterFields,
    PreferenceFields,
    MethodFields,
    DistillFields,
    SoftPromptFields,
)


def parse_job(body: Mapping[str, object]) -> JobRequest:
    """Validate a JSON body. Raises ApiError 400 with the name of the invalid field, or the reason of a refusal."""
    check_method(body)
    if body.get("integrations"):
        message = (
            "integrations are not supported: this server sends nothing elsewhere. Events and result files tell all."
        )
        raise ApiError(400, message, "unsupported_parameter", param="integrations")
    request = validated(JobRequest, body, JOB_PARTS)
    distill = request.distill
    if distill is not None and (distill.text is None) == (distill.file is None):
        raise invalid("Give text or file, one of the two.", "soft_prompt.distill")
    if distill is None and request.training_file is None:
        raise invalid("Give training_file.", "training_file", "missing_required_parameter")
    if distill is not None and request.validation_file is not None:
        raise invalid("A distillation holds queries out by itself.", "validation_file")
    return request


def check_method(body: Mapping[str, object]) -> None:
    """Raise ApiError 400 with the reason, for a kind of training that is refused."""
    method = body.get("method")
    kind = method.get("type") if isinstance(method, Mapping) else None
    if isinstance(kind, str) and kind in _REFUSED_METHODS:
        message = f"The method {kind} is not supported: {_REFUSED_METHODS[kind]}"
        raise ApiError(400, message, "unsupported_parameter", param="method.type")


def hyperparameters_of(method: MethodFields | None, older: HyperparameterFields | None) -> Hyperparameters:
    """Those of the method, or of OpenAI's older field. Raises ApiError if both are given and differ."""
    if method is not None and method.type == "dpo":
        return _preference_hyperparameters(method, older)
    if method is not None and method.dpo is not None:
        raise invalid("The type is supervised, so settings of dpo have no use.", "method.dpo")
    supervised = None if method is None else method.supervised
    given = [None if supervised is None else supervised.hyperparameters, older]
    records = [fields.record for fields in given if fields is not None]
    if len(records) == 2 and records[0] != records[1]:
        message = "hyperparameters and those of method differ: give one of the two."
        raise invalid(message, "hyperparameters")
    return records[0] if records else Hyperparameters()


def _preference_hyperparameters(method: MethodFields, older: HyperparameterFields | None) -> Hyperparameters:
    """Those of dpo, which the older field does not have."""
    if method.supervised is not None:
        raise invalid("The type is dpo, so settings of supervised have no use.", "method.supervised")
    if older is not None:
        raise invalid("hyperparameters is for supervised jobs: give method.dpo.hyperparameters.", "hyperparameters")
    fields = None if method.dpo is None else method.dpo.hyperparameters
    return (fields or PreferenceHyperparameterFields()).record


def soft_prompt_of(request: JobRequest) -> SoftPromptRequest:
    """The settings of the soft prompt, without the text to distill."""
    fields = request.soft_prompt or SoftPromptFields()
    return SoftPromptRequest(fields.method, fields.n_tokens, fields.minutes)


def _or(value: _Value | None, default: _Value) -> _Value:
    return default if value is None else value
