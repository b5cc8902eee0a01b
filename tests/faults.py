"""A proxy in front of an S3 server. A chosen share of the requests fails."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

import aiohttp
import yarl
from aiohttp import web

from tests.waiting import PATIENCE_S

KINDS = ("throttled", "error", "reset", "answer lost", "answer cut", "slow")
"""Kinds of faults. If an answer is lost, cut or slow, the server has executed the request."""
_SLOW_S = 2.0
_OF_A_HOP = {"connection", "expect", "keep-alive", "transfer-encoding", "date", "server"}
_REFUSALS = {"throttled": (503, "SlowDown"), "error": (500, "InternalError")}


class FaultyProxy:
    """Forwards requests inside a `with` block. A seeded random share of the requests fails."""

    def __init__(
        self, server: str, *, share: float, seed: int, kinds: Sequence[str] = KINDS, port: int = 0
    ) -> None:
        """Prepare the proxy.

        Args:
            server: URL of the server.
            share: share of failing requests, from 0 to 1.
            seed: seed of the random faults.
            kinds: kinds of faults, see `KINDS`.
            port: port of the proxy; 0 for any free port.
        """
        self._kinds, self._port = kinds, port
        self._server, self._share = server, share
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-proxy")
        self.requests = 0
        self.faults: Counter[str] = Counter()

    def __enter__(self) -> str:
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(PATIENCE_S)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> str:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await self._listen()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await self._site.start()

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        body = await request.read()
        fault = self._random.choice(self._kinds) if self._random.random() < self._share else ""
        self.faults.update([fault] if fault else [])
        if fault in _REFUSALS:
            status, code = _REFUSALS[fault]
            text = f"<Error><Code>{code}</Code><Message>as planned</Message></Error>"
            return web.Response(status=status, text=text, content_type="application/xml")
        if fault == "reset":
            return self._hung_up(request)
        url = yarl.URL(self._server + request.raw_path, encoded=True)
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _OF_A_HOP]
        async with self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            content = await answer.read()
            response_headers = [
                (k, v) for k, v in answer.headers.items() if k.lower() not in _OF_A_HOP
            ]
        if fault == "answer lost":
            return self._hung_up(request)
        if fault == "slow":
            await asyncio.sleep(_SLOW_S)
        response = web.StreamResponse(status=answer.status, headers=dict(response_headers))
        await response.prepare(request)
        if fault == "answer cut":
            await response.write(content[: len(content) // 2])
            return self._hung_up(request)
        await response.write(content)
        await response.write_eof()
        return response

    @staticmethod
    def _hung_up(request: web.Request) -> web.Response:
        if request.transport is not None:  # None: the client has gone
            request.transport.abort()
        return web.Response()
