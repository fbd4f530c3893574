"""Soft prompts by name in vLLM's own server: --middleware softprompt.vllm.middleware.SoftPrompts

A request for the model NAME, or BASE:NAME, becomes one for the base model with the placeholders and the compiled prefix
of NAME. Such a request has the fields that `softprompt serve` knows, and is read as it reads them: the template, the
conversation, the tokens that end an answer. All other requests are vLLM's, but for one thing: on no route does a client
say itself what the connector loads, so `kv_transfer_params` is taken out wherever it stands in a body.

Folder, tokenizer and the base model's names are those that vLLM was started with. Nothing here imports vLLM.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softprompt.data.tokenizer import Tokenizer
from softprompt.errors import DataError, StoreError
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.formatting.inputs import chat_input_ids, text_input_ids
from softprompt.models.loading import load_tokenizer
from softprompt.server.error_responses import ApiError, from_text, invalid
from softprompt.server.schema import ChatRequest, CompletionRequest, parse_request
from softprompt.vllm import published
from softprompt.vllm.prefix_file import PLACEHOLDER_ID
from softprompt.vllm.published import PublishedPrompt

MAX_BODY_BYTES = 64 * 2**20  # of a body; vLLM itself has no limit, and a base model may see images
CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"
MODELS_PATH = "/v1/models"
_TRANSFER_FIELD = "kv_transfer_params"


@final
class SoftPrompts:
    """ASGI middleware around vLLM's app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._shelf: PromptFolder | None = None
        self._texts = CapacityLimiter(1)  # what text a client sends holds up other texts, never the event loop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if scope["method"] == "GET" and path == MODELS_PATH:
                await self._app(scope, receive, _ModelList(send, self._of(scope)).send)
            elif scope["method"] in ("POST", "PUT", "PATCH"):
                body = await self._changed(scope, path, await _body(Request(scope, receive)))
                await self._app(_with_length(scope, len(body)), _once(body, receive), send)
            else:
                await self._app(scope, receive, send)
        except ApiError as problem:
            await JSONResponse(problem.body, problem.status, problem.headers)(scope, receive, send)

    def _of(self, scope: Scope) -> PromptFolder:
        if self._shelf is None:
            self._shelf = PromptFolder.of(scope["app"].state)
        return self._shelf

    async def _changed(self, scope: Scope, path: str, body: bytes) -> bytes:
        """The body as vLLM gets it. Raises ApiError."""
        try:
            found = json.loads(body)  # as vLLM does: what this cannot read, vLLM cannot
        except RecursionError as error:
            raise invalid("The body is nested too deep.", code="invalid_json") from error
        except ValueError:
            return body
        forged = remove_field(found, _TRANSFER_FIELD)
        shelf = self._of(scope)
        if path in (CHAT_PATH, COMPLETION_PATH) and isinstance(found, dict) and isinstance(found.get("model"), str):
            prompt = await run_sync(shelf.find, found["model"])
            if prompt is not None:
                read = read_chat if path == CHAT_PATH else read_completion
                found = await run_sync(read, found, prompt, shelf, limiter=self._texts, abandon_on_cancel=True)
                return json.dumps(found).encode()
        return json.dumps(found).encode() if forged else body


@final
class PromptFolder:
    """The published soft prompts beside the base model that vLLM runs.

    Args:
        served: names of the base model; the first is the one that requests get.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, served: tuple[str, ...]) -> None:
        self.folder, self.tokenizer, self.served = folder, tokenizer, served

    @classmethod
    def of(cls, state: Any) -> PromptFolder:
        """As vLLM's command line has it; `state` is of its app."""
        config = state.vllm_config
        folder = (config.kv_transfer_config.kv_connector_extra_config or {}).get("soft_prompts", "")
        served = state.args.served_model_name or [state.args.model]
        served = [served] if isinstance(served, str) else served
        return cls(Path(folder), load_tokenizer(config.model_config.tokenizer), tuple(served))

    def find(self, model: str) -> PublishedPrompt | None:
        """What a request means that names this model; None: not a soft prompt. Raises ApiError."""
        if model in self.served:
            return None
        name = next((model[len(base) + 1 :] for base in self.served if model.startswith(f"{base}:")), model)
        try:
            return published.find_published(self.folder, name)
        except StoreError as error:
            raise ApiError(500, "This soft prompt cannot be used.", "unusable_soft_prompt") from error


