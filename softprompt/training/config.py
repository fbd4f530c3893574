"""Every setting with its default, its meaning, and one way to merge: defaults < YAML < environment < flags.

The description of a field stands above it in `softprompt train --print-config`. Unknown keys are errors, with a
suggestion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from softprompt.settings import flag, resolve_settings, split_names

Init = Literal["text", "attended", "labels", "vocab", "uniform", "normal", "demonstrations", "prompt", "best"]


class MethodConfig(BaseModel):
    """What is trained and where it starts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal[
        "decomposed",
        "mixture",
        "multitask",
        "p-tuning",
        "p-tuning-lstm",
        "p-tuning-v2",
        "prefix-tuning",
        "prefix-tuning-mlp",
        "prompt-tuning",
        "residual",
        "residual-separate",
        "smop",
    ] = Field(
        default="prefix-tuning",
        description="how the prompt is parameterised",
        json_schema_extra=flag(
            "--method", help="prefix-tuning, prompt-tuning, … (softprompt train --print-config lists them)."
        ),
    )
    n_tokens: int = Field(
        default=32,
        ge=1,
        le=8192,
        description="virtual tokens",
        json_schema_extra=flag("--n-tokens", help="Virtual tokens."),
    )
    init: Init = Field(
        default="text",
        description="where virtual tokens start; attended: those of a long text that rows look at most; best tries "
        "text, labels, vocab and demonstrations on validation rows",
        json_schema_extra=flag(
            "--init", help="Where they start: text, demonstrations, labels, vocab, uniform, prompt, best."
        ),
    )
    text_tokens: int = Field(
        default=1024,
        ge=1,
        description="without init_text, init attended chooses from so many tokens of demonstrations, or half a context",
    )
    init_text: str | None = Field(
        default=None,
        description="the text to start from; made from the task if not given",
        json_schema_extra=flag("--init-text", help="The text to start from."),
    )
    init_from: str | None = Field(
        default=None,
        description="the soft prompt to start from, with init prompt",
        json_schema_extra=flag("--init-from", help="The soft prompt to start from."),
    )
    sources: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        default=(), description="soft prompts that a mixture attends to"
    )
    teachers: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        default=(), description="soft prompts of the tasks, one for each, that multitask training is distilled from"
    )
    kept: Annotated[tuple[int, ...], BeforeValidator(split_names)] = Field(
        default=(), description="start from these virtual tokens of the start only (what prune kept): rewinding"
    )
    frozen_tokens: int = Field(default=0, ge=0, description="first tokens of a KV prompt that stay as they began")
    hidden: int = Field(default=512, ge=1, description="width of the encoder of a reparametrised prompt")
    rank: int = Field(default=10, ge=1, description="rank of a decomposed prompt")
    n_prompts: int = Field(default=4, ge=2, description="prompts that the router of smop chooses from")
    sites: str | None = Field(
        default=None,
        description="where a KV prompt stands in an encoder-decoder, of encoder,decoder,cross",
    )


class TrainConfig(BaseModel):
    """How it is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int | None = Field(
        default=None,
        ge=1,
        description="optimiser steps; chosen from the number of rows if not given",
        json_schema_extra=flag("--steps", help="Optimizer steps."),
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
        default=1.0, ge=1, description="of several tasks: 1 draws every row equally often, more favours small tasks"
    )
    distil: float = Field(default=1.0, ge=0, description="weight of the teachers' divergence beside the loss")
    accumulate: int = Field(default=1, ge=1, description="parts that a step's rows are run in, to save memory")
    optimizer: Literal["adamw", "adafactor"] = Field(default="adamw", description="optimiser")
    lr: float = Field(
        default=2e-2, gt=0, description="peak learning rate", json_schema_extra=flag("--lr", help="Peak learning rate.")
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="learning rate after warm-up"
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the run in which the learning rate rises")
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
    graphs: bool = Field(default=True, description="on a GPU: record passes as CUDA graphs and replay them")
    seed: int = Field(
        default=0, ge=0, description="seed of every random draw", json_schema_extra=flag("--seed", help="Seed.")
    )
    track: Literal["none", "tensorboard", "trackio", "wandb"] = Field(default="none", description="also log there")


class Config(BaseModel):
    """A training run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    recipe: Literal["auto", "fixed"] = Field(
        default="auto",
        description="auto: what is not given is chosen from task and time; fixed: the defaults",
        json_schema_extra=flag("--recipe", help="auto chooses what is not given; fixed does not."),
    )
    model: str = Field(
        default="smollm2-135m",
        description="base model: Hub id, folder, GGUF file or smollm2-135m",
        json_schema_extra=flag("--model", "-m", help="Base model: Hub id, folder, GGUF, smollm2-135m."),
    )
    data: str | dict[str, str] | None = Field(
        default=None,
        description="file, folder with train/validation/test, or Hub data set; several as {task: path}",
        json_schema_extra=flag(
            "--data", "-d", help="File, folder with train.* and test.*, or Hub data set; several: TASK=PLACE."
        ),
    )
    name: str | None = Field(
        default=None,
        description="name of the soft prompt",
        json_schema_extra=flag("--name", "-n", help="Name of the soft prompt."),
    )
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
    max_length: int = Field(
        default=1024,
        ge=2,
        description="longest row in tokens",
        json_schema_extra=flag("--max-length", help="Longest row in tokens."),
    )
    drop_long: bool = Field(
        default=False,
        description="leave longer rows out instead of stopping",
        json_schema_extra=flag("--drop-long", help="Leave longer rows out."),
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
    method: MethodConfig = MethodConfig()
    train: TrainConfig = TrainConfig()


def resolve(flags: dict[str, Any], yaml_path: Path | None = None, environment: dict[str, str] | None = None) -> Config:
    """The settings of a training run, see `resolved`."""
    return resolve_settings(Config, flags, yaml_path, environment)
