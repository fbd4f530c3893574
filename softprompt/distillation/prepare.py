"""What is distilled, checked before the base model is loaded: the text in pieces, the inputs, the names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.data.default_template import default_template, default_text
from softprompt.data.records import Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.splits import data_digest, load_rows, load_splits
from softprompt.data.template import VIRTUAL, Template
from softprompt.data.tokenizer import Tokenizer, has_chat_template, writes_system_turn
from softprompt.distillation.chunking import chunks
from softprompt.distillation.cloze import LONGEST
from softprompt.distillation.config import DistillConfig
from softprompt.errors import CheckpointError, ConfigError, DataError, StoreError
from softprompt.files import check_writable
from softprompt.formatting.text_prompt import APART, worked_example
from softprompt.models.loading import context_length, is_encoder_decoder, load_tokenizer
from softprompt.prompts import store
from softprompt.settings import unescaped
from softprompt.training import tracking
from softprompt.training.checkpoint import latest_step
from softprompt.training.prepare import RUNS

MOST_BYTES = 64 * 2**20
STUDY = ".study"


@dataclass(frozen=True)
class PreparedDistillation:
    """Settings with everything that can be checked before the base model is loaded.

    Attributes:
        text: all of it; `where` names its file, `sha256` is its digest.
        chunks: the pieces that the teacher reads, one if it fits.
        template: of rows behind the prompt.
        rows: the user's own inputs; empty if the model writes them.
        sizes: numbers of virtual tokens.
        folder, run, notebook: of the artifact, of checkpoints and metrics, of what was studied.
    """

    settings: DistillConfig
    text: str
    where: str
    chunks: tuple[str, ...]
    template: Template
    rows: tuple[Record, ...]
    sizes: tuple[int, ...]
    folder: Path
    run: Path
    study_cache: Path

    @property
    def sha256(self) -> str:
        """Of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def rows_sha256(self) -> str:
        """Of the user's inputs; "" if there are none."""
        return data_digest(self.rows) if self.rows else ""

    def folder_of(self, size: int) -> Path:
        """Where the artifact of a size goes: NAME, or NAME.size of several."""
        return self.folder if len(self.sizes) == 1 else self.folder.with_name(f"{self.folder.name}.{size}")


def prepare_distillation(
    settings: DistillConfig, *, overwrite: bool = False, resume: bool = False, trust_remote_code: bool = False
) -> PreparedDistillation:
    """Check names, text and inputs; choose the frame.

    Raises:
        ConfigError: not one source, or settings that exclude each other.
        StoreError: the name is taken (without `overwrite`), or an unfinished run of that name is there.
        DataError: the text or the rows cannot be read.
        ModelError: the tokenizer cannot be found.
    """
    name = _named(settings)
    tracking.check_tracker(settings.train.track)
    folder = store.locate(name)
    run = folder.parent / RUNS / folder.name
    sizes = tuple(dict.fromkeys(settings.sizes)) or (settings.method.n_tokens,)
    if min(sizes) < 1:
        raise ConfigError("a size is a number of virtual tokens", where="sizes", expected=">= 1", got=min(sizes))
    for size in sizes:
        store.check_free(folder if len(sizes) == 1 else folder.with_name(f"{folder.name}.{size}"), overwrite)
    _check_run(run, overwrite, resume)
    if is_encoder_decoder(settings.model, trust_remote_code=trust_remote_code):
        raise ConfigError("distillation is for causal models", where="model", got=f"{settings.model}: encoder-decoder")
    tokenizer = load_tokenizer(settings.model, trust_remote_code=trust_remote_code)
    shown, rows = _rows(settings)
    template = _template(settings, [*shown, *rows], tokenizer)
    text, where = _text(settings, shown, template)
    most = _most(settings, context_length(settings.model, trust_remote_code=trust_remote_code))
    pieces = chunks(text, most, lambda part: len(tokenizer.encode(part, add_special_tokens=False)))
    if len(pieces) > 1 and not settings.document:
        hint = "--document reads it in pieces"
        raise DataError(
            "the text is too long for the model's context", where=where, expected=f"{most} tokens", hint=hint
        )
    study_cache = run.with_name(run.name + STUDY)
    return PreparedDistillation(
        settings, text, where, tuple(pieces), template, tuple(rows), sizes, folder, run, study_cache
    )


