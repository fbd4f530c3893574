"""Law 6 for encoder–decoders: SEQ_2_SEQ_LM adapters in and out give the logits of PEFT's own forward and `generate`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft as peft_itself
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor

from softprompt.data.template import Template
from softprompt.errors import GeometryError, StoreError
from softprompt.formatting.formatted_prompt import from_card, layout_ids
from softprompt.interchange import peft
from softprompt.interchange.import_card import import_card
from softprompt.interchange.registry import read_foreign
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prefix.seq2seq import Seq2SeqPrefixKV, answer_hidden_states
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card, Layout
from tests.laws.seq2seq import check_close, only
from tests.support.adapters import CONFIGS, peft_answer_logits, peft_answers, saved_adapter
from tests.support.artifacts import contents
from tests.support.cases import random_prompt, text_ids
from tests.support.encoder_decoders import tiny_encoder_decoder
from tests.support.tiny import SEQ2SEQ_CONFIGS, SEQ2SEQ_FAMILIES, tiny_lm, tiny_seq2seq, tiny_tokenizer

TEXTS = [text_ids(n, n) for n in (9, 2, 14)]
ANSWERS = [text_ids(n, 20 + n) for n in (4, 7, 1)]
EMBEDDINGS = ("PROMPT_TUNING", "P_TUNING")
KV = ("PREFIX_TUNING", "CARTRIDGE")
SITES = ("encoder", "decoder", "cross")


@functools.cache
def deep(decoder_layers: int) -> FrozenLM:
    """A T5 whose decoder has this many layers; real ones have an even number."""
    torch.manual_seed(1)
    config: Any = SEQ2SEQ_CONFIGS["t5"]()
    config.num_decoder_layers = decoder_layers
    model = tf.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3)
    return FrozenLM(model, tiny_tokenizer(closing=True), "deep-t5")


def our_logits(lm: FrozenLM, prompt: SoftPrompt, card: Card) -> list[Tensor]:
    """Logits at the tokens of each answer, all rows after the prompt in its card's frame."""
    with torch.no_grad():
        prefixes = prepare_prefixes(lm, [from_card(prompt, card).prefix(lm)])
        assert isinstance(prefixes, Seq2SeqPrefixKV)
        states = answer_hidden_states(lm, prefixes, TEXTS, ANSWERS, [0] * len(TEXTS))
        return list(lm.logits(states).split([len(answer) for answer in ANSWERS]))


