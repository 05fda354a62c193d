"""Whatever bytes arrive: no exception reaches the loop, and nothing of a connection outlives it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.base.clock import ManualClock
from controlplane.transport.h2 import frames
from controlplane.transport.h2.connection import Connection
from controlplane.transport.h2.frames import PREFACE
from controlplane.transport.h2.headers import FieldMemory, HeaderReader, literal
from controlplane.transport.h2.request import read_request
from controlplane.transport.h2.server import H2Server
from controlplane.transport.server import ServerOptions
from tests.unit.transport.h2.support import Services, call, message, request_block

_STREAM_IDS = st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 - 1])
_BLOCKS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([request_block(), request_block("/t.T/Each"), request_block("/t.T/Flood"), request_block("/no/m")]),
)
_FRAMES = st.one_of(
    st.builds(frames.frame, st.integers(0, 12), st.integers(0, 255), _STREAM_IDS, st.binary(max_size=40)),
    st.builds(lambda n, block, flags: frames.frame(1, flags, n, block), _STREAM_IDS, _BLOCKS, st.integers(0, 63)),
    st.builds(lambda n, body, flags: frames.frame(0, flags, n, message(body)), _STREAM_IDS, st.binary(), st.just(0)),
    st.builds(call, st.sampled_from([1, 3, 5, 7, 9]), st.binary(max_size=40)),
    st.builds(frames.window_update, _STREAM_IDS, st.integers(0, 2**31 - 1)),
)


class _Errors(logging.Handler):
    """What the front logs as its own failure."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


_ERRORS = _Errors()


@pytest.fixture(autouse=True, scope="module")
def watched_log() -> Iterator[None]:
    log = logging.getLogger("quarterdeck.grpc")
    log.addHandler(_ERRORS)
    yield
    log.removeHandler(_ERRORS)


class _Pipe:
    """A transport that keeps nothing."""

    def __init__(self) -> None:
        self.closed = False

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None: ...

    def write(self, data: bytes) -> None:
        assert not self.closed

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


async def _feed(chunks: list[bytes]) -> None:
    loop = asyncio.get_running_loop()
    failures: list[Any] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(context))
    server = H2Server(ServerOptions(), ManualClock())
    server.add_generic_rpc_handlers((Services().handler(),))
    await server.start()
    connection, pipe = Connection(server), _Pipe()
    connection.connection_made(pipe)  # type: ignore[arg-type]
    for chunk in chunks:
        connection.data_received(chunk)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    connection.connection_lost(None)
    await server.stop(None)
    assert not connection.streams
    assert (connection.held, connection.queued) == (0, 0)
    assert not server.connections
    assert not failures
    assert not _ERRORS.records


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8), st.booleans())
def test_random_bytes(chunks: list[bytes], polite: bool) -> None:
    asyncio.run(_feed([PREFACE + frames.settings({}), *chunks] if polite else chunks))


@settings(max_examples=300, deadline=None)
@given(st.lists(_FRAMES, max_size=25))
def test_random_frames(sent: list[bytes]) -> None:
    asyncio.run(_feed([PREFACE + frames.settings({}) + frames.frame(4, 1, 0), *sent]))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_a_remembered_field_is_what_decoding_would_give(block: bytes) -> None:
    memory = FieldMemory()
    outcomes = []
    for _ in range(2):  # the second time from memory
        try:
            outcomes.append(memory.decode(block))
        except frames.H2Error as error:
            outcomes.append([(error.code.name.encode(), b"")])
    assert outcomes[0] == outcomes[1]


_NAMES = st.from_regex(rb"[a-z][a-z0-9-]{0,20}", fullmatch=True)


@given(st.lists(st.tuples(_NAMES, st.binary(max_size=200)), max_size=10))
def test_what_is_encoded_is_decoded(fields: list[tuple[bytes, bytes]]) -> None:
    reader = HeaderReader(FieldMemory())
    reader.table_is_zero()
    block = b"".join(literal(name, value) for name, value in fields)
    assert reader.read(b"\x20" + block) == fields
    assert reader.stateless
    assert reader.read(block) == fields


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=8))
def test_any_header_list_is_a_request_or_malformed(fields: list[tuple[bytes, bytes]]) -> None:
    broken = None
    try:
        assert read_request(fields, 1).method
    except frames.H2Error as error:
        broken = error
    assert broken is None or broken.stream_id == 1
