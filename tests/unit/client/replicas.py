"""Replicas that do as the test says, behind real gRPC on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import status_pb2  # type: ignore[import-untyped]

from controlplane.base.errors import Code, StatusError
from controlplane.client.interface import ApiError
from controlplane.client.kinds import wrap
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from controlplane.pb.k8s import meta_v1_pb2
from controlplane.pb.quarterdeck.v1 import api_pb2, api_pb2_grpc
from controlplane.transport.server import listen, new_server
from tests.unit.client.fakes import pod

Answer = Callable[[Any], Awaitable[Any]]


def detailed(error: ApiError) -> ApiError:
    """The error with Kubernetes' Status in its trailers, as the API server sends it."""
    details = meta_v1_pb2.Status(reason=error.reason, message=error.message)
    for cause in error.causes:
        details.details.causes.add(field=cause.field, message=cause.message, reason=cause.reason)
    packed = any_pb2.Any()
    packed.Pack(details)
    status = status_pb2.Status(code=int(error.code), message=error.message, details=[packed])
    error.trailing_metadata = (("grpc-status-details-bin", status.SerializeToString()),)  # type: ignore[attr-defined]
    return error


class Replica(
    api_pb2_grpc.ResourcesServicer, rpc_pb2_grpc.KVServicer, rpc_pb2_grpc.LeaseServicer, rpc_pb2_grpc.WatchServicer
):
    """One replica. ``answers`` are used one by one, then ``pod("a", 7)`` and an empty put for ever."""

    def __init__(self, *answers: StatusError | float) -> None:
        self.answers = list(answers)
        #: What it says of its log when a write comes; 0: nothing.
        self.log_index = 0
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.events: asyncio.Queue[api_pb2.WatchEvent | StatusError] = asyncio.Queue()
        self._server: Any = None
        self.endpoint = ""

    async def start(self) -> Replica:
        self._server = new_server()
        api_pb2_grpc.add_ResourcesServicer_to_server(self, self._server)
        rpc_pb2_grpc.add_KVServicer_to_server(self, self._server)
        rpc_pb2_grpc.add_LeaseServicer_to_server(self, self._server)
        rpc_pb2_grpc.add_WatchServicer_to_server(self, self._server)
        self.endpoint = f"127.0.0.1:{listen(self._server, '127.0.0.1:0')}"
        await self._server.start()
        return self

    async def stop(self) -> None:
        await self._server.stop(None)

    async def _answer(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.requests.append(request)
        if self.log_index:
            await context.send_initial_metadata((("qd-log-index", str(self.log_index)),))
        self.metadata.append(dict(context.invocation_metadata() or ()))
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, StatusError):
                raise answer
            await asyncio.sleep(answer)

    async def Get(self, request: api_pb2.GetRequest, context: Any) -> api_pb2.Object:
        await self._answer(request, context)
        return wrap(pod("a", 7))

    async def Create(self, request: api_pb2.CreateRequest, context: Any) -> api_pb2.Object:
        await self._answer(request, context)
        return request.object

    async def Kinds(self, request: api_pb2.KindsRequest, context: Any) -> api_pb2.KindsResponse:
        return api_pb2.KindsResponse(kinds=[api_pb2.Kind(kind="Pod")])

    async def Logs(self, request: api_pb2.LogsRequest, context: Any) -> AsyncIterator[api_pb2.LogChunk]:
        for line in (b"one\n", b"two\n"):
            yield api_pb2.LogChunk(data=line)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if isinstance(request, api_pb2.WatchRequest):
            self.requests.append(request)
            while True:
                event = await self.events.get()
                if isinstance(event, StatusError):
                    raise event
                yield event
        else:
            async for message in request:
                self.requests.append(message)
                yield rpc_pb2.WatchResponse(created=True)
                break

    async def Put(self, request: rpc_pb2.PutRequest, context: Any) -> rpc_pb2.PutResponse:
        await self._answer(request, context)
        return rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=12))

    async def LeaseGrant(self, request: rpc_pb2.LeaseGrantRequest, context: Any) -> rpc_pb2.LeaseGrantResponse:
        await self._answer(request, context)
        return rpc_pb2.LeaseGrantResponse(
            header=rpc_pb2.ResponseHeader(revision=12), ID=request.ID, TTL=request.TTL
        )  # fmt: skip

    async def LeaseKeepAlive(self, requests: Any, context: Any) -> AsyncIterator[rpc_pb2.LeaseKeepAliveResponse]:
        async for request in requests:
            await self._answer(request, context)
            yield rpc_pb2.LeaseKeepAliveResponse(ID=request.ID, TTL=9)

    async def Range(self, request: rpc_pb2.RangeRequest, context: Any) -> rpc_pb2.RangeResponse:
        await self._answer(request, context)
        return rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=12))


def unavailable(*, unknown: bool) -> StatusError:
    return StatusError(Code.UNAVAILABLE, "etcdserver: request timed out", unknown_outcome=unknown)


class DeafProxy:
    """A TCP forwarder that can stop forwarding with its connections open: what a paused or cut-off replica is."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._hearing = asyncio.Event()
        self._hearing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.endpoint = ""

    async def start(self) -> DeafProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.endpoint = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def go_deaf(self) -> None:
        self._hearing.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._target)
        self._writers += [writer, up_writer]
        for source, sink in ((reader, up_writer), (up_reader, writer)):
            task = asyncio.create_task(self._pipe(source, sink))
            self._tasks.add(task)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            await self._hearing.wait()
            sink.write(data)
        sink.close()

    async def stop(self) -> None:
        assert self._server is not None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _close(self._server, self._writers)


class Silent:
    """A listener that takes connections and never says a word."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.endpoint = ""

    async def start(self) -> Silent:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.endpoint = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)

    async def stop(self) -> None:
        assert self._server is not None
        await _close(self._server, self._writers)


async def _close(server: asyncio.Server, writers: list[asyncio.StreamWriter]) -> None:
    server.close()
    for writer in writers:
        writer.transport.abort()
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
    await server.wait_closed()
