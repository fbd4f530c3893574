"""A llama-server of our own for an export or a check: the user's binary, or the one in the wheel xllamacpp.

Its API: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.errors import ConfigError, EngineError, MissingExtraError
from softprompt.export.base import EngineAnswer
from softprompt.json_types import JSON, JSONObject
from softprompt.models.cores import usable_cores

START_S, ANSWER_S = 300.0, 600.0
_LISTED = 20  # tokens of a step whose log-probabilities are returned
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this machine's ports


@dataclass(frozen=True)
class ServerOptions:
    """How a llama-server is started.

    Attributes:
        gguf: the model.
        context: tokens.
        kv_type: number format of keys and values.
        adapter: a GGUF adapter.
        slots: folder in which slots are saved.
        swa_full: keep all keys and values of layers with a sliding window.
        binary: a llama-server; None: the one in PATH, else that of xllamacpp.
        n_slots: requests at once, which share the context.
        flash: let the server use flash attention where it can; on a CPU it adds in float16.
    """

    gguf: Path
    context: int
    kv_type: str = "f32"
    adapter: Path | None = None
    slots: Path | None = None
    swa_full: bool = False
    binary: Path | None = None
    n_slots: int = 1
    flash: bool = True


@dataclass(frozen=True)
class LlamaServer:
    """A running llama-server.

    Attributes:
        url: where it listens.
    """

    url: str

    def post(self, path: str, body: Mapping[str, object]) -> JSONObject:
        """The answer to a request. Raises EngineError for a refusal."""
        request = urllib.request.Request(  # noqa: S310 - a port of this machine
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with _LOCAL.open(request, timeout=ANSWER_S) as response:
                answer: JSON = json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise EngineError("llama-server refuses", where=path, got=_message(error.read())) from error
        except (OSError, ValueError) as error:
            raise EngineError("llama-server does not answer", where=path, got=error) from error
        if not isinstance(answer, dict):
            raise EngineError("an answer of another kind", where=path, got=str(answer)[:200])
        return answer

    def complete(self, ids: Sequence[int], n_tokens: int, options: Mapping[str, object]) -> JSONObject:
        """The server's greedy answer to token ids, with the log-probabilities of the likeliest tokens.

        Args:
            n_tokens: length of the answer.
            options: further fields of the request.

        Raises EngineError.
        """
        body = {"prompt": list(ids), "n_predict": n_tokens, "temperature": 0.0, "samplers": ["temperature"]}
        return self.post("/completion", body | {"n_probs": _LISTED, "return_tokens": True} | dict(options))


@contextlib.contextmanager
def llama_server(options: ServerOptions) -> Iterator[LlamaServer]:
    """Run a llama-server on a free port of this machine; it is ended at the end of the block.

    Raises:
        MissingExtraError: there is none.
        EngineError: it ends before it is ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = _command(options, port)
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT) as process,  # noqa: S603
    ):
        try:
            server = LlamaServer(f"http://127.0.0.1:{port}")
            if not _becomes_ready(server, process):
                log.seek(0)
                lines = log.read().decode(errors="replace").splitlines()
                shown = [line for line in lines if "error" in line.lower() or " E " in line] or lines
                what = "llama-server ended before it was ready" if process.poll() is not None else "it hangs"
                raise EngineError(what, where=options.gguf, got="\n".join(shown[-3:]))
            yield server
        finally:
            process.kill()


def server_name(options: ServerOptions) -> str:
    """What runs, with its version. Raises MissingExtraError if there is nothing."""
    binary = _binary(options)
    if binary is None:
        return f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    shown = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    lines = [line for line in (shown.stderr + shown.stdout).splitlines() if line.startswith("version")]
    return f"llama-server {lines[0].removeprefix('version:').strip() if lines else binary}"


