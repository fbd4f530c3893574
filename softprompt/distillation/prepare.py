"""Checks a distillation before the base model is loaded: the text and its chunks, the user's rows, the names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.data.default_template import default_template, default_text
from softprompt.data.read_options import ReadOptions, parse_columns
from softprompt.data.records import Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.splits import data_digest, load_rows, load_splits
from softprompt.data.template import VIRTUAL, Template
from softprompt.data.tokenizer import Tokenizer, has_chat_template, writes_system_turn
from softprompt.distillation.chunking import split_chunks
from softprompt.distillation.cloze import MAX_CLOZE_TOKENS
from softprompt.distillation.config import DistillConfig
from softprompt.errors import ConfigError, DataError
from softprompt.files import check_run_folder
from softprompt.formatting.text_prompt import APART, worked_example
from softprompt.methods.registry import method_spec
from softprompt.models.loading import context_length, is_encoder_decoder, load_tokenizer
from softprompt.prompts import store
from softprompt.settings import unescaped
from softprompt.training import tracking
from softprompt.training.checkpoint import latest_step
from softprompt.training.prepare import RUNS

MAX_TEXT_BYTES = 64 * 2**20
STUDY_SUFFIX = ".study"  # of the study cache's folder
RESERVED_TOKENS = 96  # of the context, for turns and control tokens around text, query and answer
CHUNK_TOKENS = 4096  # of a document, which is read whole where it fits: a piece knows nothing of the others


@dataclass(frozen=True)
class PreparedDistillation:
    """Settings with everything that can be checked before the base model is loaded.

    Attributes:
        text: the whole text.
        where: its file.
        chunks: the text in chunks that fit the teacher's context; one if the text fits.
        template: of rows after the prompt.
        rows: the user's queries; empty if the model generates them.
        sizes: numbers of virtual tokens.
        folder: of the artifact.
        run: folder of checkpoints and metrics.
        study_cache: folder of cached queries and teacher answers.
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
        """Digest of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def rows_sha256(self) -> str:
        """Digest of the user's rows; "" if there are none."""
        return data_digest(self.rows) if self.rows else ""

    def folder_of(self, size: int) -> Path:
        """The artifact folder of a size: NAME, or NAME.size if there are several."""
        return self.folder if len(self.sizes) == 1 else self.folder.with_name(f"{self.folder.name}.{size}")


def prepare_distillation(
    settings: DistillConfig, *, overwrite: bool = False, resume: bool = False, trust_remote_code: bool = False
) -> PreparedDistillation:
    """Check names, text and rows, and choose the template.

    Raises:
        ConfigError: there is not exactly one source, or settings exclude each other.
        StoreError: the name is taken (without `overwrite`), or an unfinished run of that name exists.
        DataError: the text or the rows cannot be read.
        ModelError: the tokenizer cannot be found.
    """
    name = _checked_name(settings)
    tracking.check_tracker(settings.train.track)
    folder = store.locate(name)
    run = folder.parent / RUNS / folder.name
    sizes = _checked_sizes(settings, folder, overwrite)
    study_cache = run.with_name(run.name + STUDY_SUFFIX)
    unfinished = latest_step(run) is not None
    check_run_folder(run, unfinished, study_cache.exists(), overwrite=overwrite, resume=resume)
    # files first: their mistakes show before a model is downloaded or converted
    demonstrations, rows = _load_rows(settings)
    source = None if settings.demonstrations else read_document(Path(settings.text or settings.document or ""))
    if is_encoder_decoder(settings.base_model, trust_remote_code=trust_remote_code):
        raise ConfigError("distillation is for causal models", where="model", got=f"{settings.model}: encoder-decoder")
    tokenizer = load_tokenizer(settings.base_model, trust_remote_code=trust_remote_code)
    template = _template(settings, [*demonstrations, *rows], tokenizer)
    text, where = source or (_worked_examples(demonstrations, template), str(settings.demonstrations))
    context = context_length(settings.base_model, trust_remote_code=trust_remote_code)
    chunks = document_chunks(settings, text, tokenizer, context)
    if len(chunks) > 1 and not settings.document:
        what, hint = "the text is too long for the model's context", "--document reads it in chunks"
        raise DataError(what, where=where, expected=f"{_room(settings, context)} tokens", hint=hint)
    return PreparedDistillation(settings, text, where, chunks, template, tuple(rows), sizes, folder, run, study_cache)


def _checked_name(settings: DistillConfig) -> str:
    """The name; raises ConfigError for settings that exclude each other."""
    sources = [kind for kind in ("text", "document", "demonstrations") if getattr(settings, kind)]
    if len(sources) != 1:
        hint = "softprompt distill --text policy.md --name policy"
        raise ConfigError("give one source", expected="--text, --document or --demonstrations", got=sources, hint=hint)
    if not settings.name:
        raise ConfigError("name is not given", hint=f"softprompt distill --{sources[0]} FILE --name NAME")
    if not method_spec(settings.method.name).distills:
        raise ConfigError("a text is distilled into one prompt", where="method.name", got=settings.method.name)
    if settings.repeat and not settings.repeats:
        what, got = "only keys and values are fitted to a repetition", f"method {settings.method.name}"
        raise ConfigError(what, where="repeat", got=got, hint="--method prefix-tuning, or leave --repeat out")
    if (settings.fit_steps or settings.repeat) and settings.method.init != "selected":
        hint = "--init selected, or leave --fit-steps and --repeat out"
        where, got = "fit_steps" if settings.fit_steps else "repeat", f"init {settings.method.init}"
        raise ConfigError("only selected tokens are fitted", where=where, got=got, hint=hint)
    return settings.name


