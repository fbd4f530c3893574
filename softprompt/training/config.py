"""Every setting with its default, its meaning, and one way to merge: defaults < YAML < environment < flags.

The description of a field stands above it in `softprompt train --print-config`. Unknown keys are errors, with a
suggestion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from softprompt.errors import ConfigError
from softprompt.methods.config import MethodConfig
from softprompt.methods.registry import method_settings, parse_method
from softprompt.models.load_in import Quantization
from softprompt.models.sources import adapted_name
from softprompt.objectives.schedule import default_steps
from softprompt.settings import Section, flag, resolve_settings
from softprompt.training.objective_config import ObjectiveConfig

# A section whose class depends on its `name`.
MethodSection = Annotated[SerializeAsAny[MethodConfig], BeforeValidator(parse_method)]

# Settings that training and distillation share.
ModelName = Annotated[
    str,
    Field(
        description="base model: Hub id, folder, GGUF file or smollm2-135m",
        json_schema_extra=flag("--model", "-m", help="Base model: Hub id, folder, GGUF, smollm2-135m."),
    ),
]
AdapterFolder = Annotated[
    str | None,
    Field(
        description="PEFT folder whose LoRA weights are merged into the base model",
        json_schema_extra=flag("--base-adapter", help="PEFT folder whose LoRA weights are merged into the base model."),
    ),
]
ArtifactName = Annotated[
    str | None,
    Field(
        description="name of the soft prompt", json_schema_extra=flag("--name", "-n", help="Name of the soft prompt.")
    ),
]
DtypeName = Annotated[
    str,
    Field(
        description="auto, float32, bfloat16, float16 (of the base model)",
        json_schema_extra=flag("--dtype", help="auto, float32, bfloat16 or float16."),
    ),
]
LoadInName = Annotated[
    Quantization | None,
    Field(
        description="quantize the base model when it is loaded: 4bit, 8bit (bitsandbytes), int4, int8 (torchao)",
        json_schema_extra=flag("--load-in", help="Quantize the base when it is loaded: 4bit, 8bit, int4 or int8."),
    ),
]
DeviceName = Annotated[
    str,
    Field(description="auto, cpu, cuda, mps", json_schema_extra=flag("--device", help="auto, cpu, cuda or mps.")),
]
DevicePlan = Annotated[
    str | None,
    Field(
        description="split a base model that does not fit over devices: auto, balanced, sequential, or a map in JSON",
        json_schema_extra=flag(
            "--device-map", help="Split the base model over devices: auto, balanced, sequential, or a map in JSON."
        ),
    ),
]


class TrainConfig(Section):
    """The training loop."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"distil": "distill"}

    steps: int | None = Field(
        default=None,
        ge=0,
        description="optimizer steps, 0: the start alone; chosen from the number of rows if not given",
        json_schema_extra=flag("--steps", help="Optimizer steps."),
    )
    epochs: float | None = Field(
        default=None,
        gt=0,
        description="passes over the training rows, instead of steps",
        json_schema_extra=flag("--epochs", help="Passes over the training rows, instead of steps."),
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="wall-time budget; the schedule fits itself to it",
        json_schema_extra=flag("--minutes", help="Training time; the schedule fits itself to it."),
    )
    batch_size: int = Field(
        default=8,
        ge=1,
        description="rows per step, all processes together",
        json_schema_extra=flag("--batch-size", help="Rows a step."),
    )
    temperature: float = Field(
        default=1.0, ge=1, description="of several tasks: 1 draws every row equally often, more favors small tasks"
    )
    distill: float = Field(default=1.0, ge=0, description="weight of the teachers' divergence beside the loss")
    accumulate: int = Field(default=1, ge=1, description="parts that a step's rows are run in, to save memory")
    optimizer: Literal["adamw", "adafactor"] = Field(default="adamw", description="optimizer")
    lr: float = Field(
        default=2e-2,
        gt=0,
        description="peak learning rate",
        json_schema_extra=flag("--lr", "--learning-rate", help="Peak learning rate."),
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="learning rate after warm-up"
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the run in which the learning rate rises")
    average: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the prompt, which is kept where it validates better; 0: none",
    )
    token_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of the virtual tokens that the rows of a step cannot attend to"
    )
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    evals: int = Field(default=8, ge=1, description="validations during the run; the best prompt is kept")
    eval_rows: int = Field(
        default=128, ge=1, description="validation rows at most, for each of them; fewer in short runs"
    )
    patience: int | None = Field(default=4, ge=1, description="stop after so many validations without a better loss")
    save_every: int = Field(default=50, ge=1, description="steps between checkpoints")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute layers in the backward pass to save memory"
    )
    inspect: bool = Field(
        default=False, description="at each validation, write drift, effective rank and attention of the prompt"
    )
    graphs: bool = Field(default=True, description="on a GPU: record passes as CUDA graphs and replay them")
    seed: int = Field(
        default=0, ge=0, description="seed of every random draw", json_schema_extra=flag("--seed", help="Seed.")
    )
    track: Literal["none", "tensorboard", "trackio", "wandb"] = Field(default="none", description="also log there")

    def total_steps(self, rows: int) -> int | None:
        """Steps of a run on so many training rows; None if only minutes end it."""
        by_epochs = None if self.epochs is None else math.ceil(self.epochs * rows / self.batch_size)
        if given := [steps for steps in (self.steps, by_epochs) if steps is not None]:
            return min(given)
        return None if self.minutes is not None else default_steps(rows, self.batch_size)

    def legacy_dump(self, exclude: set[str]) -> dict[str, object]:
        """The section as 0.1 dumped it, for digests: a run that 0.1 left unfinished can be resumed."""
        old_keys = {new: old for old, new in self.renamed_keys.items()}
        later = {"epochs": None, "average": 0.0, "token_dropout": 0.0}  # settings that 0.1 did not have, as they were
        unknown = exclude | {"inspect"} | {name for name, value in later.items() if getattr(self, name) == value}
        return {old_keys.get(key, key): value for key, value in self.model_dump(exclude=unknown).items()}


