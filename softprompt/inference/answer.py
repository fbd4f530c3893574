"""The generated text of one row."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Answer:
    """The generated text of one row.

    Attributes:
        text: up to the end token or stop string.
        ids: its token ids.
        finish: reason of the end, "stop" or "length".
        end: the token that ended it, which is not part of it; None if another reason did.
    """

    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish: str = ""
    end: int | None = None
