"""The gRPC service ``quarterdeck.v1.Resources``: requests in, bytes out, errors as rich statuses.

Owns the wire: gets, lists and watches leave as the bytes the store holds, never parsed here. Errors carry
``google.rpc.Status`` details: Kubernetes' own ``Status`` (reason, causes), ErrorInfo and BadRequest, so that any client
finds the words it knows. Knows no rule of the API.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from controlplane.api import metrics
from controlplane.api.errors import ApiError, FieldCause
from controlplane.api.node_access import check_node_request
from controlplane.api.server import ApiServer
from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import Code, StatusError
from controlplane.pb.k8s import meta_v1_pb2
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.transport.callers import caller_of

__all__ = ["ERROR_DOMAIN", "SERVICE_NAMES", "add_services"]

#: Full names, for the health and reflection services.
SERVICE_NAMES: Final = ("quarterdeck.v1.Resources",)
#: ErrorInfo's domain: who defines the reasons.
ERROR_DOMAIN: Final = "quarterdeck"
#: Initial metadata of a write's answer, sent at once: a log index from before it was proposed.
LOG_INDEX_KEY: Final = "qd-log-index"
#: Trailers are small (gRPC's default is 8 KiB for all of them): longer texts and cause lists are cut.
_MESSAGE_CHARS_MAX: Final = 1_000
_CAUSES_CHARS_MAX: Final = 1_500

_Context = grpc.aio.ServicerContext[Any, Any]


def add_services(
    server: grpc.aio.Server,
    api: ApiServer,
    *,
    clock: Clock | None = None,
    log_index: Callable[[], int] | None = None,
) -> None:
    """Serve the resource API on ``server``. ``log_index``: of the last entry applied here, for stores with a log of
    ours: a write's client is told before anything is proposed, for its retries elsewhere (WriteOptions.born_index)."""
    service = _Service(api, clock or SystemClock(), log_index)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAMES[0], service.handlers()),))


