"""The server's engine over vLLM: jobs in, tokens out, on whatever devices and machines vLLM runs.

A soft prompt is compiled when it is loaded, by the base model as the library has it, and handed to vLLM's workers as a
file in a folder that they all see. A job's ids are then a placeholder for every token of the prefix, and its text.

vLLM's sampler takes the placeholders for text. Of what a job can ask for only the repetition penalty looks at texts,
and whether a token is in it, not how often: for such a job the placeholder is the text's own first token.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, final

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs.engine import tokens_input
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from softprompt.engine.base import EngineStats, Job, Token
from softprompt.engine.checks import check_context_room, check_job, check_prefix, check_supported
from softprompt.engine.probe import probe
from softprompt.errors import ConfigError, EngineError, first_line
from softprompt.inference.sampling import GREEDY
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.sources import find_source
from softprompt.prefix.kv import Prefix
from softprompt.vllm.connector import request_params, transfer_config
from softprompt.vllm.counters import VllmCounters
from softprompt.vllm.prefix_file import PLACEHOLDER_ID, compile_prefix, write_prefix

_OWN_ARGUMENTS = ("model", "tokenizer", "dtype", "skip_tokenizer_init", "kv_transfer_config", "max_logprobs")


@dataclass(eq=False)
class VllmPrompt:
    """A soft prompt as vLLM has it.

    Attributes:
        id: of its compiled prefix.
        size: tokens of the prefix.
        users: jobs that hold it.
    """

    id: str = ""
    size: int = 0
    users: int = 0


@final
class VllmEngine:
    """Runs jobs on one causal model; see `Engine` for what its methods promise.

    Log-probabilities are the model's own: unlike what `Token` says, penalties are not in them.

    Args:
        lm: the same model, by which prefixes are compiled.
        options: vLLM's engine arguments, by their names in Python.

    Raises ConfigError for an option that vLLM does not have, or that is not to be chosen.
    """

    def __init__(self, lm: FrozenLM, options: Mapping[str, Any] | None = None) -> None:
        self._lm, self._options = lm, dict(options or {})
        known = {field.name for field in fields(AsyncEngineArgs)}
        for name in self._options:
            if name not in known or name in _OWN_ARGUMENTS:
                what = "the engine sets this itself" if name in _OWN_ARGUMENTS else "vLLM has no such engine argument"
                raise ConfigError(what, where="--engine-option", got=name, hint="vllm serve --help lists them")
        self._llm: AsyncLLM | None = None
        self._folder = Path()
        self._listed: dict[str, VllmPrompt] = {}
        self._held: set[VllmPrompt] = set()
        self._jobs: set[str] = set()
        self._counters = VllmCounters()
        self._keys, self._compiling, self._stopped = 0, 0, False

    async def start(self) -> None:
        """Start vLLM, which takes its time and the event loop, and compare what it says with `softprompt.prefix`.

        Raises:
            UnsupportedModelError: vLLM's log-probabilities are not the library's.
            EngineError: vLLM did not start.
        """
        if self._llm is not None:
            raise EngineError("the engine was started before", hint="make a new one")
        check_supported(self._lm)
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # this process has threads
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        self._folder = Path(tempfile.mkdtemp(prefix="softprompt-vllm-"))
        try:
            self._llm = AsyncLLM.from_engine_args(self._arguments(), stat_loggers=[self._counters.of])
            await probe(self._lm, self)
        except BaseException as error:
            await self.stop()
            if isinstance(error, (ValueError, RuntimeError, OSError, ImportError, NotImplementedError)):
                hint = "the lines above are vLLM's own; --engine-option NAME=VALUE changes its arguments"
                raise EngineError(
                    "vLLM did not start", where=self._lm.name, got=first_line(error), hint=hint
                ) from error
            raise
        self._counters.begin()

    async def stop(self) -> None:
        """End vLLM, and with it every job that still runs."""
        self._stopped = True
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown)
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def failure(self) -> str:
        """Why no job can be taken any more; "" while all is well."""
        if self._llm is None:
            return "the engine is not started"
        if self._stopped:
            return "the engine was stopped"
        return f"vLLM has failed: {self._llm.dead_error}" if self._llm.errored else ""

    @property
    def context(self) -> int:
        """Tokens that one job may have in all."""
        longest = self._lm.geometry.max_positions
        return longest if self._llm is None else min(longest, self._llm.model_config.max_model_len)

    async def load(self, name: str, prefix: Prefix) -> None:
        """Compile a soft prompt and make it known. One of this name is replaced: jobs that run keep the old one.

        Raises EngineError if it does not fit the model or the context, StoreError if it cannot be written.
        """
        self._check_running()
        await asyncio.to_thread(check_prefix, self._lm, name, prefix, self._rooms)
        self._compiling += 1
        try:
            loaded = await asyncio.to_thread(self._compiled, prefix)
        finally:
            self._compiling -= 1
        self._listed[name] = loaded
        self._sweep()

    async def unload(self, name: str) -> None:
        """Forget a soft prompt; jobs that run keep it until they end. Raises EngineError for an unknown name."""
        self._find(name)
        del self._listed[name]
        self._sweep()

    def loaded(self) -> tuple[str, ...]:
        """Names that jobs can give."""
        return tuple(self._listed)

    async def stream(self, job: Job) -> AsyncGenerator[Token, None]:
        """Tokens as they come; the last has a finish. Leaving the iterator cancels the job.

        Raises, with the first token asked for:
            EngineError: an unknown name, ids that are no tokens, no room in the context, a job that failed.
        """
        llm = self._check_running()
        loaded = self._admit(job)
        try:
            ids = [job.ids[0] if job.penalties.repetition != 1 else PLACEHOLDER_ID] * loaded.size + list(job.ids)
            self._keys += 1
            outputs = llm.generate(
                tokens_input(ids, cache_salt=job.tenant or None), sampling_params(job, loaded.id), f"job-{self._keys}"
            )
            async with aclosing(outputs):
                async for output in outputs:
                    for token in tokens_of(job, output.outputs[0]):
                        yield token
        except EngineError:
            raise
        except Exception as error:  # foreign code; what failed is this job, or `failure` tells
            raise EngineError("the job failed", where=job.id, got=first_line(error)) from error
        finally:
            self._jobs.discard(job.id)
            loaded.users -= 1
            if not loaded.users:
                self._held.discard(loaded)
                self._sweep()

    def stats(self) -> EngineStats:
        """What it is busy with now."""
        stats = self._counters.stats()
        # Of a job that is cancelled, and is the last, vLLM says no more.
        return stats if self._jobs else replace(stats, running=0, waiting=0, kv_usage=0.0)

    def check_integrity(self) -> None:
        """Raises AssertionError if names, users and files do not add up."""
        known = self._held | set(self._listed.values())
        assert sum(loaded.users for loaded in known) == len(self._jobs), "someone holds a soft prompt for no job"
        assert all(loaded.users for loaded in self._held), "a soft prompt is held for no one"
        files, ids = {path.stem for path in self._files()}, {loaded.id for loaded in known if loaded.id}
        assert ids <= files, "a compiled prefix is missing"
        assert self._compiling or files == ids, "a compiled prefix is left over"

    @property
    def _rooms(self) -> dict[str, int]:
        return {"context": self.context}

    def _arguments(self) -> AsyncEngineArgs:
        own = {"model": find_source(self._lm.name).path, "skip_tokenizer_init": True, "max_logprobs": -1}
        own |= {"dtype": str(self._lm.dtype).removeprefix("torch."), "generation_config": "vllm"}
        own |= {"kv_transfer_config": transfer_config(self._folder), "disable_log_stats": True}
        return AsyncEngineArgs(**(own | self._options))

    def _check_running(self) -> AsyncLLM:
        if self._llm is None or self.failure:
            raise EngineError(self.failure, where=self._lm.name)
        return self._llm

    def _compiled(self, prefix: Prefix) -> VllmPrompt:
        """With its file; a prefix of no tokens has none."""
        if prefix.prompt is None and not prefix.lead + prefix.follow:
            return VllmPrompt()
        kv_L2TKD = compile_prefix(self._lm, prefix)
        return VllmPrompt(write_prefix(self._folder, kv_L2TKD), kv_L2TKD.shape[2])

    def _find(self, name: str) -> VllmPrompt:
        if name not in self._listed:
            raise EngineError("no such soft prompt is loaded", expected=sorted(self._listed), got=name)
        return self._listed[name]

    def _admit(self, job: Job) -> VllmPrompt:
        """The soft prompt of a job, held for it."""
        if job.id in self._jobs:
            raise EngineError("a job of this id runs already", where=job.id)
        check_job(self._lm, job)
        loaded = VllmPrompt() if job.prompt is None else self._find(job.prompt)
        before, new = loaded.size + len(job.ids), job.sampling.max_new_tokens
        check_context_room(job.id, before, new, self._rooms, "shorten the text or ask for fewer new tokens")
        loaded.users += 1
        self._held.add(loaded)
        self._jobs.add(job.id)
        return loaded

    def _sweep(self) -> None:
        """Remove the files that nobody has any more; later, if one is being made that may be there already."""
        known = {loaded.id for loaded in self._held | set(self._listed.values())}
        for path in () if self._compiling else self._files():
            if path.stem not in known:
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return list(self._folder.glob("*.safetensors"))


def sampling_params(job: Job, prefix: str) -> SamplingParams:
    """A job's wishes in vLLM's words; the ids of compiled prefixes are "" for none."""
    sampling, greedy = job.sampling, job.sampling.temperature < GREEDY
    return SamplingParams(
        max_tokens=sampling.max_new_tokens,
        temperature=0.0 if greedy else sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=None if greedy else sampling.seed,
        repetition_penalty=job.penalties.repetition,
        presence_penalty=job.penalties.presence,
        frequency_penalty=job.penalties.frequency,
        logprobs=job.logprobs,
        ignore_eos=True,
        stop_token_ids=sorted(job.end_ids),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={"kv_transfer_params": request_params(prefix)} if prefix else None,
    )


def tokens_of(job: Job, output: CompletionOutput) -> list[Token]:
    """What is new of an answer. Raises EngineError if it ended in any other way than by an end token or its length."""
    reason = output.finish_reason or ""
    if reason not in ("", "stop", "length"):
        raise EngineError("the job failed", where=job.id, got=f"vLLM ended it: {reason}")
    ids, tokens = list(output.token_ids), []
    for i, token in enumerate(ids):
        finish = reason if i == len(ids) - 1 else ""
        if output.logprobs is None or job.logprobs is None:
            tokens.append(Token(token, finish))
            continue
        found = output.logprobs[i]
        best = sorted(found.items(), key=lambda pair: -pair[1].logprob)[: job.logprobs]
        tokens.append(Token(token, finish, found[token].logprob, tuple((i, entry.logprob) for i, entry in best)))
    return tokens
