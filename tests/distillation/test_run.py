"""A text into virtual tokens on a tiny model: the student comes nearer to the teacher, and what is left is true."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt.compaction.attention_matching import AttentionTargets
from softprompt.compaction.selection import SelectionInput, lowest_loss
from softprompt.data.records import Message
from softprompt.data.targets import end_id
from softprompt.data.template import VIRTUAL
from softprompt.data.tokenizer import render_chat
from softprompt.distillation import build, dataset, initialization, prepare
from softprompt.distillation import run as run_module
from softprompt.distillation.config import DistillConfig
from softprompt.distillation.prepare import prepare_distillation
from softprompt.distillation.run import DistillationResult, distill
from softprompt.distillation.teacher import Teacher
from softprompt.errors import CheckpointError, ConfigError, DataError, StoreError, UnsupportedModelError
from softprompt.formatting.formatted_prompt import from_card, layout_for, layout_ids
from softprompt.formatting.inputs import chat_input_ids
from softprompt.inference.generate import Request, generate
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model, load_tokenizer
from softprompt.objectives.chunked import cross_entropies
from softprompt.objectives.next_token import learned_tokens, supervised, token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts import store
from softprompt.settings import resolve_settings
from softprompt.training.events import Event
from softprompt.training.starts import find_start
from tests.cli.conftest import saved_model
from tests.support.rows import write_jsonl

TEXT = "Speak as a pirate. Fees are 5. End with Arr!"
SMALL = {
    "study.queries": 24,
    "study.held_out": 6,
    "study.query_tokens": 8,
    "study.answer_tokens": 6,
    "method.n_tokens": 16,
    "train.steps": 12,
    "train.batch_size": 4,
    "train.eval_rows": 4,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("models") / "base", "llama")


@pytest.fixture
def place(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the text and rows, and the prompts in it."""
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    (tmp_path / "policy.md").write_text(TEXT, encoding="utf-8")
    write_jsonl(tmp_path / "rows.jsonl", *({"prompt": f"q {i}?", "completion": f"a {i}"} for i in range(24)))
    return tmp_path


def settings(base: Path, place: Path, **changes: Any) -> DistillConfig:
    flags = SMALL | {"model": str(base), "name": "policy", "text": str(place / "policy.md")}
    flags |= {"data": str(place / "rows.jsonl")}
    return resolve_settings(DistillConfig, flags | {name.replace("__", "."): value for name, value in changes.items()})


def run(base: Path, place: Path, *, resume: bool = False, **changes: Any) -> DistillationResult:
    return distill(
        prepare_distillation(settings(base, place, **changes), resume=resume),
        load_model(str(base), dtype="float32"),
        resume=resume,
    )


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning"])
def test_the_student_comes_nearer(base: Path, place: Path, method: str) -> None:
    found = run(base, place, method__name=method, train__steps=80, train__lr=0.05 if method[:6] == "prefix" else 0.3)
    (folder, card), measured = found.saved[0], found.fidelity
    assert measured is not None
    assert measured.full_text.divergence < 1e-6 and measured.full_text.agreement == 1
    assert measured.no_text.divergence > 0.01
    assert measured.recovered("16") > (
        0.5 if method == "prefix-tuning" else 0.1
    )  # a random model's embeddings say little
    assert measured.rows == 6 and measured.tokens == len(TEXT)
    assert measured.soft["16"].prefix_tokens < measured.full_text.prefix_tokens
    assert measured.soft["16"].kv_bytes * measured.full_text.prefix_tokens == (
        measured.full_text.kv_bytes * measured.soft["16"].prefix_tokens
    )
    assert set(measured.full_text.scores) >= {"exact_match", "f1"}
    assert card.template["system"] == VIRTUAL
    assert card.metrics["recovered"] == measured.recovered("16")
    assert card.data["text_sha256"] and TEXT not in (folder / "card.json").read_text()
    assert {path.name for path in folder.iterdir()} >= {"card.json", "prompt.safetensors", "curve.png", "fidelity.png"}


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning"])
def test_it_stands_in_the_system_turn_of_a_conversation(base: Path, place: Path, method: str) -> None:
    """Prefix and turns are the conversation as the chat template writes it; the virtual tokens are the text's."""
    size = len(f"<|im_start|>system\n{TEXT}") - 11 if method == "prefix-tuning" else len(TEXT)  # a control token is one
    flags = {"method__name": method, "method__n_tokens": size, "train__steps": 1, "train__lr": 1e-30}
    folder = run(base, place, **flags).saved[0][0]  # a prompt that is the whole text
    lm = load_model(str(base), dtype="float32")
    formatted = from_card(*store.load(folder, lm.geometry))
    turns = [Message("user", "Hi"), Message("assistant", "Yo"), Message("user", "And?")]
    written = render_chat([Message("system", TEXT), *turns], lm.tokenizer, add_generation_prompt=True)
    with torch.no_grad():
        rows = [Row(chat_input_ids(turns, formatted, lm.tokenizer))]
        ours = packed_hidden_states(lm, prepare_prefixes(lm, [formatted.prefix(lm)]), rows)[-1]
        plain = packed_hidden_states(lm, prepare_prefixes(lm, [Prefix()]), [Row(lm.encode(written))])[-1]
    assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    (found,) = generate(lm, {"policy": formatted}, [Request("Hi", "policy")], Sampling(4))
    assert found.ids


