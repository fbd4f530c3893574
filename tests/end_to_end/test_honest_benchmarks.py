"""Dry runs of the comparisons with what users pick instead: every system runs, and its numbers are in the JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from benchmarks import documents, method_comparison, peft_side, prefix_caching, quality, rivals_table, system_prompts
from benchmarks.bm25 import Ranking, sentences
from benchmarks.text_search import DEMONSTRATIONS
from softprompt.models.loading import load_model
from tests.support.rows import labelled, write_jsonl
from tests.support.saved import save_tiny
from tests.support.tiny import tiny_lm

Main = Callable[[], None]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny base and the data of one task."""
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    for i, split in enumerate(("train", "validation", "test")):
        write_jsonl(tmp_path / "data" / "sst2" / f"{split}.jsonl", *labelled(12, 12 * i))
    monkeypatch.setenv("SOFTPROMPT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path))  # which the benchmarks change
    save_tiny(tmp_path / "base")
    return tmp_path


def ran(main: Main, world: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[dict[str, Any]]:
    given = [
        "benchmark",
        *options,
        "--model",
        str(world / "base"),
        "--dtype",
        "float32",
        "--out",
        str(world / "out.json"),
    ]
    monkeypatch.setattr(sys, "argv", given)
    main()
    data = json.loads((world / "out.json").read_text(encoding="utf-8"))
    assert data["machine"]["commit"]
    return list(data["results"])


def test_every_way_of_adapting(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is scored, and its cost stands beside the score; the base model is as before in the end."""
    systems = "base,text-best,text-fit,lora,rslora,lora-r1,ia3,vera,peft:prompt-tuning,lora-tuned,ia3-tuned-full,auto"
    given = ["--tasks", "sst2", "--budget-minutes", "0.005", "--systems", f"{systems},base"]
    results = ran(quality.main, world, monkeypatch, *given)
    found = {result["system"]: result for result in results}
    assert list(found) == systems.split(",")
    for name, result in found.items():
        cost = result["cost"]
        assert 0 <= result["accuracy"] <= 1 and cost["tokens_per_second"] > 0, name
        if not name.startswith(("base", "text")):
            assert cost["disk_bytes"] > 4 * cost["parameters"] > 0, name
        if name in quality.PEFT:
            assert result["loss_gap"] < 1e-4, name
    assert results[-1]["accuracy"] == results[0]["accuracy"]
    numbers = {name: found[name]["cost"]["parameters"] for name in found}
    assert numbers["lora"] == 8 * numbers["lora-r1"] == numbers["rslora"]
    assert numbers["ia3"] == 2 * (16 + 16 + 64)  # a number for each key, value and hidden neuron of two layers
    assert numbers["peft:prompt-tuning"] == 20 * 32
    assert set(found["lora-tuned"]["losses"]) == {"0.0003", "0.001", "0.003"}
    assert found["lora-tuned"]["seconds"] < found["ia3-tuned-full"]["seconds"]
    text = found["text-best"]
    assert text["losses"][text["chosen"]] == min(text["losses"].values()) and text["tried"] <= 4 * len(DEMONSTRATIONS)
    assert found["text-fit"]["cost"]["prefix_tokens"] > 100 and found["text-fit"]["chosen"] != "0 rows"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's
@pytest.mark.parametrize("kind", ["lora", "prompt-tuning"])
def test_the_best_of_three_rates_is_put_back(kind: peft_side.Kind, world: Path) -> None:
    """What is kept has the loss that it was chosen by, and is gone after `undo`."""
    lm = load_model(str(world / "base"), dtype="float32")
    before = lm.digest()
    ids = [tuple(lm.encode(f"row {i} even")) for i in range(8)]
    rows = [peft_side.Example(row, (False,) * (len(row) - 4) + (True,) * 4, "") for row in ids]
    lm.tokenizer.save_pretrained(world / "tokenizer")
    task = peft_side.PeftTask(lm, rows, rows, [1], 4, "even", str(world / "tokenizer"), 4, seed=0)
    trained = peft_side.train_rates(task, kind, 0.1)
    kept = trained.losses[f"{trained.rate:.3g}"]
    assert kept == min(trained.losses.values()) and len(trained.losses) == 3
    assert task.loss(trained.prompt, rows) == pytest.approx(kept, abs=1e-5)
    trained.undo()
    assert lm.digest() == before


def test_an_unknown_system_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="unknown system 'auto-tuned'"):
        ran(quality.main, world, monkeypatch, "--tasks", "sst2", "--systems", "base,auto-tuned")


TEXT = "The tower is in Oslo. It was built by Ada Berg. Visitors pay nine crowns. It has forty steps and a red roof."


@pytest.fixture
def article(world: Path) -> Path:
    """A tiny base with room for an article, and one article with its questions."""
    config = world / "base" / "config.json"
    changed = json.loads(config.read_text(encoding="utf-8")) | {"max_position_embeddings": 1024}
    config.write_text(json.dumps(changed), encoding="utf-8")
    folder = world / "data" / "longdoc_xquad"
    folder.mkdir()
    write_jsonl(folder / "documents.jsonl", {"doc_id": "tower", "title": "Tower", "text": TEXT})
    asked = [("Who built it?", "Ada Berg"), ("What do visitors pay?", "nine crowns"), ("Which roof?", "a red roof")]
    rows = [{"doc_id": "tower", "input": ask, "target": answer, "references": [answer]} for ask, answer in asked]
    write_jsonl(folder / "test.jsonl", *rows)
    return world


def test_documents(article: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every system is there, with the tokens that it was given; another environment computes the same states."""
    given = ["--articles", "1", "--sizes", "8,16", "--inputs", "16", "--steps", "2", "--presses", "none"]
    (result,) = ran(documents.main, article, monkeypatch, *given, "--kvpress", sys.executable)
    report = result["questions"]
    kinds = [f"{kind}{size}" for size in (8, 16) for kind in ("", "first ", "BM25 ")] + ["8 + BM25 8", "16 + BM25 16"]
    assert set(report["soft"]) == {*kinds, "none"}
    assert report["soft"]["none"]["divergence"] == pytest.approx(0, abs=1e-5)
    assert report["soft"]["none"]["gap_recovered"] == pytest.approx(1, abs=1e-3)
    tokens = {name: report["soft"][name]["prefix_tokens"] for name in kinds}
    assert tokens["8 + BM25 8"] == tokens["8"] + 8 and tokens["first 16"] == tokens["BM25 16"]
    assert report["rows"] == 3 and "exact_match" in report["soft"]["BM25 8"]["scores"]


def test_retrieval_takes_the_sentence_that_answers() -> None:
    """The best sentences within the budget, in the order of the text."""
    lm, ranking = tiny_lm("llama"), Ranking(sentences(TEXT))
    assert ranking.text(lm, "Who built it?", 25) == "It was built by Ada Berg."
    assert ranking.text(lm, "Who built it?", 7) == "It was"
    both = ranking.text(lm, "Which visitors pay, and who built it?", 52)
    assert both == "It was built by Ada Berg. Visitors pay nine crowns."


def test_prefix_caching(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts in a cache that holds them are found there, in one that does not hold them most are computed again."""
    results = ran(prefix_caching.main, world, monkeypatch, "--quick", "--counts", "1,9")
    found = {(row["texts"], row["cache"], row["system"]): row for row in results}
    systems = prefix_caching.SYSTEMS
    assert set(found) == {(n, c, s) for n, c in ((1, "holds"), (9, "holds"), (9, "overflows")) for s in systems}
    shares = {case: row["cached_share"] for case, row in found.items()}
    assert shares[9, "holds", "text"] > 0.8 and shares[1, "holds", "text"] > 0.8
    assert shares[9, "overflows", "text"] < 0.6
    assert shares[9, "overflows", "kv prompt"] == shares[9, "holds", "kv prompt"] > 0.3
    sizes = {row["system"]: row["kv_bytes_of_all"] for row in results if row["texts"] == 9}
    assert sizes["text"] == 12 * sizes["kv prompt"] == 12 * sizes["embedding prompt"]
    assert all(row["tokens_per_second"] > 0 and row["tokens_per_second_together"] > 0 for row in results)


def test_a_cache_that_does_not_fit_is_not_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what it needs; the soft prompts of the same texts run in a cache of their own."""
    given = ["--quick", "--counts", "9", "--held", "1", "--memory-gb", "0.0003"]
    results = ran(prefix_caching.main, world, monkeypatch, *given)
    found = {row["system"]: row for row in results if row["cache"] == "holds"}
    assert found["text"]["not_run"].startswith("needs ")
    assert found["kv prompt"]["cached_share"] > 0.3 and found["kv prompt"]["cache_bytes"] < found["text"]["cache_bytes"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's
def test_system_prompts(article: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of the same length and a LoRA stand beside the soft prompt; the LoRA is gone when the next text comes."""
    texts = article / "instructions"
    texts.mkdir()
    (texts / "01-pirate.md").write_text("Speak as a pirate. Fees are 5. End with Arr!", encoding="utf-8")
    (texts / "02-polite.md").write_text("Be polite. Never speak of money. Say please.", encoding="utf-8")
    monkeypatch.setattr(system_prompts, "TEXTS", texts)
    (article / "data" / "banking77").mkdir()
    write_jsonl(article / "data" / "banking77" / "train.jsonl", *({"text": f"q {i}?"} for i in range(24)))
    given = ["--sizes", "8", "--inputs", "16", "--steps", "2", "--lora-rates", "1e-3"]
    first, second = ran(system_prompts.main, article, monkeypatch, *given)
    for result in (first, second):
        report = result["messages"]
        assert set(report["soft"]) == {"8", "first 8", "summary 8", "informative 8", "LoRA at 0.001"}
        assert report["full_text"]["divergence"] == pytest.approx(0, abs=1e-5)
        lora = report["soft"]["LoRA at 0.001"]
        assert lora["steps"] > 0 and set(lora["collateral"]) == {"no text", "another"}
        assert lora["collateral"]["no text"] > 0 < lora["collateral"]["another"]
        assert report["soft"]["first 8"]["prefix_tokens"] == report["soft"]["informative 8"]["prefix_tokens"]
    assert first["text"] == "01-pirate.md"


def test_the_informative_tokens_are_the_surprising_ones() -> None:
    """Those with the lowest probability after all tokens before them, in the order of the text."""
    lm, text = tiny_lm("llama"), "Speak as a pirate."
    ids = torch.tensor([[1, *lm.encode(text)]])
    with torch.no_grad():
        logprobs = lm.hf_model(ids).logits[0, 1:-1].log_softmax(-1)
    taken = logprobs.gather(-1, ids[0, 2:, None])[:, 0].argsort()[:5].sort().values + 1
    assert system_prompts.informative(lm, text, 5, [1]) == "".join(text[i] for i in taken.tolist())


def math_rows(folder: Path) -> Path:
    """Sums with their solutions, as the comparison writes them."""
    sums = [(f"What is {i} + {i}?", f"It is {2 * i}. The answer is: {2 * i}") for i in range(24)]
    for split, pairs in (("train", sums), ("validation", sums[:4])):
        method_comparison.save_rows(folder, split, pairs)
    method_comparison.save_rows(folder, "test", [("What is 4 + 4?", "4 + 4 = 8 #### 8")] * 3)
    return folder


def test_the_method_comparison(article: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its budget in steps is spent by our trainer, and the answers are judged."""
    given = ["train", "--data", str(math_rows(article / "math")), "--steps", "3", "--new-tokens", "8"]
    (result,) = ran(method_comparison.main, article, monkeypatch, *given)
    assert (result["steps"], result["test_rows"]) == (3, 3) and 0 <= result["test_accuracy"] <= 1
    assert result["file_size"] > result["num_trainable_params"] > 0


def test_an_experiment_for_the_harness_of_the_comparison(article: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three folders deep, as its `run.py` wants it; PEFT reads the configuration, and the start has enough tokens."""
    given = [
        "experiment",
        "--data",
        str(math_rows(article / "math")),
        "--steps",
        "30",
        "--model",
        str(article / "base"),
    ]
    monkeypatch.setattr(sys, "argv", ["method_comparison", *given, "--peft", str(article / "clone")])
    method_comparison.main()
    place = article / "clone" / method_comparison.HARNESS / "experiments" / "prefixtuning" / "base-softprompt"
    config = peft.PeftConfig.from_pretrained(str(place))
    chosen = json.loads((place / "training_params.json").read_text(encoding="utf-8"))
    assert isinstance(config, peft.PrefixTuningConfig)
    assert set(chosen) == {"model_id", "optimizer_kwargs", "init_kv_cache_prefix"}
    start = chosen["init_kv_cache_prefix"]
    assert len(tiny_lm("llama").encode(start)) >= config.num_virtual_tokens > 0
    assert start.startswith("Question: What is") and chosen["optimizer_kwargs"]["lr"] > 0


@pytest.mark.parametrize(
    ("answer", "solution", "right"),
    [
        ("So it is 16. The answer is: 16.", "#### 16", True),
        ("#### 20/35", "The answer is: 4/7", True),
        ("The answer is 5. No: the answer is 6. The final answer is 7", "#### 7", True),
        ("The answer is: 50%\n\nQuestion: more", "#### 50", True),
        ("The answer is: 1.50", "#### 1.5", True),
        ("The answer is: x + 1", "The answer is: x + 1", True),
        ("It is 16", "#### 16", False),
        ("The answer is: 17", "#### 16", False),
        ("no", "none", False),
    ],
)
def test_the_number_after_the_last_the_answer_is(answer: str, solution: str, right: bool) -> None:
    assert method_comparison.is_right(answer, solution) is right


def test_rows_too_long_for_the_comparison_are_left_out(tmp_path: Path) -> None:
    """Of the training rows alone: it judges all test rows."""
    pairs = [("q", "a" * 1298), ("q", "a" * 1299)]
    for split, kept in (("train", 1), ("test", 2)):
        method_comparison.save_rows(tmp_path, split, pairs)
        assert len((tmp_path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()) == kept


def test_the_page_of_the_comparisons() -> None:
    """Means over texts with their range; what was not measured is an empty cell, and what was not run says why."""
    about = {"model": "m", "dtype": "torch.float32", "machine": {"gpu": None, "threads": 1, "cpu": "c"}}
    soft = {"recovered": 0.8, "gap_recovered": 0.7, "scores": {"f1": 0.5}}
    lora = {"recovered": 0.9, "gap_recovered": 0.6, "collateral": {"another": 0.25, "no text": 0.5}}
    words = soft | {"recovered": 0.5}
    reports = [
        {"rows": 3, "soft": {"32": soft, "BM25 8": words, "8 + BM25 8": words}},
        {"rows": 4, "soft": {"32": soft | {"recovered": 0.6}, "LoRA at 0.001": lora}},
    ]
    documents = {**about, "minutes": "4.0", "results": [{"questions": report} for report in reports]}
    case = {"texts": 9, "cache": "holds", "system": "text", "kv_bytes_of_all": 2_000_000}
    first = {"median": 0.25, "mean": 0.5}
    speeds = {"tokens_per_second": 8.0, "tokens_per_second_together": 16.0, "cached_share": 0.9}
    cases = [case | {"first_token": first} | speeds, case | {"not_run": "needs 5 bytes"}]
    text = rivals_table.page([("d.json", documents)], [], [("p.json", {**about, "results": cases})])
    assert "m, float32, 1 core of c. Soft prompts of all sizes are trained together, 4.0 minutes after" in text
    assert "| system | 8 tokens | 32 tokens | no size |" in text and "2 texts, 7 rows." in text
    assert "| soft prompt |  | 0.70 (0.60 to 0.80) |  |" in text
    assert "| BM25 passages | 0.50 |  |  |" in text
    assert "| soft prompt, and as many tokens of BM25 passages more | 0.50 |  |  |" in text
    assert "| LoRA at 0.001 |  |  | 0.90 |" in text and "| LoRA at 0.001 | 0.25 |" in text
    assert "| 9 | holds | text | 0.250 | 0.500 | 90% | 8.0 | 16.0 | 2 |" in text
    assert "| 9 | holds | text | not run: needs 5 bytes |  |  |  |  | 2 |" in text


def test_the_page_is_what_the_results_say() -> None:
    """Every number of docs/rivals.md comes from a committed file; without results there is no page."""
    found = [rivals_table.load(kind) for kind in ("documents", "system_prompts", "prefix_caching")]
    assert rivals_table.PAGE.exists() == any(found)
    if any(found):
        assert rivals_table.PAGE.read_text(encoding="utf-8") == rivals_table.page(*found)
