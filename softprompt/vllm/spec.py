"""Registers the engine over vLLM, `--engine vllm`, without importing vLLM."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, field_validator

from softprompt.engine.registry import BaseModelOptions, EngineSpec, register_engine
from softprompt.errors import ConfigError
from softprompt.settings import flag

if TYPE_CHECKING:
    from softprompt.engine.base import Engine
    from softprompt.models.frozen_lm import FrozenLM


class VllmOptions(BaseModel):
    """Options of `--engine vllm`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine_option: tuple[str, ...] = Field(
        default=(),
        description="vLLM's engine arguments",
        json_schema_extra=flag("--engine-option", help="NAME=VALUE: one of vLLM's engine arguments; repeatable."),
    )

    @field_validator("engine_option")
    @classmethod
    def _check(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        parse_engine_arguments(texts)
        return texts

    @property
    def engine_arguments(self) -> dict[str, object]:
        """vLLM's engine arguments by name."""
        return parse_engine_arguments(self.engine_option)


def parse_engine_arguments(texts: Sequence[str]) -> dict[str, object]:
    """vLLM's engine arguments by name, from NAME=VALUE. A value is JSON, or else a text. Raises ConfigError."""
    arguments = dict[str, object]()
    for text in texts:
        name, value = text.split("=", 1) if "=" in text else ("", text)
        if not name.isidentifier() or name in arguments:
            expected = "NAME=VALUE, each name once, such as tensor_parallel_size=2"
            raise ConfigError("not an option of an engine", where="--engine-option", expected=expected, got=text)
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


def _prepare_base(base: BaseModelOptions) -> BaseModelOptions:
    """Options of softprompt's own copy of the base model, which only computes the keys and values of soft prompts.

    It has the dtype that vLLM runs, and stays off vLLM's device unless devices were named. vLLM decides at its import
    where its log goes, so this also sends it to stderr. Raises ConfigError for a quantization on load.
    """
    from softprompt.models.device import pick_device, pick_dtype

    if base.load_in is not None:
        what = "with vLLM, quantization is an option of the engine"
        hint = "--engine-option quantization=bitsandbytes, or another of vLLM's"
        raise ConfigError(what, where=f"--load-in {base.load_in}", got="--engine vllm", hint=hint)
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    if base.device != "auto" or base.device_map is not None:
        return base
    fastest, _ = pick_device("auto")
    dtype, _ = pick_dtype(base.dtype, fastest)
    return replace(base, dtype=str(dtype).removeprefix("torch."), device="cpu")


def _create(lm: FrozenLM, options: VllmOptions, base: BaseModelOptions) -> Engine:
    from softprompt.vllm.engine import VllmEngine

    trust = {"trust_remote_code": True} if base.trust_remote_code else {}
    return VllmEngine(lm, options.engine_arguments | trust)


register_engine(
    EngineSpec(
        "vllm",
        "vLLM, on one GPU or more.",
        VllmOptions,
        _create,
        packages=("vllm",),
        install_hint="in an environment with vLLM: pip install 'softprompt[vllm]'; see docs/server.md",
        prepare_base=_prepare_base,
    )
)
