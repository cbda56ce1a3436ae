"""An HTTP server that speaks OpenAI's protocol, on this machine alone.

Every request joins the engine's running batch. A client that goes away frees its place at the next token. Nothing in a
request names a file.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from moe.errors import UserError
from moe.inference.answers import Answer, Writer
from moe.serving.batcher import Batcher, Full, Stopping
from moe.serving.protocol import Job, Reply, error_body, read_body, read_job

MAX_BODY = 8 << 20  # bytes
GONE = 499  # the client has left; nobody reads this
LOCAL = ("127.0.0.1", "localhost")


class Failed(Exception):
    """The engine gave an answer up."""


class Answers:
    """The running answers of one job; use it in ``with``, which frees their places."""

    def __init__(self, job: Job, batcher: Batcher):
        self.job, self._batcher = job, batcher
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[str, int, Any]] = asyncio.Queue()
        self.answers: dict[int, Answer] = {}
        self.routing: dict[int, Any] = {}
        requests = []
        for index in range(job.answers):
            prompt = job.prompts[index // job.n]
            show, done = partial(self._post, "text", index), partial(self._post, "answer", index)
            requests.append(job.writer.continuation(prompt, job.language, done, show, index % job.n))
        self._requests = batcher.submit(requests, partial(self._post, "routing"), partial(self._post, "failed", 0))

    def _post(self, kind: str, index: int, value: Any) -> None:
        if value != "":
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._events.put_nowait, (kind, index, value))

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        if len(self.answers) < self.job.answers:
            self._batcher.cancel(self._requests)

    async def events(self) -> AsyncIterator[tuple[int, str | Answer]]:
        """Pieces of text as they are written, and each answer when it is done; raises :class:`Failed`."""
        while len(self.answers) < self.job.answers:
            kind, index, value = await self._events.get()
            if kind == "failed":
                raise Failed(value)
            if kind == "routing":
                self.routing[index] = value
                continue
            if kind == "answer":
                self.answers[index] = value
            yield index, value

    async def all(self) -> list[Answer]:
        """All answers, in order."""
        async for _ in self.events():
            pass
        return [self.answers[index] for index in range(self.job.answers)]


class Api:
    """The routes.

    Args:
        writer: what requests leave out is as it says.
        name: of the model.
    """

    def __init__(self, writer: Writer, batcher: Batcher, name: str):
        self.writer, self.batcher, self.name, self._created = writer, batcher, name, int(time.time())

    def app(self) -> Starlette:
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", partial(self.write, chat=False), methods=["POST"]),
            Route("/v1/chat/completions", partial(self.write, chat=True), methods=["POST"]),
        ]
        handlers: Mapping[Any, Any] = {
            HTTPException: _http_error,
            UserError: _user_error,
            ClientDisconnect: _gone,
            Exception: _fault,
        }
        # A page in a browser may not reach the server under another name (DNS rebinding).
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL))
        return Starlette(routes=routes, exception_handlers=handlers, middleware=[hosts])

    def _card(self) -> dict[str, Any]:
        context = self.writer.model.config.max_seq_len
        card = {"id": self.name, "object": "model", "created": self._created, "owned_by": "local"}
        return card | {"context_length": context, "experts": list(self.writer.model.config.expert_languages)}

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return JSONResponse(self._card())

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise HTTPException(404, f"the model {name[:80]!r} does not exist; this server has {self.name!r}")

    async def write(self, request: Request, chat: bool) -> Response:
        body = read_body(await _content(request))
        job = await asyncio.to_thread(read_job, body, chat, self.writer, self.batcher.most)
        self._check_name(body.get("model") or self.name)
        reply = Reply(job, f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}", int(time.time()), self.name)
        try:
            answers = Answers(job, self.batcher)
        except Full as error:
            raise HTTPException(429, str(error), {"Retry-After": "1"}) from None
        except Stopping as error:
            raise HTTPException(503, str(error)) from None
        if job.stream:
            return _Stream(answers, reply)
        with answers:
            work, left = asyncio.ensure_future(answers.all()), asyncio.ensure_future(_left(request))
            try:
                await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    return Response(status_code=GONE)
                found = work.result()
            except Failed as error:
                raise HTTPException(503, str(error)) from None
            finally:
                work.cancel()
                left.cancel()
        return JSONResponse(reply.whole(found, [answers.routing.get(index) for index in range(job.answers)]))


async def _content(request: Request) -> bytes:
    """The body, which has to be JSON by its type: a form on a web page could send any other without being asked."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected the header Content-Type: application/json")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise HTTPException(413, f"the body is longer than {MAX_BODY >> 20} MB")
        parts.append(part)
    return b"".join(parts)