class Config(Section):
    """A training run."""

    recipe: Literal["auto", "fixed"] = Field(
        default="auto",
        description="auto: what is not given is chosen from task and time; fixed: the defaults",
        json_schema_extra=flag("--recipe", help="auto chooses what is not given; fixed does not."),
    )
    model: ModelName = "smollm2-135m"
    base_adapter: AdapterFolder = None
    data: str | dict[str, str] | None = Field(
        default=None,
        description="file, folder with train/validation/test, or Hub data set; several as {task: path}",
        json_schema_extra=flag(
            "--data", "-d", help="File, folder with train.* and test.*, or Hub data set; several: TASK=PLACE."
        ),
    )
    name: ArtifactName = None
    template: str | dict[str, str] | None = Field(
        default=None,
        description='how a row becomes text, e.g. "Review: {text}\\nSentiment:"; several as {task: text}',
        json_schema_extra=flag("--template", help="Row to text, e.g. 'Review: {text}\\nSentiment:'."),
    )
    chat: bool | None = Field(
        default=None,
        description="use the model's chat template (default: without --template)",
        json_schema_extra=flag("--chat/--no-chat", help="Use the model's chat template."),
    )
    frame: str | None = Field(
        default=None,
        description='a sentence around the virtual tokens, e.g. "Please {prompt}."',
        json_schema_extra=flag("--frame", help="A sentence around the virtual tokens: 'Please {prompt}.'"),
    )
    max_length: int = Field(
        default=1024,
        ge=2,
        description="longest row in tokens",
        json_schema_extra=flag("--max-length", help="Longest row in tokens."),
    )
    drop_long: bool = Field(
        default=False,
        description="leave out rows longer than that, or than the model's context, instead of stopping",
        json_schema_extra=flag("--drop-long", help="Leave longer rows out."),
    )
    columns: str | dict[str, str] | None = Field(
        default=None,
        description="other names of columns, e.g. prompt=question,completion=answer; several as {task: text}",
        json_schema_extra=flag("--columns", help="Columns by other names: prompt=question,completion=answer."),
    )
    pieces: int | None = Field(
        default=None,
        ge=1,
        description="cut texts without answers into pieces of so many bytes, four a token or so; 2048 for .txt files",
        json_schema_extra=flag("--pieces", help="Cut long texts into pieces of so many bytes."),
    )
    learn_end: bool | None = Field(
        default=None,
        description="learn the end token behind texts without answers (default: behind the last piece of each text)",
        json_schema_extra=flag("--learn-end/--no-learn-end", help="Learn the end token behind texts without answers."),
    )
    dtype: DtypeName = "auto"
    load_in: LoadInName = None
    device: DeviceName = "auto"
    device_map: DevicePlan = None
    fsdp: bool = Field(
        default=False,
        description="shard the base model's layers over the processes of torchrun or accelerate launch (FSDP2)",
        json_schema_extra=flag("--fsdp/--no-fsdp", help="Shard the base model's layers over the processes."),
    )
    method: MethodSection = Field(default_factory=lambda: method_settings({}))
    train: TrainConfig = TrainConfig()
    objective: ObjectiveConfig = ObjectiveConfig()

    @property
    def base_model(self) -> str:
        """The base model's name, with its adapter if it has one. Raises ModelError for a folder without an adapter."""
        return adapted_name(self.model, self.base_adapter)


def resolve(
    flags: Mapping[str, object], yaml_path: Path | None = None, environment: dict[str, str] | None = None
) -> Config:
    """The settings of a training run, see `resolve_settings`.

    Raises ConfigError, too, for a reward that the flags do not name: it is Python code, which no file may start.
    """
    settings = resolve_settings(Config, flags, yaml_path, environment)
    reward = settings.objective.reward
    if reward is not None and flags.get("objective.reward") != reward:
        raise ConfigError(
            "a reward is Python code, and only the command line may name it",
            where=yaml_path or "environment",
            got=reward,
            hint=f"repeat it: --reward {reward}",
        )
    return settings
