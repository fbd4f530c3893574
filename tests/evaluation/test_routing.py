"""A routed mixture at work: each text gets the soft prompt that its router chooses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt.data.spans import prompt_ids
from softprompt.data.splits import load_rows
from softprompt.errors import ConfigError, StoreError, WrongBaseError
from softprompt.evaluation.evaluate import evaluate
from softprompt.evaluation.routing import assign, expanded, routed, routers_of
from softprompt.formatting.formatted_prompt import from_card
from softprompt.inference.generate import Request, generate, load_prompts
from softprompt.inference.sampling import Sampling
from softprompt.prompts import router, store
from softprompt.prompts.router import Router
from softprompt.training.run import fit, prepare
from tests.support.saved import save_tiny, settings
from tests.support.shell import done
from tests.support.tiny import tiny_lm


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained mixture of three prompts called "mix"; the router is then turned so that it uses two of them."""
    folder = tmp_path_factory.mktemp("routing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTPROMPT_HOME", str(folder / "prompts"))
        base = save_tiny(folder / "base")
        config = settings(base, folder, name="mix", method__name="smop", method__n_prompts=3, train__lr=0.1)
        outcome = fit(prepare(config), tiny_lm())
    assert [path.name for path, _ in outcome.saved] == ["mix.1", "mix.2", "mix.3"]
    lm, rows = tiny_lm(), load_rows(str(folder / "data" / "train.jsonl"))
    template = from_card(*store.load(folder / "prompts" / "mix.1")).template
    means = torch.stack([router.pooled(lm, prompt_ids(row, template, lm.tokenizer)) for row in rows])
    apart = torch.linalg.svd(means - means.mean(0))[2][0]
    middle = (means @ apart).median()
    weights = torch.stack([apart, -apart + 2 * middle * means.mean(0) / means.mean(0).norm() ** 2, -9 * means.mean(0)])
    own = router.load_router(folder / "prompts" / "mix")
    router.save_router(folder / "prompts" / "mix", Router(weights, own.names, own.base), overwrite=True)
    return folder


@pytest.fixture(autouse=True)
def home(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(made / "prompts"))


def test_the_names(made: Path) -> None:
    routers = routers_of(["mix", "mix.2"])
    assert routers == {"mix": ("mix.1", "mix.2", "mix.3")}
    assert expanded(["mix.2", "mix"], routers) == ["mix.2", "mix.1", "mix.3"]
    path = f"{made}/prompts/mix"
    assert routers_of([path]) == {path: tuple(f"{path}.{i}" for i in (1, 2, 3))}


def test_every_text_gets_its_prompt() -> None:
    lm, routers = tiny_lm(), routers_of(["mix"])
    formatted_prompts = load_prompts(lm, expanded(["mix"], routers))
    texts = [f"row {i}" for i in range(12)]
    requests = [*(Request(text, "mix") for text in texts), Request("row 3", "mix.3")]
    found = assign(lm, routers, formatted_prompts, requests)
    own = router.load_router(store.locate("mix"))
    template = formatted_prompts["mix.1"].template
    for request, text in zip(found, texts, strict=False):
        ids = lm.encode(f" {text}\nLabel:") if template.text.startswith("Row:") else []
        assert request.name == f"mix.{own.choose(lm, ids) + 1}"
        assert request.text == text
    assert found[-1] == requests[-1], "a prompt asked for by name stays"
    assert len({request.name for request in found[:-1]}) == 2, "the router does choose"
    answers = generate(lm, formatted_prompts, found, Sampling(max_new_tokens=4))
    assert len(answers) == len(requests)


def test_the_scores_are_those_of_the_chosen_answers(made: Path) -> None:
    lm = tiny_lm()
    rows = load_rows(str(made / "data" / "validation.jsonl"))
    formatted_prompts = load_prompts(lm, ["mix.1", "mix.2", "mix.3"])
    each = [evaluate(lm, formatted, rows, labels=("even", "odd")) for formatted in formatted_prompts.values()]
    found = routed(lm, "mix", formatted_prompts["mix.1"], each, rows)
    own = router.load_router(store.locate("mix"))
    chosen = [own.choose(lm, prompt_ids(row, formatted_prompts["mix.1"].template, lm.tokenizer)) for row in rows]
    answers = [each[k].answers[i] for i, k in enumerate(chosen)]
    assert found.answers == tuple(answers)
    hits = sum(a == row.target for a, row in zip(answers, rows, strict=True))
    assert found.scores["accuracy"].value == hits / len(rows)


def test_on_the_command_line(made: Path) -> None:
    environment = {"SOFTPROMPT_HOME": str(made / "prompts")}
    shown = done("generate", "mix", "row 1", "--max-new-tokens", 3, "--model", made / "base", "--json", **environment)
    assert '"prompt": "mix.' in shown.stdout
    table = done("eval", "mix", "--data", made / "data", "--model", made / "base", "--json", **environment).stdout
    assert '"mix": {"rows": 8' in table and '"mix.3"' in table


def test_another_base_and_a_taken_name(made: Path) -> None:
    routers = routers_of(["mix"])
    with pytest.raises(WrongBaseError):
        assign(tiny_lm("qwen2"), routers, {}, [Request("a", "mix")])
    with pytest.raises(StoreError, match="of that name"):
        prepare(settings(made / "base", made, name="mix"))
    two = {"a": str(made / "data"), "b": str(made / "data")}
    config = settings(made / "base", made, name="mix9", method__name="smop", data=two)
    with pytest.raises(ConfigError, match="one --data"):
        prepare(config)
