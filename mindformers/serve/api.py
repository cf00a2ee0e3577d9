# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface: OpenAI's completions and chat completions, health, metrics and the chat page.

Shapes of requests and answers: OpenAI API reference, "Completions" and "Chat".
"""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from mindformers.errors import DataError
from mindformers.generation.conversation import Conversation
from mindformers.serve.answers import Answer, Service, collect, merged, refuse_cut
from mindformers.serve.errors import ApiError, error_body
from mindformers.serve.formats import ChatFormat, TextFormat
from mindformers.serve.metrics import Metrics
from mindformers.serve.schema import ChatRequest, CompletionRequest, SamplingRequest
from mindformers.tools.utils import did_you_mean

__all__ = ["build_app"]

_PAGE = Path(__file__).with_name("page.html")
_DISCONNECT_POLL = 0.1  # seconds between two looks whether a client that waits for a whole answer is still there


def build_app(service: Service, model_name: str, chat: bool, api_key: str | None = None) -> FastAPI:
    """The application.

    Args:
        service: what answers.
        model_name: name that clients see and must ask for.
        chat: the model knows the Llama 2 chat format; False continues the text of the messages.
        api_key: required as ``Authorization: Bearer ...`` under /v1 when given.
    """
    app = FastAPI(title="mindformers", docs_url=None, redoc_url=None, openapi_url=None)
    metrics = Metrics(service.engine)
    created = int(time.time())
    _add_errors(app, metrics, api_key)

    def check_model(name: str) -> None:
        if name != model_name:
            message = f"this service has no model {name!r}; it serves {model_name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        entry = {"id": model_name, "object": "model", "created": created, "owned_by": "mindformers"}
        return {"object": "list", "data": [entry]}

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        check_model(name)
        return models()["data"][0]

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        check_model(body.model)
        prompts = _prompts(body.prompt, service.tokenizer)
        answers = service.submit(prompts, body, body.max_tokens, body.logprobs)
        return await _respond(answers, body, request, TextFormat(service.tokenizer, body, prompts, model_name))

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        check_model(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        prompt = _chat_prompt(body, service, chat)
        wanted = (body.top_logprobs or 0) if body.logprobs else None
        answers = service.submit([prompt], body, body.max_completion_tokens or body.max_tokens, wanted)
        return await _respond(answers, body, request, ChatFormat(service.tokenizer, body, [prompt], model_name))

    _add_pages(app, service, metrics)
    return app


def _add_pages(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """What is not part of the OpenAI API: health, metrics, the chat page."""

    @app.get("/health")
    def health() -> JSONResponse:
        alive = service.engine.alive
        state = {"active": service.engine.num_active, "waiting": service.engine.num_waiting}
        return JSONResponse({"status": "ok" if alive else "down", **state}, 200 if alive else 503)

    @app.get("/metrics")
    def metrics_page() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"))


def _add_errors(app: FastAPI, metrics: Metrics, api_key: str | None) -> None:
    """The API key, the request metrics, and errors in OpenAI's shape."""

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable) -> Response:
        path = request.url.path
        if api_key and path.startswith("/v1/") and not _authorised(request, api_key):
            message = "give the API key of this service: Authorization: Bearer KEY"
            return ApiError(401, message, "authentication_error", code="invalid_api_key").response()
        begin = time.perf_counter()
        response = await call_next(request)
        if request.method == "POST":
            metrics.request(path, response.status_code, time.perf_counter() - begin)
        return response

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        body = ChatRequest if request.url.path.endswith("/chat/completions") else CompletionRequest
        problems = [_problem(item, body) for item in error.errors()[:10]]
        param = _where(error.errors()[0]["loc"])
        return JSONResponse(error_body("; ".join(problems), "invalid_request_error", param), 400)

    @app.exception_handler(404)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        message = f"no such address: {request.url.path}; there are /v1/models, /v1/completions, /v1/chat/completions"
        return JSONResponse(error_body(message, "invalid_request_error"), 404)


def _authorised(request: Request, api_key: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {api_key}".encode())


def _problem(item: dict[str, Any], body: type[SamplingRequest]) -> str:
    """What is wrong with one field of a request."""
    name = _where(item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{name}: unknown field.{did_you_mean(name, body.model_fields, 'fields')}"
    return f"{name}: {'this field is missing' if item['type'] == 'missing' else item['msg']}"


def _where(location: tuple) -> str:
    """``('body', 'messages', 0, 'role')`` -> ``messages.0.role``."""
    return ".".join(str(part) for part in location if part != "body") or "body"


def _prompts(prompt: Any, tokenizer: Any) -> list[list[int]]:
    """Token ids of every form a prompt can have."""
    if isinstance(prompt, str):
        prompt = [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    if isinstance(prompt[0], list):
        return prompt
    return [tokenizer(text)["input_ids"] for text in prompt]


def _chat_prompt(body: ChatRequest, service: Service, chat: bool) -> list[int]:
    """Ids of a conversation; without the chat format, of its messages one below the other."""
    messages = list(body.messages)
    if not chat:
        return service.tokenizer("\n".join(message.content for message in messages))["input_ids"]
    system = messages.pop(0).content if messages[0].role == "system" else ""
    roles = [message.role for message in messages]
    if len(roles) % 2 == 0 or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
        message = f"messages must be: perhaps one system, then user, assistant, user, ... ending with user; got {roles}"
        raise ApiError(400, message, param="messages")
    try:
        conversation = Conversation(service.tokenizer, True, system)
        for question, reply in zip(messages[::2], messages[1::2], strict=False):
            conversation.add(question.content, reply.content, ())
        ids, _ = conversation.prompt(messages[-1].content, 1 << 62)
    except DataError as error:
        raise ApiError(400, str(error), param="messages") from error
    return ids


async def _respond(answers: list[Answer], body: SamplingRequest, request: Request, shape: Any) -> Response:
    """A whole answer, or a stream of its pieces; either way the sequences end when the client leaves."""
    if body.stream:
        return StreamingResponse(_events(answers, body, shape), media_type="text/event-stream")
    waiting = asyncio.ensure_future(collect(answers))
    try:
        while not waiting.done():
            await asyncio.wait([waiting], timeout=_DISCONNECT_POLL)
            if await request.is_disconnected():
                break
        if waiting.done():
            waiting.result()
            return JSONResponse(shape.whole(answers))
        return Response(status_code=499)  # nobody reads it; the number is nginx's for a client that closed
    finally:
        waiting.cancel()
        for answer in answers:
            answer.sequence.cancel()


async def _events(answers: list[Answer], body: SamplingRequest, shape: Any) -> AsyncIterator[str]:
    """Server-sent events of a streamed answer."""
    try:
        for chunk in shape.first():
            yield _event(chunk)
        async for answer, piece in merged(answers):
            refuse_cut(answer)
            if piece.text or piece.finish or shape.with_logprobs:
                yield _event(shape.piece(answer, piece))
        if body.stream_options is not None and body.stream_options.include_usage:
            yield _event({**shape.head(True), "choices": [], "usage": shape.usage(answers)})
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error.body)
    finally:
        for answer in answers:
            answer.sequence.cancel()


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
