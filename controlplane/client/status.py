"""gRPC statuses of a replica as ApiErrors. The only module of clients that reads error details off the wire."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
from google.rpc import status_pb2  # type: ignore[import-untyped]

from controlplane.base.errors import Code
from controlplane.client.interface import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ExpiredError,
    FencedError,
    FieldCause,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from controlplane.pb.k8s import meta_v1_pb2
from controlplane.transport.interceptors import OUTCOME_KEY, OUTCOME_UNKNOWN

__all__ = ["to_api_error", "was_definite"]

_DETAILS_KEY: Final = "grpc-status-details-bin"
_BY_CODE: Final[dict[Code, type[ApiError]]] = {
    Code.NOT_FOUND: NotFoundError,
    Code.ALREADY_EXISTS: AlreadyExistsError,
    Code.ABORTED: ConflictError,
    Code.INVALID_ARGUMENT: InvalidError,
    Code.OUT_OF_RANGE: ExpiredError,
    Code.UNAVAILABLE: UnavailableError,
    Code.DEADLINE_EXCEEDED: UnavailableError,
    # A channel or server that is closing cancels what is in flight.
    Code.CANCELLED: UnavailableError,
}
_FENCED: Final = "Fenced"


def to_api_error(error: grpc.aio.AioRpcError, *, write: bool) -> ApiError:
    """The error of a failed RPC. A write whose fate nobody told is of unknown outcome."""
    code = Code(error.code().value[0])
    details = _details(error)
    unknown = write and not was_definite(error)
    kind = _BY_CODE.get(code, ApiError)
    if code is Code.FAILED_PRECONDITION and details.reason == _FENCED:
        kind = FencedError
    causes = [FieldCause(c.field, c.message, c.reason) for c in details.details.causes]
    message = error.details() or code.name
    if code is Code.DEADLINE_EXCEEDED and "Deadline Exceeded" in message:
        # The words of gRPC's own timer: no replica said anything.
        message = "a replica took the request and has not answered in time; it may be cut off from a quorum"
    return kind(code, message, reason=details.reason, causes=causes, unknown_outcome=unknown)


def was_definite(error: grpc.aio.AioRpcError) -> bool:
    """Whether the call is known to have had no effect: a replica says so, or it never left this process."""
    outcome = _trailer(error, OUTCOME_KEY)
    if outcome is not None:
        return outcome != OUTCOME_UNKNOWN
    if error.code() not in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    ):
        return True
    # gRPC has no better sign that no connection could be made; any other text leaves the outcome unknown.
    return (error.details() or "").startswith("failed to connect to all addresses")


def _details(error: grpc.aio.AioRpcError) -> meta_v1_pb2.Status:
    found = meta_v1_pb2.Status()
    raw = _trailer(error, _DETAILS_KEY)
    if isinstance(raw, bytes):
        for detail in status_pb2.Status.FromString(raw).details:
            if detail.Is(meta_v1_pb2.Status.DESCRIPTOR):
                detail.Unpack(found)
    return found


def _trailer(error: grpc.aio.AioRpcError, key: str) -> str | bytes | None:
    trailers: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()
    return next((value for name, value in trailers if name == key), None)