def _named(settings: DistillConfig) -> str:
    """The name; ConfigError for settings that a distillation cannot have."""
    given = [kind for kind in ("text", "document", "demonstrations") if getattr(settings, kind)]
    if len(given) != 1:
        hint = "softprompt distill --text policy.md --name policy"
        raise ConfigError("give one source", expected="--text, --document or --demonstrations", got=given, hint=hint)
    if not settings.name:
        raise ConfigError("name is not given", hint=f"softprompt distill --{given[0]} FILE --name NAME")
    if settings.method.name in ("multitask", "mixture", "smop"):
        raise ConfigError("a text is distilled into one prompt", where="method.name", got=settings.method.name)
    if settings.fit_steps and settings.method.init != "attended":
        hint = "--init attended, or leave --fit-steps out"
        got = f"init {settings.method.init}"
        raise ConfigError("only attended tokens are fitted", where="fit_steps", got=got, hint=hint)
    return settings.name


def _check_run(run: Path, overwrite: bool, resume: bool) -> None:
    check_writable(run)
    unfinished = latest_step(run) is not None
    if unfinished and not resume and not overwrite:
        hint = "--resume to go on, or --overwrite to start anew"
        raise StoreError("an unfinished run of that name is there", where=run, hint=hint)
    if resume and not unfinished and not run.with_name(run.name + STUDY).exists():
        raise CheckpointError("there is nothing to resume", where=run, hint="leave --resume out")


def _most(settings: DistillConfig, context: int) -> int:
    """Tokens of a piece of text: what the context has room for beside input and answer."""
    room = context - longest_input(settings) - settings.study.answer_tokens - 96
    return min(settings.study.chunk_tokens, room) if settings.document else room


def longest_input(settings: DistillConfig) -> int:
    """Tokens of the longest input that the context needs room for."""
    self_study = settings.data is None and settings.demonstrations is None
    return max(settings.study.input_tokens, LONGEST) if self_study else settings.study.input_tokens


def _rows(settings: DistillConfig) -> tuple[list[Record], list[Record]]:
    """The demonstrations, and the user's inputs: at most as many as the study asks for."""
    shown, inputs = list[Record](), list[Record]()
    if settings.demonstrations:
        every = load_rows(settings.demonstrations)
        shown, inputs = every[: settings.shots], every[settings.shots :]  # the rest ask, unless --data does
    if settings.data and Path(settings.data).is_file():
        inputs = load_rows(settings.data, require_target=False)
    elif settings.data:
        splits = load_splits(settings.data, seed=settings.train.seed)
        inputs = [*splits.train, *splits.validation]
    if any(not shape_of(row).has_answers for row in (*shown[:1], *inputs[:1])):
        raise DataError("rows of text alone ask nothing", where=settings.data, expected='{"prompt": "…"}')
    return shown, inputs[: settings.study.inputs]


def _template(settings: DistillConfig, rows: Sequence[Record], tokenizer: Tokenizer) -> Template:
    """In chat the virtual tokens are the words of the system turn, if there can be one; else they stand in front."""
    plain = settings.template is not None or settings.demonstrations is not None
    chat = (has_chat_template(tokenizer) and not plain) if settings.chat is None else settings.chat
    if chat and not has_chat_template(tokenizer):
        raise DataError("chat was asked for, but the tokenizer has no chat template", hint="leave --chat out")
    system = VIRTUAL if chat and writes_system_turn(tokenizer) else ""
    if chat and settings.template is None:
        return Template("chat", "", system)
    text = unescaped(settings.template or _shape(rows, settings))
    if rows:
        default_template(rows, tokenizer, text, False)  # refuses a field that rows lack
    return Template("chat", text, system) if chat else Template("text", APART + text)


def _shape(rows: Sequence[Record], settings: DistillConfig) -> str:
    """How a row becomes text when the user does not say."""
    text = default_text(rows[0]) if rows else "{prompt}"
    if not settings.demonstrations:
        return text
    return f"{text}\nLabel:" if rows and shape_of(rows[0]).has_classes else f"Input: {text}\nOutput:"


def _text(settings: DistillConfig, shown: Sequence[Record], template: Template) -> tuple[str, str]:
    """The text and where it is from."""
    if settings.demonstrations:
        bare = Template("text", template.text.removeprefix(APART) or "{prompt}")
        return APART.join(worked_example(bare, row) for row in shown), settings.demonstrations
    path = Path(settings.text or settings.document or "")
    if not path.is_file():
        raise DataError("no such file", where=path, hint="--text or --document names a file in UTF-8")
    if path.stat().st_size > MOST_BYTES:
        raise DataError("the file is too large", where=path, expected=f"<= {MOST_BYTES:,} bytes")
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        got, hint = f"byte 0x{error.object[error.start]:02x}", "iconv -f LATIN1 -t UTF-8 makes it so"
        raise DataError("the text is not UTF-8", where=path, got=got, hint=hint) from error
    if not text:
        raise DataError("the text is empty", where=path, hint="put into the file what stands in front of every request")
    return text, str(path)