def check_rows(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, wanted in zip(ours, theirs, strict=True):
        check_close(mine, wanted)


def drafted(lm: FrozenLM, prompt: SoftPrompt, layout: Layout | None = None) -> Card:
    template = Template("seq2seq", "Row: {text}").to_dict()
    return Card.draft(
        "tone", prompt, lm.geometry, layout=layout or Layout(), template=template, method={"name": "prefix_tuning"}
    )


def exported(lm: FrozenLM, prompt: SoftPrompt, card: Card, folder: Path) -> Path:
    peft.write(
        folder, prompt, card, lm.embed(torch.tensor(layout_ids(lm, card.layout)[0], dtype=torch.long, device=lm.device))
    )
    return folder


@pytest.mark.parametrize("kind", [*EMBEDDINGS, *KV])
@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_imported_adapters(family: str, kind: str, tmp_path: Path) -> None:
    lm = tiny_seq2seq(family)
    folder = saved_adapter(kind, lm, tmp_path / "adapter")
    (found,) = read_foreign(folder, lm.geometry)
    card = import_card(lm, found, "tone")
    assert (card.method["name"], card.n_tokens, card.template["kind"]) == (kind.lower(), 5, "seq2seq")
    check_rows(our_logits(lm, found.prompt, card), peft_answer_logits(lm, folder, TEXTS, ANSWERS))


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_only_the_virtual_tokens_that_peft_uses_are_imported(kind: str, tmp_path: Path) -> None:
    """PEFT saves as many for the decoder, and gives it none."""
    lm = tiny_seq2seq()
    folder = saved_adapter(kind, lm, tmp_path / "two")
    table = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    (found,) = read_foreign(folder, lm.geometry)
    assert len(table) == 10 and torch.equal(found.prompt.tensors()["embeddings"], table[:5])
    (found,) = read_foreign(saved_adapter(kind, lm, tmp_path / "one", num_transformer_submodules=1), lm.geometry)
    assert found.prompt.n_tokens == 5


@pytest.mark.parametrize("pairs", [0, 1, 2, 5])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_layers_share_keys_and_values_as_in_peft(depth: int, pairs: int, tmp_path: Path) -> None:
    """With as many pairs as layers PEFT uses every second one, twice, where their number is even."""
    lm = deep(depth)
    folder = saved_adapter("PREFIX_TUNING", lm, tmp_path / "adapter", num_layers=depth + pairs)
    (found,) = read_foreign(folder, lm.geometry)
    card = import_card(lm, found, "tone")
    check_rows(our_logits(lm, found.prompt, card), peft_answer_logits(lm, folder, TEXTS, ANSWERS))


def test_multitask_prompts_of_the_encoder_alone(tmp_path: Path) -> None:
    lm = tiny_seq2seq()
    folder = saved_adapter("MULTITASK_PROMPT_TUNING", lm, tmp_path / "adapter", num_transformer_submodules=1)
    found = read_foreign(folder, lm.geometry)
    assert len(found) == 3
    for i, one in enumerate(found):
        card = import_card(lm, one, "tone")
        check_rows(our_logits(lm, one.prompt, card), peft_answer_logits(lm, folder, TEXTS, ANSWERS, i))


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_exported_embedding_prompts(family: str, tmp_path: Path) -> None:
    """A lead becomes virtual tokens, the follow is part of the text."""
    lm = tiny_seq2seq(family)
    prompt = random_prompt(lm, "embedding", 5, 7)
    card = drafted(lm, prompt, Layout(lead="ab", follow="Row:"))
    folder = exported(lm, prompt, card, tmp_path / "adapter")
    follow = list(layout_ids(lm, card.layout)[1])
    config: Any = peft_itself.PeftConfig.from_pretrained(str(folder))
    assert (config.task_type, config.num_virtual_tokens) == ("SEQ_2_SEQ_LM", 7)
    theirs = peft_answer_logits(lm, folder, [[*follow, *text] for text in TEXTS], ANSWERS)
    check_rows(our_logits(lm, prompt, card), theirs)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_exported_kv_prompts_of_the_decoder(depth: int, tmp_path: Path) -> None:
    lm = deep(depth)
    prompt = only(lm, random_prompt(lm, "kv", 5, 7), ["decoder"])
    card = drafted(lm, prompt)
    folder = exported(lm, prompt, card, tmp_path / "adapter")
    check_rows(our_logits(lm, prompt, card), peft_answer_logits(lm, folder, TEXTS, ANSWERS))
    (again,) = read_foreign(folder, lm.geometry)
    assert contents(again.prompt) == contents(prompt)


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_peft_generates_what_we_do(form: str, tmp_path: Path) -> None:
    from softprompt.inference.generate import Request, generate
    from softprompt.inference.sampling import Sampling

    lm = deep(2)
    whole = random_prompt(lm, form, 5, 3)
    prompt = whole if form == "embedding" else only(lm, whole, ["decoder"])
    card = drafted(lm, prompt, Layout(follow="Row:"))
    folder = exported(lm, prompt, card, tmp_path / "adapter")
    (answer,) = generate(lm, {"tone": from_card(prompt, card)}, [Request("hello", "tone")], Sampling(max_new_tokens=6))
    ours = list(answer.ids)
    assert ours == peft_answers(lm, folder, lm.encode("Row: hello"), 6)[: len(ours)]


@pytest.mark.parametrize("sites", [("encoder",), ("cross",), ("decoder", "cross"), SITES])
def test_what_peft_cannot_hold_is_refused(sites: Sequence[str], tmp_path: Path) -> None:
    lm = tiny_seq2seq()
    prompt = only(lm, random_prompt(lm, "kv", 5, 7), sites)
    with pytest.raises(GeometryError, match="this prompt has others") as caught:
        exported(lm, prompt, drafted(lm, prompt), tmp_path / "adapter")
    assert "--method.sites decoder" in str(caught.value.hint)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "what"),
    [
        ("PROMPT_TUNING", {"task_type": "CAUSAL_LM"}, "not for an encoder-decoder"),
        ("PREFIX_TUNING", {"task_type": "CAUSAL_LM"}, "not for an encoder-decoder"),
        ("CPT", {"task_type": "CAUSAL_LM"}, "not for an encoder-decoder"),
        ("MULTITASK_PROMPT_TUNING", {}, "in the decoder, too"),
        ("PREFIX_TUNING", {"num_transformer_submodules": 1}, "one cache"),
    ],
)
def test_adapters_that_are_refused(kind: str, changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    lm = tiny_lm() if changes.get("task_type") else tiny_seq2seq()
    folder = saved_adapter(kind, lm, tmp_path / "adapter", **changes)
    with pytest.raises(StoreError) as caught:
        read_foreign(folder, tiny_seq2seq().geometry)
    assert what in caught.value.what


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "CPT"])
def test_an_adapter_of_an_encoder_decoder_is_none_of_a_causal_model(kind: str, tmp_path: Path) -> None:
    folder = saved_adapter(kind, tiny_seq2seq(), tmp_path / "adapter")
    with pytest.raises(StoreError, match="not for a causal language model"):
        read_foreign(folder, tiny_lm().geometry)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
