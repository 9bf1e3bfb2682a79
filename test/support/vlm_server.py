"""A stand-in for an OpenAI-compatible server with a vision-language model, which can misbehave.

`model` says how: each name below is one way, seen in servers in the field.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

from aiohttp import web

SAYS = "A hand covers the cube."


def answer(content: Any, reason: str = "stop", **message: Any) -> web.Response:
    choice = {
        "index": 0, "finish_reason": reason,
        "message": {"role": "assistant", "content": content, **message},
    }  # fmt: skip
    return web.json_response({"choices": [choice], "usage": {}})


class VlmServer:
    """Serves in a thread of its own. `requests` are those that came, with their headers.

    A request to the model `hold` is answered when `release` is set.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.release = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def close(self) -> None:
        self.release.set()
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def pictures(self, number: int = -1) -> list[str]:
        """The URLs of the pictures of a request."""
        content = self.requests[number]["messages"][0]["content"]
        return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]

    async def _start(self) -> int:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/elsewhere", self._complete)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.requests.append(asked)
        self.headers.append(dict(request.headers))
        model = asked.get("model", "")
        if model == "hold":
            while not self.release.is_set():
                await asyncio.sleep(0.01)
        if model.isdigit():
            shapes = {
                400: {"object": "error", "message": "At most 1 image(s) may be provided"},
                401: {"error": {"message": f"Wrong key: {request.headers.get('Authorization')}"}},
                404: {"error": {"message": "model 'x' not found", "type": "not_found_error"}},
                422: {"detail": [{"loc": ["body"], "msg": "field required"}]},
                429: {"error": {"message": "Rate limit reached"}},
                500: {"error": {"code": 500, "message": "image input is not supported"}},
                503: {"error": {"code": 503, "message": "Loading model"}},
            }
            return web.json_response(shapes[int(model)], status=int(model))
        if model == "redirect":
            raise web.HTTPTemporaryRedirect("/elsewhere")
        if model == "cut body":
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b'{"choices": [')
            assert request.transport is not None
            request.transport.abort()
            return response
        if model == "endless":
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"a" * 65536)
        whole = {
            "html": "<html><head><title>502 Bad Gateway</title></head></html>",
            "broken": '{"choices": [{"message": {"cont',
            "deep": "[" * 100_000,
            "list": "[1, 2]",
            "bytes": b"\xff\xfe\x00",
            "no choices": json.dumps({"choices": []}),
            "odd choices": json.dumps({"choices": {"message": 1}}),
            "odd message": json.dumps({"choices": [{"message": "text"}]}),
            "error inside": json.dumps({"error": {"message": "out of memory"}}),
        }
        if model in whole:
            body = whole[model]
            return web.Response(body=body if isinstance(body, bytes) else body.encode())
        replies: dict[str, Any] = {
            "nothing": answer(""),
            "null": answer(None),
            "thinks": answer("", "length", reasoning="The picture shows"),
            "thinks too": answer(None, "length", reasoning_content="The picture shows"),
            "open thought": answer("<think>The picture shows a hand. It may", "length"),
            "thought": answer(f"<think>A hand. Or not.</think>\n\n{SAYS}"),
            "end of thought": answer(f"A hand. Or not.\n</think>\n{SAYS}"),
            "sentences": answer(f"{SAYS} It is red. I could say more."),
            "cut": answer(f"{SAYS} It is a very", "length"),
            "cut early": answer("The hand in the picture seems to be", "length"),
            "long": answer("a hand and " * 10_000),
            "markdown": answer(f'**"{SAYS}"**\n'),
            "parts": answer([{"type": "text", "text": SAYS}, {"type": "image"}]),
            "controls": answer("A hand\x1b[31m covers\x00 the cube."),
            "unended": answer(" a hand covers the cube"),
        }
        return replies.get(model) or answer(SAYS)
