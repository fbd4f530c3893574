"""Types of JSON values."""

from __future__ import annotations

from typing import TypeAlias

# A value that was read. `isinstance` narrows it, one level at a time.
JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

# An object that was read, e.g. the body of a request. One that is built here is a `dict[str, object]`.
JSONObject: TypeAlias = dict[str, JSON]
