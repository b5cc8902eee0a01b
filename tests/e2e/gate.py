"""A gate in front of the S3 server: stops a run at a chosen write, on slow and fast machines."""

import asyncio
import re
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import aiohttp
from aiohttp import web

from cluster import object_store
from tests.faults import FaultyProxy
from tests.waiting import PATIENCE_S

_WRITES = {"PUT", "POST", "DELETE"}


@dataclass(frozen=True)
class Moment:
    """The `count`-th write, from now on, to a file of the run with a name matching `pattern`."""

    pattern: str
    count: int = 1


NEVER = Moment(r"(?!)")


class Gate(FaultyProxy):
    """Forwards requests. From a chosen write on, the gate holds all writes of the run.

    While the gate is shut, the run reads and sends heartbeats, but writes no checkpoint, result or
    ledger event. A process killed meanwhile dies at the chosen write, on slow and fast machines
    alike.
    """

    def __init__(self, server: str, bucket: str) -> None:
        # Not an ephemeral port: the gate needs the port again after an outage.
        port = object_store.find_free_ports(None, object_store.HOST)[-1]
        super().__init__(server, share=0, seed=0, port=port)
        self._bucket = bucket
        self._run, self._moment = "", NEVER
        self._seen = 0
        self._is_shut = self._is_out = False
        self._waiting: list[tuple[asyncio.Future[bool], asyncio.Event]] = []
        self.held = ""
        """Name, within the run, of the file at whose write the gate has shut; empty while open."""

    def shut(self, run: str, moment: Moment) -> None:
        """Shut the gate at a moment of the run with the name `run`."""
        self._run = run
        self.open(deliver=True, until=moment)

    def open(self, *, deliver: bool, until: Moment = NEVER) -> None:
        """Open the gate until `until`. Forward held writes if `deliver`, else close connections.

        Returns after the server has answered all forwarded writes.
        """
        self._call(self._open_again(deliver, until))

    def refuse(self) -> None:
        """Close the connections of held writes. Refuse new connections until the gate opens."""
        self._call(self._stop_listening())

    def __exit__(self, *raised: Any) -> None:
        self.open(deliver=False)
        super().__exit__(*raised)

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)

    async def _stop_listening(self) -> None:
        self._is_out = True
        await self._site.stop()
        await self._release(False, NEVER)

    async def _open_again(self, deliver: bool, until: Moment) -> None:
        await self._release(deliver, until)
        if self._is_out:
            self._is_out = False
            await self._listen()

    async def _release(self, deliver: bool, until: Moment) -> None:
        waiting, self._waiting = self._waiting, []
        self._is_shut, self.held = False, ""
        self._seen, self._moment = 0, until
        for verdict, _ in waiting:
            verdict.set_result(deliver)
        for _, answered in waiting:
            await answered.wait()

    def _is_held(self, request: web.Request) -> bool:
        name = unquote(request.raw_path.partition("?")[0]).removeprefix(
            f"/{self._bucket}/{self._run}/"
        )
        if request.method not in _WRITES or name.startswith("/") or name == "coordinator.json":
            return False  # not a write of the run, or only a heartbeat
        if not self._is_shut and re.fullmatch(self._moment.pattern, name):
            self._seen += 1
            if self._seen == self._moment.count:
                self._is_shut, self.held = True, name
        return self._is_shut

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        answered = asyncio.Event()
        try:
            await request.read()  # now: the client may be dead after the hold
            if self._is_held(request):
                verdict: asyncio.Future[bool] = self._loop.create_future()
                self._waiting.append((verdict, answered))
                if not await verdict:
                    return self._hung_up(request)
            return await super()._pass_on(request)
        except (aiohttp.ClientError, OSError):
            return self._hung_up(request)  # the server or the client is dead
        finally:
            answered.set()
