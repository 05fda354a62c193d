"""The load of a run: writers, readers and one watcher on the key-value API, clients on a Service. Records everything.

Owns how operations are paced and what is written where. Judges nothing, and hides nothing: an operation's retries are
inside its time, and what failed is recorded as failed.

One writer and one reader per replica, each beginning at its own and keeping to it while it answers, so that writes go
through every replica. Pacing is open-loop: a slow answer does not thin out the load that follows it.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final, Protocol

from chaos.history import Recorder
from chaos.records import Event, Listing, Op, Outcome, Row
from chaos.workload.pace import Pace, Process
from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.client import ApiError, EtcdClient, UnavailableError
from controlplane.client import etcd_client as etcd
from controlplane.client.endpoints import EndpointPool
from controlplane.pb.etcd import rpc_pb2

__all__ = ["Board", "KeyValue", "Reader", "ServiceClient", "Watcher", "Writer", "fetch", "read_prefix"]

_PAGE: Final = 2_000
_RESUME_PAUSE_S: Final = 0.02
_RETRY_AFTER_S: Final = 0.05


class KeyValue(Protocol):
    """What writers and readers need of an :class:`~controlplane.client.EtcdClient`."""

    pool: EndpointPool

    async def put(self, key: bytes, value: bytes) -> etcd.Outcome[rpc_pb2.PutResponse]: ...

    async def range(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse: ...


class Board:
    """The newest acknowledged key of each writer: what readers ask for."""

    def __init__(self) -> None:
        self._newest: dict[int, str] = {}
        self.revision = 0
        #: Writes acknowledged so far, of all writers.
        self.acknowledged_total = 0

    def acknowledged(self, writer: int, key: str, revision: int) -> None:
        """A writer was told so, now."""
        self._newest[writer] = key
        self.acknowledged_total += 1
        self.revision = max(self.revision, revision)

    def pick(self, reader: int, turn: int) -> str | None:
        """A key to read: of the other writers in turn; of the reader's own only if there is no other."""
        writers = sorted(writer for writer in self._newest if writer != reader) or sorted(self._newest)
        return self._newest[writers[turn % len(writers)]] if writers else None


class Writer:
    """Writes a new key with a new value in every slot, for ever."""

    def __init__(
        self, number: int, prefix: str, client: KeyValue, board: Board, recorder: Recorder, pace: Pace, rand: Rand
    ) -> None:
        self._number = number
        self._prefix = f"{prefix}w{number}/"
        self._client = client
        self._board = board
        self._process = Process(f"w{number}", recorder)
        self._pace = pace
        self._rand = rand
        self._sequence = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Until told to stop; what is outstanding then is waited for."""
        while not stopping.is_set():
            await self._pace.slot()
            await self.write()

    async def write(self) -> None:
        """One write."""
        self._sequence += 1
        key = f"{self._prefix}{self._sequence:07d}"
        value = f"w{self._number}-{self._sequence}-{self._rand.token(4).hex()}"

        def done(op_id: int, call_ns: int, return_ns: int, result: etcd.Outcome[rpc_pb2.PutResponse]) -> Op:
            outcome: Outcome = "ok"
            revision, error = 0, ""
            if isinstance(result, etcd.Acknowledged):
                revision = result.revision
                self._board.acknowledged(self._number, key, revision)
            elif isinstance(result, etcd.Failed):
                outcome, error = "fail", f"{result.code.name}: {result.message}"
            else:
                outcome, error = "info", result.reason
            return Op(
                op_id, self._process.name, "put", result.endpoint, key, call_ns, return_ns, outcome, value,
                revision=revision, error=error,
            )  # fmt: skip

        lost = Op(0, self._process.name, "put", self._client.pool.current, key, 0, 0, "info", value)
        await self._process.run(lambda: self._client.put(key.encode(), value.encode()), done, lost)


class Reader:
    """Reads, linearizably, what another writer was just told is written."""

    def __init__(self, number: int, client: KeyValue, board: Board, recorder: Recorder, pace: Pace) -> None:
        self._number = number
        self._client = client
        self._board = board
        self._process = Process(f"r{number}", recorder)
        self._pace = pace
        self._turn = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Until told to stop."""
        while not stopping.is_set():
            await self._pace.slot()
            await self.read()

    async def read(self) -> None:
        """One read, if anything has been written."""
        key = self._board.pick(self._number, self._turn)
        self._turn += 1
        if key is None:
            return

        async def call() -> rpc_pb2.RangeResponse | ApiError:
            try:
                return await self._client.range(rpc_pb2.RangeRequest(key=key.encode()))
            except ApiError as error:
                return error

        def done(op_id: int, call_ns: int, return_ns: int, result: rpc_pb2.RangeResponse | ApiError) -> Op:
            name, endpoint = self._process.name, self._client.pool.current
            if isinstance(result, ApiError):
                error = f"{result.code.name}: {result.message}"
                return Op(op_id, name, "get", endpoint, key, call_ns, return_ns, "fail", error=error)
            kv = result.kvs[0] if result.kvs else None
            return Op(
                op_id, name, "get", endpoint, key, call_ns, return_ns, "ok",
                value=kv.value.decode() if kv else None,
                revision=result.header.revision,
                mod_revision=kv.mod_revision if kv else 0,
                version=kv.version if kv else 0,
            )  # fmt: skip

        await self._process.run(call, done)


