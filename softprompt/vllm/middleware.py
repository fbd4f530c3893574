"""Soft prompts by name in vLLM's own server: --middleware softprompt.vllm.middleware.SoftPrompts

A request for the model NAME, or BASE:NAME, becomes one for the base model with the placeholders and the compiled prefix
of NAME. It takes the fields of `softprompt serve` and is encoded in the same way: template, conversation, end tokens.
All other requests go to vLLM unchanged, except that `kv_transfer_params` is removed wherever it occurs in a body, since
clients must not choose what the connector loads.

Folder, tokenizer and the base model's names are those that vLLM was started with. This module does not import vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import final

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softprompt.data.tokenizer import Tokenizer
from softprompt.errors import DataError, StoreError
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.formatting.inputs import text_input_ids
from softprompt.json_types import JSON
from softprompt.models.loading import load_tokenizer
from softprompt.server.chat_format import ChatFormat
from softprompt.server.chat_reading import chat_options, read_conversation
from softprompt.server.error_responses import ApiError, from_text, invalid
from softprompt.server.schema import ChatRequest, CompletionRequest, parse_request
from softprompt.server.tools import tool_use
from softprompt.server.turns import read_messages, thoughts
from softprompt.vllm import published
from softprompt.vllm.prefix_file import PLACEHOLDER_ID
from softprompt.vllm.published import PublishedPrompt

MAX_BODY_BYTES = 64 * 2**20  # of a body; vLLM has no limit, and requests of a multimodal base model hold images
CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"
MODELS_PATH = "/v1/models"
_TRANSFER_FIELD = "kv_transfer_params"
# What is read here, and must not be read a second time.
_READ = frozenset({"add_generation_prompt", "continue_final_message", "chat_template_kwargs", "reasoning_effort"})
_GUIDED = ("json", "regex", "choice", "grammar")


@final
class SoftPrompts:
    """ASGI middleware around vLLM's application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._prompts: PromptFolder | None = None
        self._texts = CapacityLimiter(1)  # a slow text may delay other texts, but not the event loop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if scope["method"] == "GET" and path == MODELS_PATH:
                await self._app(scope, receive, _ModelList(send, self._folder_of(scope)).send)
            elif scope["method"] in ("POST", "PUT", "PATCH"):
                body = await self._rewrite_body(scope, path, await _body(Request(scope, receive)))
                await self._app(_with_length(scope, len(body)), _once(body, receive), send)
            else:
                await self._app(scope, receive, send)
        except ApiError as error:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)

    def _folder_of(self, scope: Scope) -> PromptFolder:
        if self._prompts is None:
            self._prompts = PromptFolder.of(scope["app"].state)
        return self._prompts

    async def _rewrite_body(self, scope: Scope, path: str, body: bytes) -> bytes:
        """The body for vLLM. Raises ApiError."""
        try:
            content: JSON = json.loads(body)  # as vLLM does; it reports invalid JSON itself
        except RecursionError as error:
            raise invalid("The body is nested too deep.", code="invalid_json") from error
        except ValueError:
            return body
        removed = remove_field(content, _TRANSFER_FIELD)
        folder = self._folder_of(scope)
        model = content.get("model") if isinstance(content, dict) else None
        if path in (CHAT_PATH, COMPLETION_PATH) and isinstance(content, dict) and isinstance(model, str):
            prompt = await run_sync(folder.find, model)
            if prompt is not None:
                read = read_chat if path == CHAT_PATH else read_completion
                request = await run_sync(read, content, prompt, folder, limiter=self._texts, abandon_on_cancel=True)
                return json.dumps(request).encode()
        return json.dumps(content).encode() if removed else body


