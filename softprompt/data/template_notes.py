"""Notes on how a template reads the rows: sentences for `data check`, `data preview` and `train`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from softprompt.data.default_template import thinking_rows
from softprompt.data.records import Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.targets import end_texts, without_end
from softprompt.data.template import VIRTUAL, Template, thoughts_of
from softprompt.data.tokenizer import Tokenizer

__all__ = ["row_notes"]


def row_notes(records: Sequence[Record], template: Template, tokenizer: Tokenizer, made: int) -> list[str]:
    """Notes on end tokens written in the rows, thoughts, turns that become rows of their own, and system turns.

    Args:
        made: number of rows that `tokenize` makes of the records.
    """
    notes = [*_end_notes(records, template, tokenizer), *_thought_notes(records, template, tokenizer)]
    if made > len(records):
        notes.append(
            f"the chat template writes earlier turns differently: {len(records)} conversations are learned as {made} "
            "rows, one for each turn that does not continue the text before it"
        )
    return [*notes, *_system_notes(records, template)]


def _end_notes(records: Sequence[Record], template: Template, tokenizer: Tokenizer) -> Iterator[str]:
    ends = end_texts(template, tokenizer)
    written = [record for record in records if any(without_end(text, ends) != text for text in _answers(record))]
    if written:
        end = next(end for end in ends for text in _answers(written[0]) if text.rstrip().endswith(end))
        yield f"{_rows(len(written))} end with {end!r} already ({written[0].where} is the first): it is learned once"


def _answers(record: Record) -> list[str]:
    """The texts that are learned."""
    turns = [turn.content for turn in record.messages[record.context :] if turn.role == "assistant"]
    if not shape_of(record).has_answers:
        return [record.fields.get("text", "")]
    return turns or ([record.target] if record.target is not None else [])


def _thought_notes(records: Sequence[Record], template: Template, tokenizer: Tokenizer) -> Iterator[str]:
    written, thinking = thoughts_of(template, tokenizer), thinking_rows(records, template, tokenizer)
    if written is None:
        return
    if thinking:
        yield f"{thinking} of {_rows(len(records))} begin with a thought ({written.tags[0]}), which is learned"
    if 0 < thinking < len(records):
        use = "thinks first, as in most rows" if template.thoughts == "given" else "does not think, as in most rows"
        yield f"the others follow an empty thought; when the soft prompt is used, the model {use}"
    elif not thinking and written.empty:
        yield (
            f"the model's generation prompt opens a thought ({written.tags[0]}) and the rows give none: "
            "each answer follows an empty thought, in training and in use"
        )


def _system_notes(records: Sequence[Record], template: Template) -> Iterator[str]:
    turns = [bool(record.messages) and record.messages[0].role == "system" for record in records]
    if not any(turns):
        return
    if template.system and template.system != VIRTUAL:
        yield "all rows have the same system turn, which is kept with the soft prompt (--system replaces it in use)"
    elif template.system_from == "rows":
        yield "each row has a system turn of its own: a conversation needs one when the soft prompt is used (--system)"
    else:
        yield f"{sum(turns)} of {_rows(len(records))} have a system turn; none is added when the soft prompt is used"


def _rows(count: int) -> str:
    return f"{count} row" + "s" * (count != 1)
