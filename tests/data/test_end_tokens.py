"""End tokens that stand in the rows already, as files for other trainers have them: learned once, and not compared."""

from __future__ import annotations

import pytest

from softprompt.data.spans import prompt_ids, target_ids
from softprompt.data.targets import end_id, end_texts, without_end
from softprompt.data.template import Template, answered_apart
from softprompt.data.template_notes import row_notes
from softprompt.data.tokenize import tokenize
from softprompt.data.tokenizer import encode
from softprompt.data.turns import compared_references
from tests.support.bytes_tokenizer import END, EOS, BytesTokenizer, llama2
from tests.support.rows import one

CHAT, PLAIN = BytesTokenizer(), Template("text", "{prompt}:")
USER = {"role": "user", "content": "say one"}
CASES = [
    (Template("chat", "{prompt}"), CHAT, "1!<|im_end|>"),
    (Template("chat", "{prompt}"), CHAT, "1!<|im_end|>\n"),
    (Template("chat", "{prompt}"), CHAT, "1!</s>"),  # EOS of the tokenizer, though the template ends otherwise
    (Template("chat", "{prompt}"), CHAT, "1!<|im_end|></s>"),
    (Template("chat", "{prompt}"), BytesTokenizer(llama2), "1! </s>"),
    (PLAIN, CHAT, "1!</s>"),
    (PLAIN, BytesTokenizer(None), "1!</s>"),
    (answered_apart(PLAIN), BytesTokenizer(None), "1!</s>"),
]


@pytest.mark.parametrize(("template", "tokenizer", "written"), CASES)
def test_a_written_end_is_learned_once(template: Template, tokenizer: BytesTokenizer, written: str) -> None:
    row, bare = ({"prompt": "say one", "completion": text} for text in (written, "1!"))
    found, wanted = (tokenize([one(r)], template, tokenizer, max_length=999)[0] for r in (row, bare))
    assert (found.ids, found.mask) == (wanted.ids, wanted.mask)
    learned = [token for token, mask in zip(found.ids, found.mask, strict=True) if mask]
    assert sum(token in (END, EOS) for token in learned) == 1
    assert found.ids[-1] == end_id(template, tokenizer)
    assert target_ids(written, template, tokenizer) == target_ids("1!", template, tokenizer)
    (scored,) = compared_references([one(row)], template, tokenizer)
    assert scored.references == ("1!",)
    (note,) = row_notes([one(row)], template, tokenizer, 1)
    assert note.startswith("1 row end with") and "learned once" in note
    assert not row_notes([one(bare)], template, tokenizer, 1)


def test_in_conversations_too() -> None:
    """Also in earlier turns, which are given."""
    turns = [USER, {"role": "assistant", "content": "1!<|im_end|>"}, USER, {"role": "assistant", "content": "2"}]
    bare = [USER, {"role": "assistant", "content": "1!"}, USER, {"role": "assistant", "content": "2"}]
    found, wanted = (tokenize([one({"messages": t})], Template("chat"), CHAT, max_length=999)[0] for t in (turns, bare))
    assert found.ids == wanted.ids
    asked = [one({"messages": t[:3]}, require_target=False) for t in (turns, bare)]
    assert prompt_ids(asked[0], Template("chat"), CHAT) == prompt_ids(asked[1], Template("chat"), CHAT)
    assert len(row_notes([one({"messages": turns})], Template("chat"), CHAT, 1)) == 1


def test_in_text_that_is_learned_whole() -> None:
    template = Template("text", "{text}")
    found, wanted = (
        tokenize([one({"text": text})], template, CHAT, max_length=999)[0] for text in ("a tale</s></s>", "a tale")
    )
    assert found.ids == wanted.ids == (*encode("a tale", CHAT), EOS)
    assert len(row_notes([one({"text": "a tale</s>"})], template, CHAT, 1)) == 1


def test_only_at_the_end() -> None:
    ends = end_texts(Template("chat", "{prompt}"), CHAT)
    assert ends == ("<|im_end|>", "</s>")
    assert without_end("write <|im_end|> there", ends) == "write <|im_end|> there"
    assert without_end(" spaces stay ", ends) == " spaces stay "
    assert without_end("<s>", ends) == "<s>"
