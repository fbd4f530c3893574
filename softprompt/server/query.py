"""Query strings: checked as bodies are, and described in the OpenAPI document from the same classes."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.requests import Request

from softprompt.server.error_responses import invalid
from softprompt.server.schema import validated

_LABEL = re.compile(r"metadata\[(.+)\]", re.DOTALL)


def _whole(text: object) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError("not a whole number")
    return int(text)


Limit = Annotated[int, BeforeValidator(_whole)]


class QueryFields(BaseModel):
    """The parameters of a route; others are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PageQuery(QueryFields):
    """Of a list: the object that the page begins behind, "" for the first page, and how many to give."""

    after: Annotated[str, Field(max_length=128)] = ""
    limit: Annotated[Limit, Field(ge=1, le=100)] = 20


class FileQuery(PageQuery):
    """Of the list of files."""

    limit: Annotated[Limit, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: Annotated[str, Field(max_length=32)] = ""


class RowQuery(QueryFields):
    """Of a file's rows: how many rows the page skips, and how many to give."""

    after: Annotated[Limit, Field(ge=0)] = 0
    limit: Annotated[Limit, Field(ge=1, le=1_000)] = 100


class JobQuery(PageQuery):
    """Of the list of jobs: `metadata[KEY]=VALUE` wants jobs with these pairs, `metadata=null` those without any."""

    metadata: dict[str, str] = Field(default={}, max_length=16)


class EventQuery(PageQuery):
    """Of a job's events; a stream sends them from the first one, or behind `after`, until the job has ended."""

    stream: Literal["true", "false"] = "false"


_Query = TypeVar("_Query", bound=QueryFields)


def query_of(kind: type[_Query], request: Request) -> _Query:
    """The parameters of a request. Raises ApiError 400 with the name of the invalid one."""
    fields: dict[str, object] = {}
    labels: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        label = _LABEL.fullmatch(name) if "metadata" in kind.model_fields else None
        if (name if label is None else label[1]) in (fields if label is None else labels):
            raise invalid(f"{name[:80]} is given twice.", name[:80])
        if label is not None:
            labels[label[1]] = value
        else:
            fields[name] = value
    if fields.get("metadata") == "null":
        fields["metadata"] = labels
    elif "metadata" in fields:
        raise invalid("metadata is null, or metadata[KEY]=VALUE.", "metadata")
    if labels and "metadata" in fields:
        raise invalid("Give metadata[KEY]=VALUE or metadata=null, one of the two.", "metadata")
    return validated(kind, fields | ({"metadata": labels} if labels else {}))


def query_parameters(kind: type[QueryFields]) -> dict[str, object]:
    """The description of a route's parameters."""
    described: list[dict[str, object]] = []
    for name, schema in kind.model_json_schema()["properties"].items():
        parameter: dict[str, object] = {"name": name, "in": "query", "required": False, "schema": schema}
        described.append(parameter | ({"style": "deepObject", "explode": True} if name == "metadata" else {}))
    return {"parameters": described}
