"""The exceptions of softprompt: every one is a `SoftpromptError`, so one `except` is enough.

SoftpromptError
├── ConfigError            a setting is unknown, contradictory or out of range
│   └── MissingExtraError   it needs a package of an optional extra that is not installed
├── DataError              a data file, row or template is not usable (carries file:line)
├── ModelError             a base model cannot be found, loaded or given a prefix
│   └── UnsupportedModelError   its cache or attention cannot take a prefix exactly
├── PromptError            a soft prompt is malformed or does not fit
│   ├── GeometryError      its tensors do not fit the base model
│   └── WrongBaseError     it was trained for another base model
├── StoreError             an artifact is missing, damaged, too large or already there
│   └── UnreachableError    a store far away, or the Hub, does not answer or fails
├── EngineError            a request cannot be run, or the engine has failed
├── JobError               a fine-tuning job or its file is not there, or not in a state for this
│   ├── NotFoundError      nothing of that id, for this owner
│   ├── QuotaError         an owner has reached a maximum
│   └── LeaseLostError     a job was taken over by another worker
└── TrainError             a run cannot go on
    ├── NonFiniteLossError loss or gradient became NaN or infinite (carries the rows)
    └── CheckpointError    a checkpoint is missing, damaged or of another run

try:
    prompt, card = softprompt.load(Path("prompts/tone"), lm.geometry)
except softprompt.SoftpromptError as error:
    print(error)        # what, where, expected, got, what to do next
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EngineError",
    "GeometryError",
    "JobError",
    "LeaseLostError",
    "MissingExtraError",
    "ModelError",
    "NonFiniteLossError",
    "NotFoundError",
    "PromptError",
    "QuotaError",
    "SoftpromptError",
    "StoreError",
    "TrainError",
    "UnreachableError",
    "UnsupportedModelError",
    "WrongBaseError",
]


# What the code of a model of another library may raise when it gets inputs that it was not written for.
FOREIGN_ERRORS = (
    TypeError,
    AttributeError,
    ValueError,
    KeyError,
    IndexError,
    RuntimeError,
    AssertionError,
    ImportError,
)


class SoftpromptError(Exception):
    """A mistake that a user can mend: what is wrong, where, what was expected and got, what to do next.

    Args:
        what: one sentence without a full stop.
        where: a path, `file:line`, field or layer.
        expected: what would have been right.
        got: the wrong value, or the rows or files that are there instead.
        hint: the next thing to type or to change.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.got = got
        self.hint = hint
        super().__init__(self.render())

    def render(self) -> str:
        """The message as printed: a line with the mistake and its place, then a line for each further attribute."""
        lines = [f"{self.where}: {self.what}" if self.where is not None else self.what]
        for name in ("expected", "got", "hint"):
            value = getattr(self, name)
            if value is not None:
                lines.append(f"  {name + ':':<10}{value}")
        return "\n".join(lines)


class ConfigError(SoftpromptError):
    """A setting is unknown, contradictory or out of range."""


class MissingExtraError(ConfigError):
    """A package of an optional extra is not installed; `hint` is the command that installs it."""


class DataError(SoftpromptError):
    """A data file, row or template is not usable."""


class ModelError(SoftpromptError):
    """A base model cannot be found, loaded or given a prefix."""


class UnsupportedModelError(ModelError):
    """The base model's cache or attention cannot take a prefix exactly."""


class PromptError(SoftpromptError):
    """A soft prompt is malformed or does not fit."""


class GeometryError(PromptError):
    """The tensors of a soft prompt do not fit the base model."""


class WrongBaseError(PromptError):
    """A soft prompt was trained for another base model."""


class StoreError(SoftpromptError):
    """An artifact is missing, damaged, too large or already there."""


class UnreachableError(StoreError):
    """A store far away, or the Hub, does not answer or fails."""


class EngineError(SoftpromptError):
    """A request cannot be run, or the engine has failed."""


class JobError(SoftpromptError):
    """A fine-tuning job is not in a state for what was wanted of it."""


class NotFoundError(JobError):
    """There is no file, job or checkpoint of that id, or it belongs to someone else."""


class QuotaError(JobError):
    """An owner of files and jobs has reached a maximum; `expected` is the maximum."""


class LeaseLostError(JobError):
    """A job was taken over by another worker, so this one may change nothing of it any more."""


class TrainError(SoftpromptError):
    """A run cannot go on."""


class NonFiniteLossError(TrainError):
    """Loss or gradient became NaN or infinite; `where` names the step, `got` the rows."""


class CheckpointError(TrainError):
    """A checkpoint is missing, damaged or of another run."""


def missing_extra(package: str, extra: str, *, where: object = None) -> MissingExtraError:
    """The error to raise when `package`, which the optional extra `extra` brings, cannot be imported.

    Args:
        where: the setting, metric or file that needs it.
    """
    return MissingExtraError(f"{package} is not installed", where=where, hint=f"pip install 'softprompt[{extra}]'")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory, on any device. By name: this module does not import torch."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """Of an error's message; its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