async def _left(request: Request) -> None:
    """Returns when the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """Server-sent events, one for each piece of text."""

    def __init__(self, answers: Answers, reply: Reply):
        super().__init__(self._events(answers, reply), media_type="text/event-stream")
        self._answers = answers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._answers:
            await super().__call__(scope, receive, send)

    async def _events(self, answers: Answers, reply: Reply) -> AsyncIterator[str]:
        for part in reply.opening():
            yield _event(part)
        try:
            async for index, value in answers.events():
                if isinstance(value, str):
                    yield _event(reply.piece(index, value))
                else:
                    yield _event(reply.end(index, value, answers.routing.get(index)))
        except Failed as error:
            yield _event(error_body(str(error), "server_error"))
            return
        for part in reply.closing(list(answers.answers.values())):
            yield _event(part)
        yield "data: [DONE]\n\n"


def _event(part: dict[str, Any]) -> str:
    return f"data: {json.dumps(part, ensure_ascii=False)}\n\n"


async def _http_error(request: Request, error: HTTPException) -> Response:
    kinds = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
    message = str(error.detail)
    if error.status_code in (404, 405) and message in ("Not Found", "Method Not Allowed"):
        message = f"{request.method} {request.url.path[:80]}: {message.lower()}; see /v1/models"
    body = error_body(message, kinds.get(error.status_code, "invalid_request_error"))
    return JSONResponse(body, error.status_code, error.headers)


async def _user_error(request: Request, error: UserError) -> Response:
    return JSONResponse(error_body(str(error), "invalid_request_error"), 400)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=GONE)


async def _fault(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(f"{type(error).__name__} in the server", "server_error"), 500)


# ------------------------------------------------------------------------------------------------------- the server


def listen(port: int) -> socket.socket:
    """A socket on this machine's own address; 0 takes a free port. Raises :class:`UserError` where that fails."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"the port is {port}, expected 0 (a free one) to 65535")
    try:
        return socket.create_server((LOCAL[0], port), backlog=256)
    except OSError as error:
        raise UserError(f"port {port} cannot be used ({error.strerror}); choose another, or 0 for a free one") from None


class _Server(uvicorn.Server):
    """Leaves signals to :class:`Service`, which ends answers first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Service:
    """The server on a socket.

    Args:
        rows: requests that are answered at once.
        waiting: how many more may wait; others are turned away.
    """

    def __init__(self, writer: Writer, name: str, listener: socket.socket, rows: int, waiting: int):
        self.batcher = Batcher(writer, rows, waiting)
        app = Api(writer, self.batcher, name).app()
        quiet: dict[str, Any] = {"log_level": "error", "access_log": False, "lifespan": "off"}
        self._server = _Server(uvicorn.Config(app, timeout_graceful_shutdown=5, **quiet))
        self._listener = listener
        self.url = f"http://{LOCAL[0]}:{listener.getsockname()[1]}/v1"

    def run(self, ready: Callable[[], object] = lambda: None) -> None:
        """Serves until SIGINT, SIGTERM or :meth:`stop`."""
        asyncio.run(self._run(ready))

    def stop(self) -> None:
        """Ends all answers with an error and lets the server end; from any thread."""
        self._server.should_exit = True
        self.batcher.stop()

    async def _run(self, ready: Callable[[], object]) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self._interrupt)
        try:
            ready()
            await self._server.serve(sockets=[self._listener])
        finally:
            await asyncio.to_thread(self.stop)

    def _interrupt(self) -> None:
        self._server.force_exit = self._server.should_exit  # the second time
        self._server.should_exit = True
        threading.Thread(target=self.batcher.stop, daemon=True).start()