def _checked_sizes(settings: DistillConfig, folder: Path, overwrite: bool) -> tuple[int, ...]:
    """The numbers of virtual tokens; raises StoreError if the name of one is taken."""
    sizes = tuple(dict.fromkeys(settings.sizes)) or (settings.method.n_tokens,)
    if min(sizes) < 1:
        raise ConfigError("a size is a number of virtual tokens", where="sizes", expected=">= 1", got=min(sizes))
    for size in sizes:
        store.check_free(folder if len(sizes) == 1 else folder.with_name(f"{folder.name}.{size}"), overwrite)
    return sizes


def document_chunks(settings: DistillConfig, text: str, tokenizer: Tokenizer, context: int) -> tuple[str, ...]:
    """The text in chunks that fit in the context beside query and answer; a text that fits is one chunk.

    Args:
        context: length of the model's context in tokens.
    """
    limit = _room(settings, context)
    if settings.document:
        limit = min(settings.study.chunk_tokens or min(CHUNK_TOKENS, context // 2), limit)
    return tuple(split_chunks(text, limit, lambda part: len(tokenizer.encode(part, add_special_tokens=False))))


def _room(settings: DistillConfig, context: int) -> int:
    return context - max_query_tokens(settings) - settings.study.answer_tokens - RESERVED_TOKENS


def max_query_tokens(settings: DistillConfig) -> int:
    """Tokens of the longest query that the context needs room for."""
    self_study = settings.data is None and settings.demonstrations is None
    return max(settings.study.query_tokens, MAX_CLOZE_TOKENS) if self_study else settings.study.query_tokens


def _load_rows(settings: DistillConfig) -> tuple[list[Record], list[Record]]:
    """The demonstrations, and the user's queries: at most `study.queries`.

    Demonstrations beyond `shots` are queries, unless the settings name others.
    """
    demonstrations, queries = list[Record](), list[Record]()
    options = ReadOptions(parse_columns(settings.columns))
    if settings.demonstrations:
        rows = load_rows(settings.demonstrations, options=options)
        demonstrations, queries = rows[: settings.shots], rows[settings.shots :]
    if settings.data and Path(settings.data).is_file():
        queries = load_rows(settings.data, require_target=False, options=options)
    elif settings.data:
        splits = load_splits(settings.data, seed=settings.train.seed, options=options)
        queries = [*splits.train, *splits.validation]
    if any(not shape_of(row).has_answers for row in (*demonstrations[:1], *queries[:1])):
        raise DataError("rows of plain text are no queries", where=settings.data, expected='{"prompt": "…"}')
    return demonstrations, queries[: settings.n_queries]


def _template(settings: DistillConfig, rows: Sequence[Record], tokenizer: Tokenizer) -> Template:
    """The template; in chats virtual tokens replace the system turn's words, if the chat template has such a turn."""
    plain = settings.template is not None or settings.demonstrations is not None
    chat = (has_chat_template(tokenizer) and not plain) if settings.chat is None else settings.chat
    if chat and not has_chat_template(tokenizer):
        raise DataError("chat is set, but the tokenizer has no chat template", hint="leave --chat out")
    system = VIRTUAL if chat and writes_system_turn(tokenizer) else ""
    if chat and settings.template is None:
        return Template("chat", "", system)
    text = unescaped(settings.template or _default_text(rows, settings))
    if rows:
        default_template(rows, tokenizer, text, False)  # raises DataError for a field that rows lack
    return Template("chat", text, system) if chat else Template("text", APART + text)


def _default_text(rows: Sequence[Record], settings: DistillConfig) -> str:
    """The template's text if the settings have none."""
    text = default_text(rows[0]) if rows else "{prompt}"
    if not settings.demonstrations:
        return text
    return f"{text}\nLabel:" if rows and shape_of(rows[0]).has_classes else f"Input: {text}\nOutput:"


def _worked_examples(demonstrations: Sequence[Record], template: Template) -> str:
    """The demonstrations as a text."""
    bare = Template("text", template.text.removeprefix(APART) or "{prompt}")
    return APART.join(worked_example(bare, row) for row in demonstrations)


def read_document(path: Path) -> tuple[str, str]:
    """The text and its file. Raises DataError."""
    if not path.is_file():
        raise DataError("no such file", where=path, hint="--text or --document names a file in UTF-8")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise DataError("the file is too large", where=path, expected=f"<= {MAX_TEXT_BYTES:,} bytes")
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        got, hint = f"byte 0x{error.object[error.start]:02x}", "convert it: iconv -f LATIN1 -t UTF-8"
        raise DataError("the text is not UTF-8", where=path, got=got, hint=hint) from error
    if not text:
        raise DataError("the text is empty", where=path, hint="write into the file what comes before every request")
    return text, str(path)