def test_self_study_makes_inputs_of_its_own(base: Path, place: Path) -> None:
    (place / "policy.md").write_text("Be kind.", encoding="utf-8")
    seen: list[Event] = []
    prepared = prepare_distillation(settings(base, place, data="null", study__queries=16, study__held_out=4))
    found = distill(prepared, load_model(str(base), dtype="float32"), report=seen.append)
    assert found.fidelity is not None
    kinds = [event.kind for event in seen]
    assert kinds.index("study") < kinds.index("answers") < kinds.index("start")
    batches = [json.loads(path.read_text()) for path in sorted(prepared.study_cache.glob("inputs-*.json"))]
    texts = [one["text"] for batch in batches for one in batch]
    assert len(texts) == len(set(texts)) <= 16


def test_details_are_answered_by_the_text(base: Path, place: Path) -> None:
    """The teacher writes no answer, and has soft labels for every token of the text's."""
    text = "Ann Lee opened the old bank in 1932 by the sea."
    (place / "policy.md").write_text(text, encoding="utf-8")
    prepared = prepare_distillation(settings(base, place, data="null", study__queries=12, study__cloze=1))
    lm = load_model(str(base), dtype="float32")
    teacher = Teacher(lm, prepared.chunks, prepared.template)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "answers", lambda *args: pytest.fail("the teacher was asked to answer"))
        parts = build.build_dataset(prepared, teacher, lambda event: None)
    found = [*parts.train, *parts.validation, *parts.held_out]
    assert len(found) >= 6 and {one.record.where.partition(":")[0] for one in found} >= {"cloze", "continuation"}
    for one in found:
        assert str(lm.tokenizer.decode(list(one.answer), skip_special_tokens=True)) in text
        assert one.answer[-1] == end_id(prepared.template, lm.tokenizer)
        assert one.soft_labels is not None and len(one.soft_labels.ids) == len(one.answer)


def test_a_document_has_more_details_than_a_text(base: Path, place: Path) -> None:
    text = prepare_distillation(settings(base, place))
    document = prepare_distillation(settings(base, place, text="null", document=str(place / "policy.md")))
    chosen = prepare_distillation(settings(base, place, study__cloze=0.1))
    assert [build.cloze_share(one) for one in (text, document, chosen)] == [0.25, 0.875, 0.1]