@final
class PromptFolder:
    """The published soft prompts for the base model that vLLM runs.

    Args:
        folder: the folder of `softprompt export --to vllm`.
        served: names of the base model; rewritten requests get the first.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, served: tuple[str, ...]) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.served = served

    @classmethod
    def of(cls, state: State) -> PromptFolder:
        """The folder, tokenizer and names of vLLM's command line; `state` is its application's state."""
        config = state.vllm_config
        folder = (config.kv_transfer_config.kv_connector_extra_config or {}).get("soft_prompts", "")
        served = state.args.served_model_name or [state.args.model]
        served = [served] if isinstance(served, str) else served
        return cls(Path(folder), load_tokenizer(config.model_config.tokenizer), tuple(served))

    def find(self, model: str) -> PublishedPrompt | None:
        """The soft prompt of a model name; None if it names none. Raises ApiError."""
        if model in self.served:
            return None
        name = next((model[len(base) + 1 :] for base in self.served if model.startswith(f"{base}:")), model)
        try:
            return published.find_published(self.folder, name)
        except StoreError as error:
            raise ApiError(500, "This soft prompt cannot be used.", "unusable_soft_prompt") from error


def remove_field(body: JSON, field: str) -> bool:
    """Remove a field from all objects in a JSON body; returns whether any had it."""
    removed = False
    left: list[JSON] = [body]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            removed |= field in part
            part.pop(field, None)
            left += part.values()
        elif isinstance(part, list):
            left += part
    return removed


def read_chat(body: Mapping[str, object], prompt: PublishedPrompt, folder: PromptFolder) -> dict[str, object]:
    """vLLM's body for a chat request with a soft prompt. Raises ApiError."""
    request = parse_request(ChatRequest, body)
    _check_not_scored(body)
    options, tools = chat_options(request), tool_use(request)
    if tools is not None and tools.is_old:
        raise invalid("functions is not supported: use tools.", "functions", "unsupported_parameter")
    messages, chat = read_messages(request.messages), ChatFormat(prompt.template, folder.tokenizer)
    try:
        ids, _ = read_conversation(
            chat.with_thoughts(messages, thoughts(request.messages)),
            options,
            prompt.template.system_turns,
            FormattedPrompt(None, prompt.template, published.NO_LAYOUT),
            folder.tokenizer,
            shown=lambda turns: chat.shown(turns, tools),
        )
    except DataError as error:
        raise from_text(error, "messages") from error
    # vLLM uses `prompt_token_ids` of another server instead of rendering the messages, which it only validates.
    turns = [{"role": "user" if m.role == "tool" else m.role, "content": m.content} for m in messages]
    return {
        **{name: value for name, value in _base_request(body, prompt, folder).items() if name not in _READ},
        "messages": turns,
        _TRANSFER_FIELD: {
            "soft_prompt": prompt.id,
            "prompt_token_ids": _with_placeholders(ids, prompt, request.repetition_penalty),
        },
    }


def read_completion(body: Mapping[str, object], prompt: PublishedPrompt, folder: PromptFolder) -> dict[str, object]:
    """vLLM's body for a completion request with a soft prompt. Raises ApiError."""
    request = parse_request(CompletionRequest, body)
    _check_not_scored(body)
    texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if not all(isinstance(text, str) and text for text in texts) or not texts:
        raise invalid("A soft prompt reads texts through its template, not token ids.", "prompt")
    formatted, rows = FormattedPrompt(None, prompt.template, published.NO_LAYOUT), []
    for i, text in enumerate(map(str, texts)):
        try:
            ids = text_input_ids(text, formatted, folder.tokenizer, f"prompt[{i}]")
        except DataError as error:
            raise from_text(error, "prompt") from error
        rows.append(_with_placeholders(ids, prompt, request.repetition_penalty))
    return {**_base_request(body, prompt, folder), "prompt": rows, _TRANSFER_FIELD: {"soft_prompt": prompt.id}}


def _check_not_scored(body: Mapping[str, object]) -> None:
    """Raise ApiError for log-probabilities of given text: vLLM would leave the soft prompt out of them."""
    for name in ("echo", "prompt_logprobs"):
        if body.get(name) not in (None, False):
            what = f"{name} is not supported behind a soft prompt by vLLM's server; softprompt serve does it."
            raise ApiError(400, what, "unsupported_parameter", param=name)


def _base_request(body: Mapping[str, object], prompt: PublishedPrompt, folder: PromptFolder) -> dict[str, object]:
    """With vLLM's newer names of `guided_json` and its kin, which it would leave unread."""
    newer = {name: body[f"guided_{name}"] for name in _GUIDED if body.get(f"guided_{name}") is not None}
    rest = {name: value for name, value in body.items() if name not in {f"guided_{own}" for own in _GUIDED}}
    named = {"structured_outputs": newer} if newer else {}
    return {**rest, **named, "model": folder.served[0], "stop_token_ids": list(prompt.end_ids)}


def _with_placeholders(ids: list[int], prompt: PublishedPrompt, repetition_penalty: float | None) -> list[int]:
    """Placeholders, then text ids. A repetition penalty sees placeholders, so then they repeat a token of the text."""
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
    """An ASGI channel with the body as one message, followed by the original channel's (a disconnect)."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return whole.pop() if whole else await receive()

    return next_message


@final
class _ModelList:
    """Appends the soft prompts to vLLM's list of models."""

    def __init__(self, send: Send, folder: PromptFolder) -> None:
        self._send, self._prompts = send, folder
        self._start: Message | None = None
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        """Buffer the response, and send it with the soft prompts once complete."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body") or self._start is None:
            return
        body = bytes(self._body) if self._start["status"] != 200 else await run_sync(self._extended)
        headers = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def _extended(self) -> bytes:
        models, base = json.loads(self._body), self._prompts.served[0]
        for name in published.published_names(self._prompts.folder):
            model = f"{base}:{name}" if name in self._prompts.served else name
            models["data"].append({**models["data"][0], "id": model, "parent": base, "root": name})
        return json.dumps(models).encode()
