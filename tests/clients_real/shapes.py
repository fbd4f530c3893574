"""What structured answers and tools look like in these tests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

HI: Any = [{"role": "user", "content": "Say hello."}]
WHERE = "Is the parcel in Rome or in Oslo?"


class Place(BaseModel):
    """Where a parcel is."""

    model_config = ConfigDict(extra="forbid")  # a small model goes on with fields of its own where a schema lets it

    city: Literal["Rome", "Oslo"]
    days: Literal[1, 2, 3]


PARAMETERS = Place.model_json_schema()
TOOL: Any = {
    "type": "function",
    "function": {"name": "find_parcel", "description": "Find it.", "parameters": PARAMETERS},
}


def is_place(value: object) -> bool:
    """Whether it is a place, or JSON of one."""
    place = Place.model_validate_json(value) if isinstance(value, str) else Place.model_validate(value)
    return place.city in ("Rome", "Oslo")
