"""The serving engine over vLLM, on all devices and machines that vLLM supports.

Loading a soft prompt compiles it with softprompt's own copy of the base model, into a file in a folder that all of
vLLM's workers can read. A job's ids are then one placeholder for each token of the prefix, followed by the text.

vLLM's sampler takes placeholders for text. This affects only the repetition penalty, which depends on the set of tokens
in the text. With that penalty, the placeholder is the text's own first token, which does not change the set.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import final

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs.engine import tokens_input
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from softprompt.engine.base import EngineStats, Job, PromptToken, Token
from softprompt.engine.checks import check_context_room, check_job, check_one_shape, check_prefix, check_supported
from softprompt.engine.probe import probe
from softprompt.engine.prompt_scores import score_prompt
from softprompt.errors import ConfigError, EngineError, first_line
from softprompt.inference.sampling import GREEDY
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.sources import find_source
from softprompt.prefix.kv import Prefix
from softprompt.vllm.connector import request_params, transfer_config
from softprompt.vllm.counters import VllmCounters
from softprompt.vllm.prefix_file import PLACEHOLDER_ID, compile_prefix, write_prefix

_OWN_ARGUMENTS = (
    "model",
    "tokenizer",
    "dtype",
    "skip_tokenizer_init",
    "kv_transfer_config",
    "max_logprobs",
    "structured_outputs_config",
)


@dataclass(eq=False)
class VllmPrompt:
    """A soft prompt loaded in vLLM.

    Attributes:
        id: id of the compiled prefix.
        size: tokens of the prefix.
        prefix: what it was compiled from.
        users: number of jobs that hold it.
    """

    id: str = ""
    size: int = 0
    prefix: Prefix = field(default_factory=Prefix)
    users: int = 0


@final
class VllmEngine:
    """Runs jobs on one causal model with vLLM; `Engine` documents the methods.

    Log-probabilities are the model's own, before penalties, unlike those of the other engines. Those of given text are
    computed by softprompt's own copy of the model, a text at a time: vLLM leaves soft prompts out of them.

    Args:
        lm: the same model, which compiles prefixes.
        options: vLLM's engine arguments, by their Python names.

    Raises ConfigError for an argument that vLLM does not have, or that this engine sets itself.
    """

    def __init__(self, lm: FrozenLM, options: Mapping[str, object] | None = None) -> None:
        self._lm, self._options = lm, dict(options or {})
        known = {option.name for option in fields(AsyncEngineArgs)}
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
        self._keys, self._compiling = 0, 0
        self._scoring = asyncio.Lock()
        self._stopped = False

    async def start(self) -> None:
        """Start vLLM, which blocks the event loop meanwhile, and verify its log-probabilities with `softprompt.prefix`.

        Raises:
            UnsupportedModelError: vLLM's log-probabilities differ.
            EngineError: vLLM did not start.
        """
        if self._llm is not None:
            raise EngineError("the engine was started before", hint="make a new one")
        check_supported(self._lm)
        check_one_shape(self._lm)
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
        """Stop vLLM, and with it all running jobs."""
        self._stopped = True
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown)
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def failure(self) -> str:
        """Why no job is accepted any more; "" while the engine works."""
        if self._llm is None:
            return "the engine is not started"
        if self._stopped:
            return "the engine was stopped"
        return f"vLLM has failed: {self._llm.dead_error}" if self._llm.errored else ""

    @property
    def context(self) -> int:
        """Maximum tokens of a job: prefix, text and answer."""
        longest = self._lm.geometry.max_positions
        return longest if self._llm is None else min(longest, self._llm.model_config.max_model_len)

    async def load(self, name: str, prefix: Prefix) -> None:
        """Compile a soft prompt and load it under a name. Running jobs keep an older version of that name.

        Raises EngineError if it does not fit the model or the context, StoreError if it cannot be written.
        """
        self._check_running()
        await asyncio.to_thread(check_prefix, self._lm, name, prefix, self._capacities)
        self._compiling += 1
        try:
            loaded = await asyncio.to_thread(self._compile, prefix)
        finally:
            self._compiling -= 1
        self._listed[name] = loaded
        self._remove_unused()

    async def unload(self, name: str) -> None:
        """Unload a soft prompt; running jobs keep it until they end. Raises EngineError for an unknown name."""
        self._find(name)
        del self._listed[name]
        self._remove_unused()

    def loaded(self) -> tuple[str, ...]:
        """Names of the loaded soft prompts."""
        return tuple(self._listed)

    async def stream(self, job: Job) -> AsyncGenerator[Token, None]:
        """Tokens as they are generated; the last has a finish. Closing the generator cancels the job.

        Raises, at the first token:
            EngineError: unknown prompt, invalid ids, context too short, or the job failed.
        """
        llm = self._check_running()
        loaded = self._admit(job)
        try:
            given = await self._score(job, loaded)
            ids = [job.ids[0] if job.penalties.repetition != 1 else PLACEHOLDER_ID] * loaded.size + list(job.ids)
            self._keys += 1
            outputs = llm.generate(
                tokens_input(ids, cache_salt=job.tenant or None), sampling_params(job, loaded.id), f"job-{self._keys}"
            )
            async with aclosing(outputs):
                first = True
                async for output in outputs:
                    for token in tokens_of(job, output.outputs[0]):
                        cached = (output.num_cached_tokens or 0) if first else 0
                        yield replace(token, prompt=given, cached=cached)
                        given, first = (), False
        except EngineError:
            raise
        except Exception as error:  # of vLLM; either this job failed, or the engine did, and then `failure` is set
            raise EngineError("the job failed", where=job.id, got=first_line(error)) from error
        finally:
            self._jobs.discard(job.id)
            loaded.users -= 1
            if not loaded.users:
                self._held.discard(loaded)
                self._remove_unused()

    def stats(self) -> EngineStats:
        """The current load."""
        stats = self._counters.stats()
        # vLLM reports no statistics after the last job was cancelled.
        return stats if self._jobs else replace(stats, running=0, waiting=0, kv_usage=0.0)

    def check_integrity(self) -> None:
        """Raises AssertionError if names, user counts and files are inconsistent."""
        known = self._held | set(self._listed.values())
        assert sum(loaded.users for loaded in known) == len(self._jobs), "a soft prompt is held without a job"
        assert all(loaded.users for loaded in self._held), "a held soft prompt has no users"
        files, ids = {path.stem for path in self._files()}, {loaded.id for loaded in known if loaded.id}
        assert ids <= files, "a compiled prefix is missing"
        assert self._compiling or files == ids, "a compiled prefix is left over"

    @property
    def _capacities(self) -> dict[str, int]:
        return {"context": self.context}

    def _arguments(self) -> AsyncEngineArgs:
        source = find_source(self._lm.name)
        if source.adapter:
            what, hint = "vLLM would run the base model without its adapter", "merge it in PEFT, and save the model"
            raise EngineError(what, where=self._lm.name, hint=hint)
        arguments: dict[str, object] = {
            "model": source.path,
            "dtype": str(self._lm.dtype).removeprefix("torch."),
            "structured_outputs_config": {"backend": "guidance"},
            "generation_config": "vllm",
            "kv_transfer_config": transfer_config(self._folder),
            "max_logprobs": -1,
            "disable_log_stats": True,
        }
        return AsyncEngineArgs(**(arguments | self._options))

    def _check_running(self) -> AsyncLLM:
        if self._llm is None or self.failure:
            raise EngineError(self.failure, where=self._lm.name)
        return self._llm

    async def _score(self, job: Job, loaded: VllmPrompt) -> tuple[PromptToken, ...]:
        """What the job wants to know of its own text. Raises EngineError."""
        if job.prompt_logprobs is None:
            return ()
        async with self._scoring:
            return await asyncio.to_thread(score_prompt, self._lm, loaded.prefix, job.ids, job.prompt_logprobs)

    def _compile(self, prefix: Prefix) -> VllmPrompt:
        """Compile a prefix to its file; an empty prefix needs none."""
        if prefix.prompt is None and not prefix.lead + prefix.follow:
            return VllmPrompt()
        kv_L2TKD = compile_prefix(self._lm, prefix)
        return VllmPrompt(write_prefix(self._folder, kv_L2TKD), kv_L2TKD.shape[2], prefix)

    def _find(self, name: str) -> VllmPrompt:
        if name not in self._listed:
            raise EngineError("no such soft prompt is loaded", expected=sorted(self._listed), got=name)
        return self._listed[name]

    def _admit(self, job: Job) -> VllmPrompt:
        """Check a job and hold its soft prompt."""
        if job.id in self._jobs:
            raise EngineError("a job with this id is running already", where=job.id)
        check_job(self._lm, job)
        loaded = VllmPrompt() if job.prompt is None else self._find(job.prompt)
        before, new = loaded.size + len(job.ids), job.sampling.max_new_tokens
        check_context_room(job.id, before, new, self._capacities, "shorten the text or ask for fewer new tokens")
        loaded.users += 1
        self._held.add(loaded)
        self._jobs.add(job.id)
        return loaded

    def _remove_unused(self) -> None:
        """Remove files without users, unless a prefix is being compiled whose file may exist already."""
        known = {loaded.id for loaded in self._held | set(self._listed.values())}
        for path in () if self._compiling else self._files():
            if path.stem not in known:
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return list(self._folder.glob("*.safetensors"))


def sampling_params(job: Job, prefix: str) -> SamplingParams:
    """vLLM's sampling parameters of a job; `prefix` is the id of a compiled prefix or ""."""
    sampling, greedy = job.sampling, job.sampling.temperature < GREEDY
    return SamplingParams(
        max_tokens=sampling.max_new_tokens,
        temperature=0.0 if greedy else sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=None if greedy else sampling.seed,
        repetition_penalty=job.penalties.repetition,
        presence_penalty=job.penalties.presence,
        frequency_penalty=job.penalties.frequency,
        logprobs=job.logprobs,
        logit_bias=dict(job.bias) or None,
        min_tokens=job.min_tokens,
        structured_outputs=None if job.constraint is None else StructuredOutputsParams(grammar=job.constraint.lark),
        # The end token by which a grammar ends is the tokenizer's.
        ignore_eos=job.constraint is None,
        stop_token_ids=sorted(job.end_ids),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={"kv_transfer_params": request_params(prefix)} if prefix else None,
    )


def tokens_of(job: Job, output: CompletionOutput) -> list[Token]:
    """The new tokens of an output. Raises EngineError if vLLM ended the job without "stop" or "length"."""
    reason = output.finish_reason or ""
    if reason not in ("", "stop", "length"):
        raise EngineError("the job failed", where=job.id, got=f"vLLM ended it: {reason}")
    ids, tokens = list(output.token_ids), []
    for i, token in enumerate(ids):
        finish = reason if i == len(ids) - 1 else ""
        if output.logprobs is None or job.logprobs is None:
            tokens.append(Token(token, finish))
            continue
        logprobs = output.logprobs[i]
        best = sorted(logprobs.items(), key=lambda pair: -pair[1].logprob)[: job.logprobs]
        tokens.append(Token(token, finish, logprobs[token].logprob, tuple((i, entry.logprob) for i, entry in best)))
    return tokens
