"""From settings to a finished soft prompt: data checked, model loaded, prompt trained, artifact written.

    prepared = prepare(config)        # every row checked; no model weights touched
    outcome = fit(prepared)           # trains and writes prompts/NAME

`softprompt train` is these two calls with a progress bar.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState

from softprompt import store, tracking
from softprompt.card import Card, Layout
from softprompt.checkpoint import latest_step
from softprompt.config import Config, to_yaml
from softprompt.data.formats import Record
from softprompt.data.load import Splits, digest, load_splits
from softprompt.data.template import Template, answered_apart, bos_ids, default_template
from softprompt.data.tokenise import Example, target_ids, tokenise
from softprompt.errors import CheckpointError, ConfigError, StoreError
from softprompt.files import check_writable, writing
from softprompt.framing import check_context, layout_for, layout_ids, worked_example
from softprompt.methods import Method, Start, build
from softprompt.model import FrozenLM, is_encoder_decoder, load, load_tokenizer
from softprompt.modelcard import model_card
from softprompt.plot import learning_curve
from softprompt.prompt import check_fits
from softprompt.runlog import RunLog, read
from softprompt.tracking import Tracking
from softprompt.train import Event, Result, Task, train

RUNS = ".runs"
CURVE = "curve.png"
INIT_ROWS = 8  # training rows that a made-up start text is drawn from


@dataclass(frozen=True)
class Prepared:
    """Settings with everything that can be checked before the base model is loaded.

    Attributes:
        folder: where the artifact will be.
        run: where checkpoints and metrics.jsonl go.
    """

    config: Config
    splits: Splits
    template: Template
    train: Sequence[Example]
    validation: Sequence[Example]
    dropped: int
    folder: Path
    run: Path


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        folder: the artifact, or None if a signal ended the run (then `--resume` goes on).
        bytes: size of the artifact's tensors.
    """

    result: Result
    folder: Path | None
    run: Path
    card: Card
    bytes: int


def prepare(
    config: Config, *, overwrite: bool = False, resume: bool = False, trust_remote_code: bool = False
) -> Prepared:
    """Check names, every row of data, and lengths in tokens.

    Raises:
        ConfigError: name or data missing.
        StoreError: the name is taken (without `overwrite`), or an unfinished run of that name is there.
        DataError: anything wrong with the rows.
        ModelError: the tokenizer cannot be found.
    """
    if not config.name or not config.data:
        missing = "name" if not config.name else "data"
        raise ConfigError(f"{missing} is not given", hint="softprompt train --model M --data D --name N")
    tracking.check(config.train.track)
    folder = store.locate(config.name)
    run = folder.parent / RUNS / folder.name
    store.check_free(folder, overwrite)
    check_writable(run)
    if resume and latest_step(run) is None:
        raise CheckpointError("there is nothing to resume", where=run, hint="train without --resume")
    if not resume and not overwrite and latest_step(run) is not None:
        raise StoreError(
            "an unfinished run of that name is there",
            where=run,
            hint="--resume to go on, or --overwrite to start anew",
        )
    splits = load_splits(config.data, seed=config.train.seed)
    tokenizer = load_tokenizer(config.model, trust_remote_code=trust_remote_code)
    text = config.template.replace("\\n", "\n").replace("\\t", "\t") if config.template else None
    template = default_template(splits.train, tokenizer, text, config.chat)
    if is_encoder_decoder(config.model, trust_remote_code=trust_remote_code):
        template = answered_apart(template)
    on_long = "drop" if config.drop_long else "error"

    def ids(records: Sequence[Record]) -> list[Example]:
        return tokenise(records, template, tokenizer, max_length=config.max_length, on_long=on_long)

    rows, held_out = ids(splits.train), ids(splits.validation)
    dropped = len(splits.train) + len(splits.validation) - len(rows) - len(held_out)
    return Prepared(config, splits, template, rows, held_out, dropped, folder, run)


def fit(
    prepared: Prepared,
    lm: FrozenLM | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    trust_remote_code: bool = False,
    report: Callable[[Event], None] = lambda event: None,
) -> Outcome:
    """Train and write the artifact.

    Args:
        lm: the base model, if it is loaded already.
        report: is told of every event, besides metrics.jsonl.

    Raises:
        what `load`, `train` and `store.save` raise.
    """
    config, run = prepared.config, prepared.run
    store.check_free(prepared.folder, overwrite)
    if lm is None:
        lm = load(config.model, dtype=config.dtype, device=config.device, trust_remote_code=trust_remote_code)
    method = build(config.method.name, lm, start_of(prepared, lm))
    start = method.freeze()[0]
    check_fits(start, lm.geometry)
    layout = layout_for(lm, prepared.template, start.form)
    lead, follow = layout_ids(lm, layout)
    around = len(lead) + config.method.n_tokens + len(follow)
    rows = [(row.where, len(row.ids), around) for row in (*prepared.train, *prepared.validation)]
    check_context(lm, rows, "--max-length N --drop-long leaves such rows out; fewer --n-tokens make room")
    task = Task(prepared.train, prepared.validation, lead, follow, _identity(prepared))
    processes = PartialState(cpu=lm.device.type == "cpu")
    if processes.is_main_process:
        result = _logged(prepared, lm, method, task, resume, report)
    else:
        result = train(lm, method, task, config.train, run, resume=resume)
    card = _card(prepared, lm, layout, result)
    if result.interrupted:
        return Outcome(result, None, run, card, 0)
    size = sum(t.numel() * t.element_size() for t in result.prompt.tensors().values())

    def extras(scratch: Path) -> None:
        learning_curve(scratch / CURVE, card.name, *curves(run / "metrics.jsonl"))

    if processes.is_main_process:
        readme = model_card(card, bytes_on_disk=size, curve=CURVE)
        card = store.save(prepared.folder, result.prompt, card, readme=readme, extras=extras, overwrite=overwrite)
        for checkpoint in run.glob("checkpoint-*"):  # the run is over: what is left of it is its log
            shutil.rmtree(checkpoint, ignore_errors=True)
    processes.wait_for_everyone()
    return Outcome(result, prepared.folder, run, card, size)