def remove_field(body: Any, field: str) -> bool:
    """Take a field out of all objects in a JSON body; returns whether it was in one."""
    found, left = False, [body]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            found |= field in part
            part.pop(field, None)
            left += part.values()
        elif isinstance(part, list):
            left += part
    return found


def read_chat(body: dict[str, Any], prompt: PublishedPrompt, shelf: PromptFolder) -> dict[str, Any]:
    """A chat request behind a soft prompt, for vLLM. Raises ApiError."""
    request = parse_request(ChatRequest, body)
    messages = [turn.message for turn in request.messages]
    try:
        ids = chat_input_ids(messages, FormattedPrompt(None, prompt.template, published.NO_LAYOUT), shelf.tokenizer)
    except DataError as error:
        raise from_text(error, "messages") from error
    turns = [{"role": message.role, "content": message.content} for message in messages]
    # vLLM takes ids that another server made of the messages, and renders none itself.
    return _behind(body, prompt, shelf) | {
        "messages": turns,
        _TRANSFER_FIELD: {
            "soft_prompt": prompt.id,
            "prompt_token_ids": _whole(ids, prompt, request.repetition_penalty),
        },
    }


def read_completion(body: dict[str, Any], prompt: PublishedPrompt, shelf: PromptFolder) -> dict[str, Any]:
    """A completion request behind a soft prompt, for vLLM. Raises ApiError."""
    request = parse_request(CompletionRequest, body)
    texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if not all(isinstance(text, str) and text for text in texts) or not texts:
        raise invalid("A soft prompt reads texts through its template, not token ids.", "prompt")
    formatted, rows = FormattedPrompt(None, prompt.template, published.NO_LAYOUT), []
    for i, text in enumerate(map(str, texts)):
        try:
            ids = text_input_ids(text, formatted, shelf.tokenizer, f"prompt[{i}]")
        except DataError as error:
            raise from_text(error, "prompt") from error
        rows.append(_whole(ids, prompt, request.repetition_penalty))
    return _behind(body, prompt, shelf) | {"prompt": rows, _TRANSFER_FIELD: {"soft_prompt": prompt.id}}


def _behind(body: dict[str, Any], prompt: PublishedPrompt, shelf: PromptFolder) -> dict[str, Any]:
    return body | {"model": shelf.served[0], "stop_token_ids": list(prompt.end_ids)}


def _whole(ids: list[int], prompt: PublishedPrompt, repetition_penalty: float | None) -> list[int]:
    """Placeholders and text. The penalty sees placeholders as text: then one that is in the text adds nothing."""
    return [PLACEHOLDER_ID if repetition_penalty in (None, 1) else ids[0]] * prompt.size + ids


async def _body(request: Request) -> bytes:
    """Raises ApiError 413."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", "body_too_large")
    return bytes(body)


def _with_length(scope: Scope, length: int) -> Scope:
    names = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in names]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def _once(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then what else comes: that the client left."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return whole.pop() if whole else await receive()

    return next_message


@final
class _ModelList:
    """vLLM's list of models on its way out, with the soft prompts behind them."""

    def __init__(self, send: Send, shelf: PromptFolder) -> None:
        self._send, self._shelf = send, shelf
        self._start: Message | None = None
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        """Hold everything back until all is there."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body") or self._start is None:
            return
        body = bytes(self._body) if self._start["status"] != 200 else await run_sync(self._longer)
        headers = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def _longer(self) -> bytes:
        found, base = json.loads(self._body), self._shelf.served[0]
        for name in published.published_names(self._shelf.folder):
            model = f"{base}:{name}" if name in self._shelf.served else name
            found["data"].append({**found["data"][0], "id": model, "parent": base, "root": name})
        return json.dumps(found).encode()
