"""The constant text around the virtual tokens: prefix and row together are the text as one would write it."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.data.records import Message, Record
from softprompt.data.spans import prompt_ids
from softprompt.data.template import VIRTUAL, Template
from softprompt.errors import DataError
from softprompt.formatting.context import end_ids
from softprompt.formatting.formatted_prompt import (
    FormattedPrompt,
    from_card,
    layout_for,
    layout_ids,
    no_prompt,
    opening_ids,
)
from softprompt.formatting.text_prompt import text_prompt
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.card import Card, Layout
from tests.support.cases import random_prompt
from tests.support.rows import one, records
from tests.support.tiny import CHATML, SPECIAL, tiny_lm, tiny_model, tiny_tokenizer

PLAIN, CHAT = Template("text", "Review: {text}\nSentiment:"), Template("chat", "Review: {text}")
ROW = one({"text": "I loved it.", "label": "positive"})
SHOTS = records({"text": "Great {fun}", "label": "positive"}, {"text": "Dull", "label": "negative"})
USER, ASSISTANT, SYSTEM = (f"<|im_start|>{role}\n" for role in ("user", "assistant", "system"))
END = "<|im_end|>\n"


def ids_of(lm: FrozenLM, formatted: FormattedPrompt, row: Record = ROW) -> tuple[list[int], list[int]]:
    """Token ids of the prefix (which has no prompt) and of the row."""
    prefix = formatted.prefix(lm)
    return [*prefix.lead, *prefix.follow], prompt_ids(row, formatted.template, lm.tokenizer)


def written(lm: FrozenLM, formatted: FormattedPrompt) -> str:
    before, body = ids_of(lm, formatted)
    text = lm.tokenizer.decode([*before, *body])
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("bos", [False, True])
def test_layout(bos: bool) -> None:
    """BOS before everything but a KV prompt, which brings its own."""
    lm = tiny_lm("llama", bos=bos)
    for form in ("embedding", None):
        assert layout_for(lm, PLAIN, form) == Layout(bos=bos, follow="Review:")
    assert layout_for(lm, PLAIN, "kv") == Layout(bos=False, follow="Review:")
    assert layout_for(lm, CHAT, "embedding").follow == f"{USER}Review:"
    lead, follow = layout_ids(lm, layout_for(lm, PLAIN, "embedding"))
    assert lead == ((SPECIAL.index("<s>"),) if bos else ())
    assert follow == tuple(lm.encode("Review:"))


def test_layout_with_lead() -> None:
    lm = tiny_lm("llama", bos=True)
    lead, follow = layout_ids(lm, Layout(bos=True, lead="Hi", follow=""))
    assert lead == (SPECIAL.index("<s>"), *lm.encode("Hi"))
    assert follow == ()


@pytest.mark.parametrize("bos", [False, True])
def test_layout_with_bos_behind_the_virtual_tokens(bos: bool) -> None:
    """As tools have it that put a prompt before everything; nothing where the tokenizer adds no BOS."""
    lm = tiny_lm("llama", bos=bos)
    lead, follow = layout_ids(lm, Layout(lead="Hi", follow="Review:", follow_bos=True))
    assert lead == tuple(lm.encode("Hi"))
    assert follow == (*([SPECIAL.index("<s>")] if bos else []), *lm.encode("Review:"))


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    ("template", "text"),
    [
        (PLAIN, "Review: I loved it.\nSentiment:"),
        (CHAT, f"{USER}Review: I loved it.{END}{ASSISTANT}"),
        (Template("chat", "{text}", "Be {brief}."), f"{SYSTEM}Be {{brief}}.{END}{USER}I loved it.{END}{ASSISTANT}"),
        (Template("text", "{text}"), "I loved it."),
    ],
)
def test_the_base_model_reads_the_template(template: Template, text: str, bos: bool) -> None:
    lm = tiny_lm("llama", bos=bos)
    assert written(lm, no_prompt(lm, template)) == ("<s>" if bos else "") + text


def test_a_text_prompt_is_a_longer_opening() -> None:
    """Braces in instruction and examples are text, not fields."""
    lm = tiny_lm("llama", bos=True)
    formatted = text_prompt(lm, PLAIN, "Answer in {one} word. ", SHOTS)
    wanted = (
        "<s>Answer in {one} word.\n\nReview: Great {fun}\nSentiment: positive\n\n"
        "Review: Dull\nSentiment: negative\n\nReview: I loved it.\nSentiment:"
    )
    assert written(lm, formatted) == wanted
    before, _ = ids_of(lm, formatted)
    assert str(lm.tokenizer.decode(before)).endswith("negative\n\nReview:"), "all of it is shared by the rows"
    assert formatted.prompt is None


def test_a_text_prompt_in_chat() -> None:
    """The instruction is the system turn, examples open the user's turn."""
    lm = tiny_lm("llama")
    formatted = text_prompt(lm, CHAT, "Answer in {one} word.", SHOTS[1:])
    wanted = f"{SYSTEM}Answer in {{one}} word.{END}{USER}Review: Dull\nnegative\n\nReview: I loved it.{END}{ASSISTANT}"
    assert written(lm, formatted) == wanted


def test_a_text_prompt_for_conversations() -> None:
    lm = tiny_lm("llama")
    row = one({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]})
    formatted = text_prompt(lm, Template("chat"), "Be brief.", [row])
    before, body = ids_of(lm, formatted, row)
    assert lm.tokenizer.decode([*before, *body]) == f"{SYSTEM}Be brief.{END}{USER}Hi{END}{ASSISTANT}"