def _logged(
    prepared: Prepared, lm: FrozenLM, method: Method, task: Task, resume: bool, report: Callable[[Event], None]
) -> Result:
    """Train, and write every event to metrics.jsonl and to the tracker."""
    config, run = prepared.config, prepared.run
    with contextlib.ExitStack() as stack:
        sinks: list[Callable[[Event], None]] = []

        def open_sinks(step: int) -> None:
            if not resume:
                shutil.rmtree(run, ignore_errors=True)
            log = RunLog(run / "metrics.jsonl", step if resume else None)
            stack.callback(log.close)
            with writing(run):
                (run / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
            tracker = Tracking(config.train.track, prepared.folder.name, run, config.model_dump(mode="json"))
            stack.callback(tracker.close)
            sinks.append(lambda event: log.write({"event": event.kind, "step": event.step, **event.numbers}))
            sinks.append(lambda event: tracker.write(event.kind, event.step, event.numbers))

        def everywhere(event: Event) -> None:
            if event.kind == "start":  # nothing before it: a refused --resume leaves the folder as it was
                open_sinks(event.step)
            for sink in (*sinks, report):
                sink(event)

        return train(lm, method, task, config.train, run, resume=resume, report=everywhere)


def _identity(prepared: Prepared) -> str:
    """A digest of the rows as they are written to the model, and of the method and its start."""
    config, splits = prepared.config, prepared.splits
    facts = [digest(splits.train), digest(splits.validation), prepared.template.to_dict()]
    facts.append(config.method.model_dump(mode="json") | {"max_length": config.max_length})
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def start_of(prepared: Prepared, lm: FrozenLM) -> Start:
    """Where the virtual tokens start, as token ids."""
    method, splits = prepared.config.method, prepared.splits
    text = method.init_text or start_text(splits.train, prepared.template)
    labels = classes(splits)
    kv = method.name.startswith("prefix")
    return Start(
        n_tokens=method.n_tokens,
        init=method.init,
        text=tuple(lm.encode(text)),
        labels=tuple(tuple(target_ids(label, prepared.template, lm.tokenizer)) for label in labels),
        lead=tuple(bos_ids(lm.tokenizer)) if kv else (),
        frozen_tokens=method.frozen_tokens if kv else 0,
        hidden=method.hidden,
        sites=tuple(site.strip() for site in method.sites.split(",")) if method.sites else (),
        seed=prepared.config.train.seed,
    )


def classes(splits: Splits) -> tuple[str, ...]:
    """The labels of a classification task, sorted; empty for other tasks."""
    if splits.train[0].kind != "label":
        return ()
    return tuple(sorted({str(record.target) for record in splits.train}))


def instruction_for(labels: Sequence[str]) -> str:
    """An instruction made from the class labels."""
    return f"Classify the text. Answer with one of: {', '.join(labels)}."


def start_text(records: Sequence[Record], template: Template) -> str:
    """A text to start from when the user gives none: the labels, or the first training rows with their answers."""
    if records[0].kind == "label":
        labels = sorted({str(record.target) for record in records})
        return instruction_for(labels)
    rows = records[:INIT_ROWS]
    if rows[0].messages:
        return "\n\n".join(message.content for row in rows for message in row.messages)
    return "\n\n".join(worked_example(template, row) for row in rows)


def curves(metrics: Path) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(step, loss) of training and validation from a metrics file."""
    events = read(metrics)
    train_loss = [(e["step"], e["loss"]) for e in events if e["event"] == "step"]
    return train_loss, [(e["step"], e["validation_loss"]) for e in events if e["event"] == "validation"]


def _card(prepared: Prepared, lm: FrozenLM, layout: Layout, result: Result) -> Card:
    config, splits = prepared.config, prepared.splits
    metrics: dict[str, Any] = {
        "steps": result.step,
        "seconds": round(result.seconds, 1),
        "stopped": result.stopped,
    }
    if result.validation_loss is not None:
        metrics["validation_loss"] = result.validation_loss
    return Card(
        name=prepared.folder.name,
        form=result.prompt.form,
        n_tokens=result.prompt.n_tokens,
        sha256="0" * 64,  # store.save fills it in
        base=lm.geometry.to_dict(),
        layout=layout,
        template=prepared.template.to_dict(),
        labels=classes(splits),
        method=config.method.model_dump(mode="json"),
        recipe=config.train.model_dump(mode="json"),
        data={
            "train_sha256": digest(splits.train),
            "train_rows": len(prepared.train),
            "validation_rows": len(prepared.validation),
        },
        metrics=metrics,
        versions={name: version(name) for name in ("softprompt", "torch", "transformers")}
        | {"python": platform.python_version()},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
