"""Errors of the resource API: Kubernetes' reasons as types. ``controlplane.client`` re-exports them for its users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.base.errors import Code, StatusError

__all__ = [
    "AlreadyExistsError",
    "ApiError",
    "ConflictError",
    "ExpiredError",
    "FencedError",
    "FieldCause",
    "InvalidError",
    "NotFoundError",
    "UnavailableError",
    "bad_request",
]


@dataclass(frozen=True, slots=True)
class FieldCause:
    """One reason why an object was refused, as in Kubernetes' StatusCause."""

    field: str
    message: str
    reason: str = ""


class ApiError(StatusError):
    """A request to the resource API failed. ``reason`` is Kubernetes' word (NotFound, Conflict, Invalid, ...)."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        reason: str = "",
        causes: Sequence[FieldCause] = (),
        unknown_outcome: bool = False,
    ) -> None:
        super().__init__(code, message, unknown_outcome=unknown_outcome)
        self.reason = reason
        self.causes = tuple(causes)


class NotFoundError(ApiError):
    """No such object (gRPC NOT_FOUND)."""


class AlreadyExistsError(ApiError):
    """An object of that name exists (ALREADY_EXISTS)."""


class ConflictError(ApiError):
    """The resource version is not the stored one (ABORTED): re-read and decide again."""


class FencedError(ApiError):
    """The writer is no longer the leader it thinks it is (FAILED_PRECONDITION, reason Fenced)."""


class InvalidError(ApiError):
    """The object breaks a rule (INVALID_ARGUMENT); ``causes`` name the fields."""


class ExpiredError(ApiError):
    """The revision asked for is compacted, or from before a restore (OUT_OF_RANGE): list again."""


class UnavailableError(ApiError):
    """No replica could serve it in time (UNAVAILABLE or DEADLINE_EXCEEDED); see ``unknown_outcome`` for writes."""


def bad_request(message: str) -> ApiError:
    """The request itself makes no sense; says what was wanted."""
    return ApiError(Code.INVALID_ARGUMENT, message, reason="BadRequest")
