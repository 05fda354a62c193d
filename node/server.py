"""The agent's own gRPC port: container logs, read from the node's disk when a replica asks on a client's behalf."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, ConfigError, StatusError
from controlplane.client.tls import Identity, IdentityKind, Reloader, caller_of
from controlplane.pb.quarterdeck.v1.api_pb2 import LogChunk, LogsRequest
from controlplane.pb.quarterdeck.v1.node_pb2_grpc import AgentServicer, add_AgentServicer_to_server
from node import logs
from node.pods import NodePods
from node.runtime.base import ContainerState, Runtime

__all__ = ["AgentServer"]

log = logging.getLogger("quarterdeck.audit")

_CHUNK_BYTES: Final = 64 * 1024
_GRPC_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class AgentServer(AgentServicer):
    """Serves ``quarterdeck.v1.Agent`` on one address."""

    def __init__(self, pods: NodePods, runtime: Runtime, clock: Clock, tls: Reloader | None = None) -> None:
        """``tls``: this node's certificate; callers must then show that of a replica or an administrator."""
        self._tls = tls
        self._pods = pods
        self._runtime = runtime
        self._clock = clock
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self, listen: str) -> None:
        """Bind and serve. Raises ConfigError if the address cannot be had."""
        # Without SO_REUSEPORT a second agent on this port fails instead of sharing it.
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        add_AgentServicer_to_server(self, self._server)
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(listen)
            else:
                self.port = self._server.add_secure_port(listen, self._tls.server_credentials())
        except RuntimeError as error:
            raise ConfigError(
                f"--listen {listen}: the address cannot be bound; stop what uses the port, or choose another"
            ) from error
        await self._server.start()

    async def stop(self) -> None:
        """Close the port; streams end."""
        if self._server is not None:
            await self._server.stop(grace=0.2)
            self._server = None

    async def Logs(  # noqa: N802 - the generated name
        self, request: LogsRequest, context: grpc.aio.ServicerContext[LogsRequest, LogChunk]
    ) -> AsyncIterator[LogChunk]:
        """A container's log: what is kept, then, with ``follow``, what is printed until the run ends."""
        try:
            if self._tls is not None:
                _check_caller(caller_of(context))
            container_id = self._container_id(request)
        except StatusError as error:
            await context.abort(_GRPC_CODES[int(error.code)], error.message)
        async for chunk in self._stream(container_id, request):
            yield LogChunk(data=chunk)

    def _container_id(self, request: LogsRequest) -> str:
        name = f"{request.namespace}/{request.pod}"
        if request.timestamps:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                "timestamps: containers of the process runtime write their logs themselves, so lines carry no time",
            )
        worker = self._pods.find(request.namespace, request.pod)
        if worker is None:
            raise StatusError(Code.NOT_FOUND, f"pod {name} is not on this node")
        names = [c.name for c in (*worker.pod.spec.initContainers, *worker.pod.spec.containers)]
        container = request.container
        if not container:
            if len(worker.pod.spec.containers) > 1:
                raise StatusError(
                    Code.INVALID_ARGUMENT, f"pod {name} has several containers; choose one of: {', '.join(names)}"
                )
            container = worker.pod.spec.containers[0].name
        if container not in names:
            raise StatusError(
                Code.NOT_FOUND, f"no container {container!r} in pod {name}; there are: {', '.join(names)}"
            )
        container_id = worker.container_id(container, previous=request.previous)
        if container_id is None:
            what = "has no previous run" if request.previous else "has not started yet"
            raise StatusError(Code.NOT_FOUND, f"container {container!r} in pod {name} {what}")
        return container_id

    async def _stream(self, container_id: str, request: LogsRequest) -> AsyncIterator[bytes]:
        path = self._runtime.status(container_id).log_path
        files = logs.generations(path)
        plan = logs.tail(files, request.tail_lines) if request.HasField("tail_lines") else [(f, 0) for f in files]
        offset = 0
        for file, begin in plan:
            if file == path:
                offset = begin
                continue
            async for chunk in logs.follow(file, begin, ended=_yes, clock=self._clock, chunk_bytes=_CHUNK_BYTES):
                yield chunk
        ended = self._has_ended(container_id) if request.follow else _yes
        async for chunk in logs.follow(path, offset, ended=ended, clock=self._clock, chunk_bytes=_CHUNK_BYTES):
            yield chunk

    def _has_ended(self, container_id: str) -> Any:
        def ended() -> bool:
            known = {info.id: info.state for info in self._runtime.list_containers()}
            return known.get(container_id, ContainerState.EXITED) is ContainerState.EXITED

        return ended


def _check_caller(caller: Identity | None) -> None:
    if caller is None or not (caller.kind is IdentityKind.MEMBER or caller.is_admin):
        log.warning("event=denied caller=%r method=Logs", str(caller))
        raise StatusError(Code.PERMISSION_DENIED, f"an agent answers replicas and administrators, not {caller}")


def _yes() -> bool:
    return True
