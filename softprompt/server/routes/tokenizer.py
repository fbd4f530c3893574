"""Routes /tokenize and /detokenize, as vLLM's server has them.

Its /tokenizer_info, which it does not offer by default either, is left out: with it lm-evaluation-harness switches to a
tokenizer that cannot apply chat templates to tasks of log-likelihoods.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Literal, TypeVar

from anyio.to_thread import run_sync
from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from softprompt.server.body import read_object
from softprompt.server.chat_reading import NO_OPTIONS
from softprompt.server.error_responses import invalid
from softprompt.server.openapi import request_body, responses
from softprompt.server.prompt_reader import EncodedPrompt
from softprompt.server.request import TextReader, check_most, conversation, encoding_request
from softprompt.server.schema import Turn, validated
from softprompt.server.service import Service
from softprompt.server.strict import Strict

_T = TypeVar("_T")


class TokenizeRequest(Strict):
    """Body of POST /tokenize: a text, or a conversation up to where the answer begins."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Turn] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None
    add_generation_prompt: Literal[True] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class TokenizeReply(TypedDict):
    """Token ids of a text as the model reads it: the template's words are among them, virtual tokens are not."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeReply(TypedDict):
    """The text of token ids."""

    prompt: str


def add_tokenizer(app: FastAPI, service: Service) -> None:
    """Add the two routes."""

    async def bounded(request: Request, work: Coroutine[object, object, _T]) -> _T:
        """The result of the work, within the limits of requests."""
        with service.rate_limit.request(request.state.caller):
            return await service.interruptions(request.receive).run(work)

    @app.post("/tokenize", responses=responses(TokenizeReply), openapi_extra=request_body(TokenizeRequest))
    async def tokenize(request: Request) -> JSONResponse:
        """Token ids of a text or a conversation."""
        fields = validated(TokenizeRequest, await read_object(request, service.limits))
        text, param = _text(service, fields)
        wanted = encoding_request(fields.model or service.name, text, param, request.state.caller)
        encoded = await bounded(request, service.encode(wanted))
        return JSONResponse(_reply(service, fields, encoded))

    @app.post("/detokenize", responses=responses(DetokenizeReply), openapi_extra=request_body(DetokenizeRequest))
    async def detokenize(request: Request) -> JSONResponse:
        """The text of token ids, special tokens as they are written."""
        fields = validated(DetokenizeRequest, await read_object(request, service.limits))
        check_most(len(fields.tokens), service.limits, "chars", "tokens")
        await service.directory.find(fields.model or service.name, request.state.caller)
        return JSONResponse({"prompt": await bounded(request, run_sync(service.decode, fields.tokens))})


def _text(service: Service, fields: TokenizeRequest) -> tuple[TextReader, str]:
    """The reader of the body's text, and the field it is in. Raises ApiError."""
    prompt, turns = fields.prompt, fields.messages
    if (prompt is None) == (turns is None):
        raise invalid("Give prompt or messages, one of the two.", "prompt")
    if turns is not None:
        return conversation(turns, NO_OPTIONS, None, service.limits), "messages"
    text = prompt or ""
    check_most(len(text), service.limits, "chars", "prompt", " characters")
    return (lambda reader: reader.text(text, "prompt")), "prompt"


def _reply(service: Service, fields: TokenizeRequest, encoded: EncodedPrompt) -> TokenizeReply:
    left_out = encoded.bos if fields.prompt is not None and fields.add_special_tokens is False else 0
    ids = [*encoded.words, *encoded.ids][left_out:]
    strings = service.token_strings(ids) if fields.return_token_strs else None
    return {"count": len(ids), "max_model_len": service.engine.context, "tokens": ids, "token_strs": strings}