class Watcher:
    """One watch over everything that is written, through the whole run: resumed when a replica goes, listed anew when
    told that its place is gone."""

    def __init__(self, prefix: str, client: EtcdClient, recorder: Recorder, clock: Clock) -> None:
        self._prefix = prefix
        self._client = client
        self._recorder = recorder
        self._clock = clock
        self._segment = 0
        self._place = 0
        self._must_list = False

    async def begin(self) -> None:
        """The first listing: before anything is written. Raises ApiError."""
        await self._list()

    async def run(self) -> None:
        """Watch from there until cancelled."""
        while True:
            try:
                if self._must_list:
                    await self._list()
                await self._follow()
            except UnavailableError:
                await self._clock.sleep(_RESUME_PAUSE_S)  # the client has gone on to the next replica

    async def reached(self, revision: int, timeout_s: float) -> bool:
        """Whether everything up to that revision has come, waiting at most that long."""
        deadline_s = self._clock.monotonic() + timeout_s
        while self._place < revision:
            if self._clock.monotonic() > deadline_s:
                return False
            await self._clock.sleep(_RESUME_PAUSE_S)
        return True

    async def _list(self) -> None:
        revision, rows = await read_prefix(self._client, self._prefix)
        self._segment += 1
        reason: Final = "start" if self._segment == 1 else "relist"
        self._recorder.listing(Listing(reason, self._segment, revision, self._recorder.now_ns(), rows))
        self._place = revision
        self._must_list = False

    async def _follow(self) -> None:
        prefix = self._prefix.encode()
        async with self._client.watch(
            prefix, range_end=etcd.prefix_end(prefix), start_revision=self._place + 1
        ) as responses:
            async for response in responses:
                if response.canceled:
                    self._must_list = response.compact_revision > 0
                    return
                for event in response.events:
                    kv = event.kv
                    self._recorder.event(
                        Event(
                            self._segment,
                            kv.key.decode(),
                            kv.value.decode(),
                            kv.mod_revision,
                            kv.version,
                            self._recorder.now_ns(),
                        )
                    )
                    self._place = max(self._place, kv.mod_revision)


class ServiceClient:
    """Requests to a Service, each on a new connection; one retry, a moment after an attempt that failed, as clients of
    any service do: an instant retry would meet the same dying machine."""

    def __init__(self, number: int, address: tuple[str, int], recorder: Recorder, pace: Pace, timeout_s: float) -> None:
        self._address = address
        self._process = Process(f"h{number}", recorder)
        self._pace = pace
        self._timeout_s = timeout_s

    async def run(self, stopping: asyncio.Event) -> None:
        """Until told to stop."""
        while not stopping.is_set():
            await self._pace.slot()
            await self.request()

    async def request(self) -> None:
        """One request."""
        endpoint = f"{self._address[0]}:{self._address[1]}"

        async def call() -> list[str]:
            failures: list[str] = []
            for attempt in range(2):
                if attempt:
                    await asyncio.sleep(_RETRY_AFTER_S)
                failure = await fetch(*self._address, timeout_s=self._timeout_s)
                if failure is None:
                    break
                failures.append(failure)
            return failures

        def done(op_id: int, call_ns: int, return_ns: int, failures: list[str]) -> Op:
            outcome: Outcome = "ok" if len(failures) < 2 else "fail"
            return Op(
                op_id, self._process.name, "http", endpoint, "/", call_ns, return_ns, outcome,
                attempts_failed=len(failures), error="; ".join(failures),
            )  # fmt: skip

        await self._process.run(call, done)


async def fetch(host: str, port: int, *, timeout_s: float, path: str = "/") -> str | None:
    """GET it on a new connection; None if a whole 200 answer came within the time, else what went wrong."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read(-1)
            finally:
                writer.close()
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except OSError as error:
        # asyncio words a refused connection its own way; the number is the system's.
        return os.strerror(error.errno) if error.errno else type(error).__name__
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return "the connection closed before an answer"
    status, *fields = head.split(b"\r\n")
    if status.split(b" ")[1:2] != [b"200"]:
        return f"answered {status.decode(errors='replace')}"
    for name, _, value in (field.partition(b":") for field in fields):
        if name.strip().lower() == b"content-length" and int(value) != len(body):
            return f"{len(body)} bytes of {int(value)}"
    return None


async def read_prefix(client: KeyValue, prefix: str) -> tuple[int, list[Row]]:
    """Every key under a prefix at one revision: that revision and the rows. Linearizable. Raises ApiError."""
    key = prefix.encode()
    end = etcd.prefix_end(key)
    revision = 0
    rows: list[Row] = []
    while True:
        page = await client.range(rpc_pb2.RangeRequest(key=key, range_end=end, revision=revision, limit=_PAGE))
        revision = revision or page.header.revision
        rows += [
            Row(kv.key.decode(), kv.value.decode(), kv.create_revision, kv.mod_revision, kv.version) for kv in page.kvs
        ]
        if not page.more:
            return revision, rows
        key = page.kvs[-1].key + b"\0"