def test_a_study_of_an_earlier_release_is_continued(base: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its share of details was another one; without it, a new study would be made of the same text."""
    changes = {"text": "null", "data": "null", "document": str(place / "policy.md")}
    lm = load_model(str(base), dtype="float32")

    def studied() -> list[str]:
        prepared = prepare_distillation(settings(base, place, **changes))
        splits = build.build_dataset(prepared, Teacher(lm, prepared.chunks, prepared.template), lambda event: None)
        return [example.record.where for example in splits.train]

    with monkeypatch.context() as patch:
        patch.setattr(build, "DOCUMENT_CLOZE_SHARE", build.EARLIER_DOCUMENT_CLOZE_SHARE)
        earlier = studied()
    monkeypatch.setattr(build, "generate_queries", lambda *given, **named: iter(()))
    assert studied() == earlier


@pytest.mark.parametrize(("context", "longest"), [(2048, 1024), (16384, 4096)])
def test_a_document_is_read_whole_where_it_fits(
    context: int, longest: int, base: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half of the context, at most 4096 tokens; and in the chunks that the user wants."""
    monkeypatch.setattr(prepare, "context_length", lambda *given, **named: context)
    changes = {"text": "null", "data": "null", "document": str(place / "long.md")}

    def sizes(text: str, **study: int) -> list[int]:
        (place / "long.md").write_text(text, encoding="utf-8")
        prepared = prepare_distillation(settings(base, place, **changes, **study))
        return [len(load_tokenizer(str(base)).encode(chunk, add_special_tokens=False)) for chunk in prepared.chunks]

    text = ". ".join(f"Line {i} of it" for i in range(600))
    (whole,) = sizes(text[: longest - 10])
    assert whole > longest // 2
    assert longest // 2 < max(sizes(text)) <= longest
    assert max(sizes(text, study__chunk_tokens=100)) <= 100


@pytest.mark.parametrize("share", [build.EARLIER_DOCUMENT_CLOZE_SHARE, build.DOCUMENT_CLOZE_SHARE])
def test_a_study_in_shorter_chunks_is_continued(
    share: float, base: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default of an earlier release, of whichever share of details."""
    changes = {"text": "null", "data": "null", "document": str(place / "long.md")}
    (place / "long.md").write_text(". ".join(f"Line {i} of it" for i in range(60)), encoding="utf-8")
    lm = load_model(str(base), dtype="float32")
    monkeypatch.setattr(build, "EARLIER_CHUNK_TOKENS", 24)
    earlier = prepare_distillation(settings(base, place, **changes, study__chunk_tokens=24))
    with monkeypatch.context() as patch:
        patch.setattr(build, "DOCUMENT_CLOZE_SHARE", share)
        build.build_dataset(earlier, Teacher(lm, earlier.chunks, earlier.template), lambda event: None)
    now = prepare_distillation(settings(base, place, **changes))
    assert now.chunks != earlier.chunks
    begun = build.as_begun(now, lm)
    assert begun.chunks == earlier.chunks and begun.settings.study.chunk_tokens == 24
    chosen = prepare_distillation(settings(base, place, **changes, study__chunk_tokens=48))
    assert build.as_begun(chosen, lm) is chosen
    monkeypatch.setattr(build, "generate_queries", lambda *given, **named: iter(()))
    assert build.cached_dataset(begun, Teacher(lm, begun.chunks, begun.template)).train


def test_an_embedding_prompt_starts_from_the_nearest(base: Path, place: Path) -> None:
    """Of several real texts in its place the one that is the teacher's own."""
    prepared, lm = (
        prepare_distillation(settings(base, place, method__name="prompt-tuning")),
        load_model(str(base), dtype="float32"),
    )
    parts = build.build_dataset(prepared, Teacher(lm, prepared.chunks, prepared.template), lambda event: None)
    own = tuple(lm.encode(TEXT))
    starts = [own[:8], own, tuple(reversed(own))]
    between = layout_ids(lm, layout_for(lm, prepared.template, "embedding"))
    assert lowest_loss(lm, starts, between, initialization.to_examples(parts.validation, prepared, lm)) == own


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning"])
def test_training_starts_from_a_fitted_prompt(
    method: str, base: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each size, nearer to the teacher on messages that it was not fitted on; unfitted where a model's attention
    cannot be listened to, and from the text's own beginning where its keys cannot be moved."""
    (place / "long.md").write_text(TEXT * 3, encoding="utf-8")
    prepared = prepare_distillation(
        settings(base, place, method__name=method, sizes=(4, 8), text=str(place / "long.md"))
    )
    lm = load_model(str(base), dtype="float32")
    parts = build.build_dataset(prepared, Teacher(lm, prepared.chunks, prepared.template), lambda event: None)
    ids, told = tuple(lm.encode(prepared.text)), list[float]()
    fitted = initialization.compacted_starts(prepared, lm, ids, parts, told.append)
    form = "kv" if method == "prefix-tuning" else "embedding"
    assert told == sorted(told) and told[-1] == 1 and len(told) == 2 * initialization.DEFAULT_FIT_STEPS[form]

    def deaf(*args: object) -> None:
        raise UnsupportedModelError("not this model")

    monkeypatch.setattr(initialization, "collect_targets", deaf)
    chosen = initialization.compacted_starts(prepared, lm, ids, parts)
    lead, follow = layout_ids(lm, layout_for(lm, prepared.template, form))
    rows = initialization.to_examples(parts.held_out, prepared, lm)
    for size in (4, 8):
        before, after = (
            token_losses(lm, prepare_prefixes(lm, [Prefix(found[size], lead, follow)]), rows).mean()
            for found in (chosen, fitted)
        )
        assert fitted[size].n_tokens == size and after < 0.95 * before
    monkeypatch.setattr(initialization, "selected_prompt", deaf)
    assert initialization.compacted_starts(prepared, lm, ids, parts) == {}


def test_a_start_alone_is_trained_later(base: Path, place: Path) -> None:
    """Its few queries are not taken for a whole study."""
    changes: dict[str, Any] = {"text": "null", "data": "null", "document": str(place / "policy.md")}
    lm = load_model(str(base), dtype="float32")
    for steps in (0, 2, 0):
        config = settings(base, place, **changes, method__name="prefix-tuning", train__steps=steps, fit_steps=2)
        found = distill(prepare_distillation(config, overwrite=True), lm, overwrite=True)
        assert [result.step for result in found.results.values()] == [steps]


def test_a_repetition_that_cannot_be_had_is_refused(base: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"(?s)only keys and values.*--method prefix-tuning"):
        prepare_distillation(settings(base, place, repeat=True, method__name="prompt-tuning"))
    with pytest.raises(ConfigError, match=r"(?s)only selected tokens.*--repeat out"):
        prepare_distillation(settings(base, place, repeat=True, method__name="prefix-tuning", method__init="text"))
    monkeypatch.setattr(initialization, "_repeated_starts", lambda *given: {})
    with pytest.raises(ConfigError, match=r"(?s)cannot repeat the text.*--no-repeat"):
        run(base, place, repeat=True, method__name="prefix-tuning")


@pytest.mark.parametrize(
    ("changes", "repeats"),
    [
        ({"document": True}, True),
        ({"document": True, "repeat": False}, False),
        ({"document": True, "method__name": "prompt-tuning"}, False),
        ({}, False),
        ({"repeat": True}, True),
    ],
)
def test_a_document_starts_fitted_to_its_repetition(
    changes: dict[str, Any], repeats: bool, base: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its targets are of rows that hold the whole text, and of no answer."""
    seen, real = list[str](), initialization.collect_targets

    def targets(lm: FrozenLM, inputs: Sequence[SelectionInput]) -> AttentionTargets:
        seen.extend(str(lm.tokenizer.decode(list(row.ids))) for text in inputs for row in text.rows)
        return real(lm, inputs)

    monkeypatch.setattr(initialization, "collect_targets", targets)
    if changes.pop("document", False):
        changes |= {"text": "null", "document": str(place / "policy.md")}
    name = changes.pop("method__name", "prefix-tuning")
    run(base, place, **changes, method__name=name, fit_steps=2, method__n_tokens=8)
    assert [("Repeat the text." in row, TEXT in row) for row in seen if repeats] == [(True, True)] * repeats
    assert repeats or (seen and not any("Repeat the text." in row for row in seen))


def test_a_text_that_leaves_no_room_to_repeat_it_is_fitted_to_answers(base: Path, place: Path) -> None:
    prepared = prepare_distillation(settings(base, place, repeat=True, method__name="prefix-tuning"))
    lm = load_model(str(base), dtype="float32")
    room = lm.geometry.max_positions
    assert initialization._longest_part(lm, "a" * 10) > 64 and initialization._longest_part(lm, "a" * (room - 120)) < 64
    long = replace(prepared, chunks=("a" * (room - 120),))
    assert initialization._repeated_starts(long, lm, [8], lambda share: None) == {}


def test_the_start_alone(base: Path, place: Path) -> None:
    """No step: few queries, all of them held out; the prompt is the fitted one, and better than none."""
    changes: dict[str, Any] = {"text": "null", "data": "null", "document": str(place / "policy.md")}
    found = run(base, place, **changes, method__name="prefix-tuning", train__steps=0, method__n_tokens=24, fit_steps=60)
    ((_, card),) = found.saved
    assert found.fidelity is not None and 0 < found.fidelity.rows <= SMALL["study.held_out"]
    assert [result.step for result in found.results.values()] == [0]
    assert found.fidelity.recovered(str(card.n_tokens)) > 0.3


def test_the_start_is_fitted_for_as_long_as_asked(base: Path, place: Path) -> None:
    lm, told = load_model(str(base), dtype="float32"), dict[int, list[float]]()
    found = {}
    for steps in (0, 7):
        prepared = prepare_distillation(settings(base, place, fit_steps=steps))
        parts = build.build_dataset(prepared, Teacher(lm, prepared.chunks, prepared.template), lambda event: None)
        told[steps] = []
        (found[steps],) = initialization.compacted_starts(
            prepared, lm, tuple(lm.encode(prepared.text)), parts, told[steps].append
        ).values()
    assert told[0] == [] and len(told[7]) == 7
    unfitted, fitted = found[0].tensors(), found[7].tensors()
    assert any(not torch.equal(unfitted[name], fitted[name]) for name in fitted)


def test_another_size_begins_with_training(base: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study cache of the first run is read again."""
    run(base, place)
    monkeypatch.setattr(dataset, "_teacher_answers", lambda *args: pytest.fail("the teacher was asked again"))
    prepared = prepare_distillation(settings(base, place, method__n_tokens=8), overwrite=True)
    again = distill(prepared, load_model(str(base), dtype="float32"), overwrite=True)
    assert again.saved[0][1].n_tokens == 8


def test_several_sizes_learn_together_what_they_learn_alone(base: Path, place: Path) -> None:
    both = run(base, place, name="both", sizes="8,16")
    alone = run(base, place, name="alone", method__n_tokens=8)
    assert [folder.name for folder, _ in both.saved] == ["both.8", "both.16"]
    lm = load_model(str(base), dtype="float32")
    one, _ = store.load(both.saved[0][0], lm.geometry)
    other, _ = store.load(alone.saved[0][0], lm.geometry)
    for kv, same in zip(one.layers, other.layers, strict=True):  # type: ignore[union-attr]
        assert kv is not None and same is not None
        assert_close(kv[0], same[0], rtol=2e-4, atol=2e-4)
    assert both.fidelity is not None and list(both.fidelity.soft) == ["8", "16"]
    for size, (folder, card) in zip((8, 16), both.saved, strict=True):
        start = find_start(folder, card)
        assert start is not None and start.n_tokens == size


@pytest.mark.parametrize("method", ["prefix-tuning", "residual"])
def test_a_stopped_run_goes_on_to_the_same_prompt(
    method: str, base: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without fitting a start again that the checkpoint replaces."""
    lm = load_model(str(base), dtype="float32")
    whole = run(base, place, name="whole", method__name=method)

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 5:
            signal.raise_signal(signal.SIGINT)

    first = distill(prepare_distillation(settings(base, place, method__name=method)), lm, report=stop)
    assert first.saved == () and first.stopped == "SIGINT"
    with pytest.raises(StoreError, match=r"--resume to continue"):
        prepare_distillation(settings(base, place))
    monkeypatch.setattr(run_module, "compacted_starts", lambda *args: pytest.fail("it was fitted again"))
    again = run(base, place, resume=True, method__name=method)
    assert again.saved[0][1].sha256 == whole.saved[0][1].sha256


@pytest.mark.parametrize("phase", ["study", "answers"])
def test_a_run_that_was_stopped_before_training_goes_on(base: Path, place: Path, phase: str) -> None:
    """With --resume and without: what was studied is there, and the prompt is that of a run that was not stopped."""
    (place / "policy.md").write_text("Be kind.", encoding="utf-8")
    lm, flags = load_model(str(base), dtype="float32"), {"data": "null", "study__queries": 40}
    whole = distill(prepare_distillation(settings(base, place, **flags)), lm, report=lambda event: None)
    shutil.rmtree(place / "prompts")

    def stop(event: Event) -> None:
        if event.kind == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(prepare_distillation(settings(base, place, **flags)), lm, report=stop)
    again = distill(prepare_distillation(settings(base, place, **flags), resume=True), lm, resume=True)
    assert again.saved[0][1].sha256 == whole.saved[0][1].sha256


def test_the_soft_labels_are_the_teachers(base: Path, place: Path) -> None:
    """Teacher and student read the same row; a student with the text before it has no loss but the lumped rest's."""
    prepared, lm = prepare_distillation(settings(base, place)), load_model(str(base), dtype="float32")
    teacher = Teacher(lm, prepared.chunks, prepared.template)
    parts = build.build_dataset(prepared, teacher, lambda event: None)
    examples = [one.example(prepared.template, lm.tokenizer) for one in parts.train]
    with torch.no_grad():
        prefix_kv = prepare_prefixes(lm, [teacher.prefix(0)])
        own = token_losses(lm, prefix_kv, examples)
        states, targets = supervised(lm, prefix_kv, examples, None)
        plain = token_losses(lm, prefix_kv, [replace(one, lesson=None) for one in examples])
    assert own.abs().max() < 1e-5
    assert_close(plain, cross_entropies(states, targets, lm.logits))
    assert len(own) == learned_tokens(examples)
    written = lm.tokenizer.decode([*teacher.prefix(0).lead, *teacher.prefix(0).follow, *examples[0].ids])
    assert str(written).startswith(f"<|im_start|>system\n{TEXT}<|im_end|>\n<|im_start|>user\nq ")


def test_soft_labels_of_generated_answers_are_those_of_the_whole_answer(base: Path, place: Path) -> None:
    """Probabilities recorded while generating equal those of reading the answer."""
    changes = {"study__temperature": 1.5, "study__answer_tokens": 60, "study__answer_temperature": 2}
    prepared, lm = prepare_distillation(settings(base, place, **changes)), load_model(str(base), dtype="float32")
    teacher = Teacher(lm, prepared.chunks, prepared.template)
    parts = build.build_dataset(prepared, teacher, lambda event: None)
    assert len({len(one.answer) for one in parts.train}) > 1, "answers end apart"
    examples = [one.example(prepared.template, lm.tokenizer) for one in parts.train]
    for example, labels in zip(parts.train, teacher.soft_labels(0, examples, 20, 1.5), strict=True):
        assert example.soft_labels is not None and len(example.soft_labels.ids) == len(example.answer)
        assert_close(example.soft_labels.logprobs, labels.logprobs, rtol=1e-4, atol=1e-4)
        assert (example.soft_labels.ids == labels.ids).float().mean() > 0.95, "near ties may change places"


def test_a_document_is_read_in_pieces(base: Path, place: Path) -> None:
    text = "\n\n".join(f"Part {i} is about thing {i}." for i in range(8))
    (place / "book.txt").write_text(text, encoding="utf-8")
    changes = {"text": "null", "document": str(place / "book.txt"), "study__chunk_tokens": 60}
    prepared = prepare_distillation(settings(base, place, **changes))
    assert len(prepared.chunks) > 2
    found = distill(prepared, load_model(str(base), dtype="float32"))
    assert found.fidelity is not None and found.saved[0][1].data["chunks"] == len(prepared.chunks)


def test_demonstrations_are_distilled_on_the_other_rows(base: Path, place: Path) -> None:
    changes = {"text": "null", "data": "null", "demonstrations": str(place / "rows.jsonl"), "shots": 3}
    prepared = prepare_distillation(settings(base, place, **changes, study__queries=16))
    assert prepared.text == "Input: q 0?\nOutput: a 0\n\nInput: q 1?\nOutput: a 1\n\nInput: q 2?\nOutput: a 2"
    assert [row.fields["prompt"] for row in prepared.rows][:2] == ["q 3?", "q 4?"] and prepared.template.kind == "text"
    found = distill(prepared, load_model(str(base), dtype="float32"))
    assert found.fidelity is not None and found.fidelity.no_text.scores.keys() == found.fidelity.full_text.scores.keys()


def test_queries_with_columns_of_other_names(base: Path, place: Path) -> None:
    (place / "odd.jsonl").write_text('{"ask": "q 1?", "reply": "a 1"}\n{"ask": "q 2?", "reply": "a 2"}\n')
    data, columns = str(place / "odd.jsonl"), "prompt=ask,completion=reply"
    prepared = prepare_distillation(settings(base, place, data=data, columns=columns))
    assert [row.fields["prompt"] for row in prepared.rows] == ["q 1?", "q 2?"]


def test_what_is_refused(base: Path, place: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)give one source.*--text policy.md"):
        prepare_distillation(settings(base, place, text="null"))
    with pytest.raises(ConfigError, match="give one source"):
        prepare_distillation(settings(base, place, document=str(place / "policy.md")))
    with pytest.raises(ConfigError, match=r"name is not given"):
        prepare_distillation(settings(base, place, name="null"))
    with pytest.raises(ConfigError, match=r"(?s)only selected tokens are fitted.*--init selected"):
        prepare_distillation(settings(base, place, fit_steps=5, method__init="text"))
    with pytest.raises(DataError, match="no such file"):
        prepare_distillation(settings(base, place, text=str(place / "none.md")))
    with pytest.raises(CheckpointError, match="nothing to resume"):
        prepare_distillation(settings(base, place), resume=True)
    (place / "policy.md").write_text("long " * 100, encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)too long for the model's context.*--document"):
        prepare_distillation(settings(base, place))
    (place / "policy.md").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        prepare_distillation(settings(base, place))
    run_folder = place / "prompts" / "policy"
    assert not run_folder.exists()


def test_the_text_is_kept_only_where_asked(base: Path, place: Path) -> None:
    assert run(base, place, keep_text=True).saved[0][1].data["text"] == TEXT


def test_settings() -> None:
    """Other defaults than in training, also where a section is given in part."""
    plain = resolve_settings(DistillConfig, {})
    assert (plain.method.init, plain.method.model_dump()["frozen_tokens"], plain.train.lr) == ("selected", 1, 4e-3)
    part = resolve_settings(DistillConfig, {"method.n_tokens": 8, "train.minutes": 2})
    assert (part.method.init, part.method.n_tokens, part.train.steps) == ("selected", 8, None)
    document = resolve_settings(DistillConfig, {"document": "a.md"})
    assert (document.train.lr, document.train.steps) == (1e-2, plain.train.steps)
    assert resolve_settings(DistillConfig, {"document": "a.md", "train.lr": 3e-3}).train.lr == 3e-3
    with pytest.raises(ConfigError, match=r"did you mean study\.queries"):
        resolve_settings(DistillConfig, {"study.querys": 3})