@pytest.mark.parametrize("template", [PLAIN, CHAT])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "opt"])
@torch.no_grad()
def test_a_text_prompt_gives_the_logits_of_the_whole_text(family: str, template: Template) -> None:
    """What the model itself says of the text, written out by hand and fed as ids."""
    lm = tiny_lm(family, bos=True)
    formatted = text_prompt(lm, template, "Be brief.", SHOTS)
    before, body = ids_of(lm, formatted)
    text = written(lm, formatted).removeprefix("<s>")
    ids = torch.tensor([[SPECIAL.index("<s>"), *lm.encode(text)]])
    assert ids[0].tolist() == before + body
    wanted = lm.hf_model(input_ids=ids, use_cache=False).logits[0, len(before) :]
    ours = lm.logits(packed_hidden_states(lm, prepare_prefixes(lm, [formatted.prefix(lm)]), [Row(body)]))
    assert_close(ours, wanted, rtol=1e-4, atol=5e-5)


def test_no_instruction_and_no_examples_is_the_base_model() -> None:
    lm = tiny_lm("llama")
    assert text_prompt(lm, PLAIN, " ") == no_prompt(lm, PLAIN)
    assert text_prompt(lm, CHAT, "") == no_prompt(lm, CHAT)


def test_a_loaded_prompt_gets_the_frame_of_its_card() -> None:
    lm = tiny_lm("llama", bos=True)
    prompt, layout = random_prompt(lm, "embedding", 3, 0), Layout(bos=True, lead="x", follow="Review:")
    card = Card(
        name="n", form="embedding", n_tokens=3, sha256="0" * 64, base=lm.geometry.to_dict(),
        layout=layout, template=dict(CHAT.to_dict()),
    )  # fmt: skip
    formatted = from_card(prompt, card)
    assert (formatted.prompt, formatted.template, formatted.layout) == (prompt, CHAT, layout)
    prefix = formatted.prefix(lm)
    assert prefix.prompt is prompt
    assert (prefix.lead, prefix.follow) == layout_ids(lm, layout)


def test_end_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The template's end and those of the model's generation config, one or many or none."""
    lm = tiny_lm("llama")
    own = SPECIAL.index("<|im_end|>")
    for configured, wanted in ((None, [own]), (7, [own, 7]), ([9, 7, own], [own, 7, 9])):
        monkeypatch.setattr(lm.hf_model.generation_config, "eos_token_id", configured)
        assert end_ids(lm, PLAIN) == end_ids(lm, CHAT) == wanted


@pytest.mark.parametrize("refuses", [True, False])
def test_a_model_without_a_system_turn_gets_the_instruction_in_the_users(refuses: bool) -> None:
    """Gemma 2's chat template refuses a system turn; others drop it."""
    tokenizer = tiny_tokenizer()
    system = "{{ raise_exception('System role not supported') }}" if refuses else ""
    tokenizer.chat_template = CHATML.replace(
        "{% for m in messages %}", "{% for m in messages %}{% if m['role'] == 'system' %}" + system + "{% else %}"
    ).replace("{% endfor %}", "{% endif %}{% endfor %}")
    lm = FrozenLM(tiny_model("llama"), tokenizer, "no system turn")
    formatted = text_prompt(lm, CHAT, "Answer in {one} word.", SHOTS[1:])
    wanted = f"{USER}Answer in {{one}} word.\n\nReview: Dull\nnegative\n\nReview: I loved it.{END}{ASSISTANT}"
    assert written(lm, formatted) == wanted
    assert text_prompt(lm, CHAT, "") == no_prompt(lm, CHAT)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("text", ["", "Q: {text}"])
def test_virtual_tokens_in_the_system_turn(bos: bool, text: str) -> None:
    """Lead, words in place of the virtual tokens, follow and row are the conversation as its template writes it."""
    lm = tiny_lm("llama", bos=bos)
    template = Template("chat", text, VIRTUAL)
    turns = (Message("user", "Hi"), Message("assistant", "Yo"), Message("user", "And?"))
    row = ROW if text else Record({}, None, "messages", messages=turns)
    layout = layout_for(lm, template, "embedding")
    words = layout.model_copy(update={"lead": layout.lead + "Be kind."})
    asked = f"{USER}Q: I loved it.{END}" if text else f"{USER}Hi{END}{ASSISTANT}Yo{END}{USER}And?{END}"
    before, body = ids_of(lm, FormattedPrompt(None, template, words), row)
    opening = "<s>" if bos else ""
    assert lm.tokenizer.decode([*before, *body]) == f"{opening}{SYSTEM}Be kind.{END}{asked}{ASSISTANT}"
    assert layout_for(lm, template, "kv") == Layout(bos=False, lead="", follow=layout.follow)
    assert lm.tokenizer.decode(opening_ids(lm, template)) == f"{opening}{SYSTEM}"
    alone = no_prompt(lm, template)
    before, body = ids_of(lm, alone, row)
    assert lm.tokenizer.decode([*before, *body]) == f"{opening}{asked}{ASSISTANT}"


def test_a_conversation_with_a_system_turn_of_its_own_is_refused_where_virtual_tokens_stand_there() -> None:
    lm, template = tiny_lm("llama"), Template("chat", "", VIRTUAL)
    row = Record({}, None, "messages", messages=(Message("system", "Be rude."), Message("user", "Hi")))
    with pytest.raises(DataError, match=r"(?s)brings a system turn.*leave the system turn out"):
        prompt_ids(row, template, lm.tokenizer)