class _Service:
    """One handler per method."""

    def __init__(self, api: ApiServer, clock: Clock, log_index: Callable[[], int] | None = None) -> None:
        self._log_index = log_index
        self._api = api
        self._clock = clock

    def handlers(self) -> dict[str, Any]:
        """Method name → handler."""
        api, pb = self._api, api_pb2
        return {
            "Get": self._unary(pb.GetRequest, api.get_bytes, "GET", kind="readOnly"),
            "List": self._unary(pb.ListRequest, api.list_bytes, "LIST", kind="readOnly", one=False),
            "Kinds": self._unary(pb.KindsRequest, api.kinds, "GET", kind="readOnly"),
            "Create": self._unary(pb.CreateRequest, api.create, "POST"),
            "Update": self._unary(pb.UpdateRequest, api.update, "PUT"),
            "UpdateStatus": self._unary(pb.UpdateRequest, api.update_status, "PUT", subresource="status"),
            "Patch": self._unary(pb.PatchRequest, api.patch, "PATCH"),
            "Apply": self._unary(pb.ApplyRequest, api.apply, "APPLY"),
            "Delete": self._unary(pb.DeleteRequest, api.delete, "DELETE"),
            "Bind": self._unary(pb.BindRequest, api.bind, "POST", subresource="binding", resource="pods"),
            "Evict": self._unary(pb.EvictRequest, api.evict, "POST", subresource="eviction", resource="pods"),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._watch, request_deserializer=pb.WatchRequest.FromString, response_serializer=_as_bytes
            ),
            "Logs": grpc.unary_stream_rpc_method_handler(
                self._logs, request_deserializer=pb.LogsRequest.FromString, response_serializer=_as_bytes
            ),
        }

    def _unary(
        self,
        request_type: type[Message],
        method: Callable[[Any], Awaitable[Message | bytes]],
        verb: str,
        *,
        kind: str = "mutating",
        subresource: str = "",
        resource: str = "",
        one: bool = True,
    ) -> Any:
        path = f"{verb} {subresource}".rstrip()

        async def handle(request: Any, context: _Context) -> Message | bytes:
            wrapped = request.object.WhichOneof("kind") if hasattr(request, "object") else ""
            named = resource or getattr(request, "resource", "")
            part = subresource or getattr(request, "subresource", "")
            part = part if part in ("", "status", "binding", "eviction") else "unknown"
            labels = metrics.labels_of(verb, part, named, wrapped or "", one=one)
            dry_run = "All" if hasattr(request, "options") and request.options.dry_run else ""
            begin_s = self._clock.monotonic()
            code = Code.INTERNAL
            with metrics.INFLIGHT.labels(kind).track_inprogress(), _rich_errors():
                try:
                    check_node_request(caller_of(context), path, request)
                    if self._log_index is not None and kind == "mutating" and request.options.request_id:
                        await context.send_initial_metadata(((LOG_INDEX_KEY, str(self._log_index())),))
                    answer = await method(request)
                    code = Code.OK
                    return answer
                except StatusError as error:
                    code = error.code
                    raise
                finally:
                    metrics.REQUESTS.labels(*labels, dry_run, metrics.http_code(code)).inc()
                    took_s = self._clock.monotonic() - begin_s
                    metrics.REQUEST_SECONDS.labels(*labels).observe(took_s)
                    metrics.REQUEST_SLI_SECONDS.labels(*labels).observe(took_s)

        return grpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=request_type.FromString, response_serializer=_as_bytes
        )

    async def _watch(self, request: api_pb2.WatchRequest, context: _Context) -> AsyncIterator[bytes]:
        labels = metrics.labels_of("WATCH", "", request.resource, "", one=False)
        sent = metrics.WATCH_EVENTS.labels(*labels[1:4])
        with metrics.LONGRUNNING.labels(*labels).track_inprogress(), _rich_errors():
            check_node_request(caller_of(context), "WATCH", request)
            async with self._api.watch_bytes(request) as events:
                # The client learns from the headers that the watch is open, though there may be no event for long.
                await context.send_initial_metadata(())
                async for event in events:
                    sent.inc()
                    yield event

    async def _logs(self, request: api_pb2.LogsRequest, context: _Context) -> AsyncIterator[api_pb2.LogChunk]:
        labels = metrics.labels_of("CONNECT", "log", "pods", "", one=True)
        with metrics.LONGRUNNING.labels(*labels).track_inprogress(), _rich_errors():
            async for chunk in self._api.logs(request):
                yield chunk


def _as_bytes(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


# -- errors ---------------------------------------------------------------------------------------------------------


class _RichError(StatusError):
    """An ApiError on its way out: with the trailing metadata that carries its details."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.code, _cut(error.message), unknown_outcome=error.unknown_outcome)
        details = _details(error, self.message)
        self.trailing_metadata = (("grpc-status-details-bin", details.SerializeToString()),)


@contextmanager
def _rich_errors() -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        raise _RichError(error) from error


def _details(error: ApiError, message: str) -> Any:
    status = status_pb2.Status(code=int(error.code), message=message)
    causes = _fitting(error.causes)
    status.details.add().Pack(
        meta_v1_pb2.Status(
            status="Failure",
            message=message,
            reason=error.reason,
            code=int(metrics.http_code(error.code)),
            details=meta_v1_pb2.StatusDetails(
                causes=[meta_v1_pb2.StatusCause(reason=c.reason, message=c.message, field=c.field) for c in causes]
            ),
        )
    )
    if error.reason:
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN))
    if causes:
        violations = [error_details_pb2.BadRequest.FieldViolation(field=c.field, description=c.message) for c in causes]
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=violations))
    return status


def _fitting(causes: tuple[FieldCause, ...]) -> list[FieldCause]:
    kept: list[FieldCause] = []
    room = _CAUSES_CHARS_MAX
    for cause in causes:
        shown = FieldCause(cause.field[:200], cause.message[:400], cause.reason)
        room -= len(shown.field) + len(shown.message) + len(shown.reason)
        if room < 0:
            break
        kept.append(shown)
    return kept


def _cut(message: str) -> str:
    return message if len(message) <= _MESSAGE_CHARS_MAX else f"{message[: _MESSAGE_CHARS_MAX - 3]}..."