@pytest.mark.parametrize("family", ["bart", "t5gemma", "longt5"])
def test_adapters_of_other_families(family: str, kind: str, tmp_path: Path) -> None:
    """In, with PEFT's own logits, and out again. Positions go on from PEFT's: behind P tokens in the decoder, too."""
    lm = tiny_encoder_decoder(family)
    folder = saved_adapter(kind, lm, tmp_path / "adapter")
    (found,) = read_foreign(folder, lm.geometry)
    card = import_card(lm, found, "tone")
    check_rows(our_logits(lm, found.prompt, card), peft_answer_logits(lm, folder, TEXTS, ANSWERS))
    out = exported(lm, found.prompt, card, tmp_path / "out")
    (again,) = read_foreign(out, lm.geometry)
    assert contents(again.prompt) == contents(found.prompt)


def test_peft_gives_pegasus_an_unscaled_text(tmp_path: Path) -> None:
    """So its embedding prompts mean another text; keys and values of the decoder mean the same."""
    lm = tiny_encoder_decoder("pegasus")
    folder = saved_adapter("PROMPT_TUNING", lm, tmp_path / "adapter")
    (found,) = read_foreign(folder, lm.geometry)
    with pytest.raises(GeometryError, match="PEFT runs this model with another text"):
        import_card(lm, found, "tone")
    folder = saved_adapter("PREFIX_TUNING", lm, tmp_path / "prefix")
    (found,) = read_foreign(folder, lm.geometry)
    card = import_card(lm, found, "tone")
    check_rows(our_logits(lm, found.prompt, card), peft_answer_logits(lm, folder, TEXTS, ANSWERS))


def test_too_few_layers_are_another_model(tmp_path: Path) -> None:
    folder = saved_adapter("PREFIX_TUNING", deep(2), tmp_path / "adapter")
    with pytest.raises(GeometryError, match="does not fit"):
        read_foreign(folder, deep(3).geometry)


def test_a_chat_template_is_for_causal_models(tmp_path: Path) -> None:
    from softprompt.errors import DataError

    lm = tiny_seq2seq()
    (found,) = read_foreign(saved_adapter("PROMPT_TUNING", lm, tmp_path / "adapter"), lm.geometry)
    with pytest.raises(DataError, match="encoder-decoder"):
        import_card(lm, found, "tone", template=Template("chat", "{text}"))


def test_the_readme_ends_every_text_as_the_tokenizer_does(tmp_path: Path) -> None:
    """The code in it, run."""
    lm = tiny_seq2seq()
    prompt = random_prompt(lm, "embedding", 5, 7)
    readme = (exported(lm, prompt, drafted(lm, prompt), tmp_path / "adapter") / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    line = next(line for line in code.splitlines() if line.startswith("batch = "))
    scope = {"tokenizer": lm.tokenizer, "texts": ["ab", "c"]}
    exec(line, scope)
    batch: Any = scope["batch"]
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert ids == [[*lm.encode(text), *lm.closing] for text in ("ab", "c")]
    assert "generate" in code and "chat" not in readme