def engine_answer(answer: JSONObject) -> EngineAnswer:
    """Tokens and log-probabilities out of an answer of `LlamaServer.complete`. Raises EngineError if it has none."""
    steps = answer.get("completion_probabilities")
    ids, logprobs = list[int](), list[dict[int, float]]()
    for step in steps if isinstance(steps, list) else []:
        listed = step.get("top_logprobs") if isinstance(step, dict) else None
        likeliest = dict(pair for entry in (listed if isinstance(listed, list) else []) if (pair := _logprob(entry)))
        own = _logprob(step)
        if own is None:
            raise EngineError("an answer without log-probabilities", where="/completion", got=str(step)[:200])
        ids.append(own[0])
        logprobs.append(likeliest | {own[0]: own[1]})
    tokens = answer.get("tokens")
    written = tuple(i for i in tokens if isinstance(i, int)) if isinstance(tokens, list) else ()
    if not written:
        return EngineAnswer(tuple(ids), tuple(logprobs))
    # The server lists nothing for a token that ends within a character: what it lists later belongs to other places.
    known = next((place for place, pair in enumerate(zip(ids, written, strict=False)) if pair[0] != pair[1]), len(ids))
    return EngineAnswer(written, tuple(logprobs[:known]))


def cached_tokens(answer: JSONObject) -> int:
    """Number of tokens of the prompt whose keys and values were there already; -1 if the server does not say."""
    timings = answer.get("timings")
    cached = timings.get("cache_n") if isinstance(timings, dict) else None
    return cached if isinstance(cached, int) else -1


def _logprob(entry: JSON) -> tuple[int, float] | None:
    if not isinstance(entry, dict):
        return None
    token, value = entry.get("id"), entry.get("logprob")
    return (token, float(value)) if isinstance(token, int) and isinstance(value, int | float) else None


def _binary(options: ServerOptions) -> Path | None:
    """The llama-server to run; None for that of xllamacpp."""
    if options.binary is not None:
        if not options.binary.is_file():
            raise ConfigError("no such file", where="--llama-server", got=options.binary)
        return options.binary
    if found := shutil.which("llama-server"):
        return Path(found)
    if importlib.util.find_spec("xllamacpp") is None:
        hint = "pip install xllamacpp, or give the program with --llama-server"
        raise MissingExtraError("there is no llama-server on this machine", where="llama.cpp", hint=hint)
    return None


def _command(options: ServerOptions, port: int) -> list[str]:
    binary = _binary(options)
    if binary is None:
        child = Path(__file__).with_name("xllamacpp_child.py")
        return [sys.executable, "-P", str(child), json.dumps(_parameters(options, port))]
    flags = [
        "-m",
        options.gguf,
        "-c",
        options.context,
        "-np",
        options.n_slots,
        "--kv-unified",  # a slot file has one stream, whatever the number of slots
        "--no-cache-idle-slots",
        "-ctk",
        options.kv_type,
        "-ctv",
        options.kv_type,
    ]
    flags += [
        "--host",
        "127.0.0.1",
        "--port",
        port,
        "--no-warmup",
        "-t",
        usable_cores(),  # waiting threads of llama.cpp keep theirs busy
        "-fa",
        "auto" if options.flash else "off",
    ]
    flags += ["--lora", options.adapter] if options.adapter else []
    flags += ["--slot-save-path", options.slots] if options.slots else []
    flags += ["--swa-full"] if options.swa_full else []
    return [str(binary), *(str(flag) for flag in flags)]


def _parameters(options: ServerOptions, port: int) -> dict[str, object]:
    """The same for `xllamacpp_child`."""
    return {
        "model.path": str(options.gguf.resolve()),
        "n_ctx": options.context,
        "n_parallel": options.n_slots,
        "kv_unified": True,  # a slot file has one stream, whatever the number of slots
        "cache_idle_slots": False,  # else a request to one slot empties the others
        "cache_type": options.kv_type,
        "flash": options.flash,
        "lora": [str(options.adapter.resolve())] if options.adapter else [],
        "slot_save_path": f"{options.slots.resolve()}/" if options.slots else "",
        "swa_full": options.swa_full,
        "hostnames": ["127.0.0.1"],
        "port": port,
        "cpuparams.n_threads": usable_cores(),
        "warmup": False,
    }


def _becomes_ready(server: LlamaServer, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), _LOCAL.open(server.url + "/health", timeout=5) as response:
            if response.status == 200:
                return True
        time.sleep(0.1)
    return False


def _message(body: bytes) -> str:
    """The error that a llama-server names, or the beginning of what it sent."""
    try:
        error = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
    return str(error)
