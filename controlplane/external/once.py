"""Exactly once on a store that remembers no request ids: the transaction leaves a marker of its own. Pure.

A write under a request id becomes a transaction that does nothing if the id's marker is there, and writes it with the
rest if it is not. However often it is sent, by whichever process, it takes effect once; sent again, it reads the marker
instead, which tells the revision and the branch of the first time. Markers hang on a lease and go by themselves.

What a repeated write answers: whether it succeeded and at which revision, as the first time. Counts of deleted keys and
previous values are not remembered, so a write that *reads* in a branch that writes is not made repeatable.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from controlplane.pb.etcd import rpc_pb2 as e

__all__ = ["MARKER_PREFIX", "repeatable", "unwrap", "wrap"]

#: One key per request id that took effect a short while ago.
MARKER_PREFIX: Final = b"/quarterdeck/requests/"
_OPS_MAX: Final = 100  # of etcd's 128 per transaction, which nesting and the marker count against
_BRANCHES: Final = {True: b"success", False: b"failure"}


def repeatable(request: e.TxnRequest) -> bool:
    """Whether the answer of a repetition can be told from the marker alone."""
    return max(len(request.success), len(request.failure), len(request.compare)) <= _OPS_MAX and all(
        not _writes(branch) or all(op.WhichOneof("request") in _PLAIN for op in branch)
        for branch in (request.success, request.failure)
    )


_PLAIN: Final = frozenset({"request_put", "request_delete_range"})


def _writes(branch: Iterable[e.RequestOp]) -> bool:
    return any(op.WhichOneof("request") != "request_range" for op in branch)


def wrap(request: e.TxnRequest, request_id: bytes, lease: int) -> e.TxnRequest:
    """The transaction that does ``request`` once."""
    marker = MARKER_PREFIX + request_id.hex().encode()
    marked = e.TxnRequest()
    marked.CopyFrom(request)
    for succeeded, branch in ((True, marked.success), (False, marked.failure)):
        if _writes(branch):
            put = e.PutRequest(key=marker, value=_BRANCHES[succeeded], lease=lease)
            branch.append(e.RequestOp(request_put=put))
    absent = e.Compare(key=marker, target=e.Compare.CREATE, result=e.Compare.EQUAL, create_revision=0)
    return e.TxnRequest(
        compare=[absent],
        success=[e.RequestOp(request_txn=marked)],
        failure=[e.RequestOp(request_range=e.RangeRequest(key=marker))],
    )


def unwrap(request: e.TxnRequest, response: e.TxnResponse) -> e.TxnResponse:
    """The answer to ``request``, from the answer to what :func:`wrap` made of it."""
    answer = e.TxnResponse()
    if response.succeeded:
        answer.CopyFrom(response.responses[0].response_txn)
        answer.header.CopyFrom(response.header)
        branch = request.success if answer.succeeded else request.failure
        del answer.responses[len(branch) :]
        return answer
    marker = response.responses[0].response_range.kvs[0]
    answer.succeeded = marker.value == _BRANCHES[True]
    answer.header.CopyFrom(response.header)
    answer.header.revision = marker.mod_revision
    for op in request.success if answer.succeeded else request.failure:
        done = answer.responses.add()
        if op.HasField("request_put"):
            done.response_put.header.revision = marker.mod_revision
        else:
            done.response_delete_range.header.revision = marker.mod_revision
    return answer
