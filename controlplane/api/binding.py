"""Bind: pods to nodes, many in one transaction, each on its own condition.

One transaction holds a nested transaction per pod: "if the pod is still the one I read, store it with its node". So a
pod that changed meanwhile fails alone, and the fence is compared once for all. Source: etcd's nested txns; Kubernetes'
pods/binding subresource.

A retry needs no request id: a pod bound by the attempt before is found on its node, and counts as bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controlplane.api import storage
from controlplane.api.errors import ApiError
from controlplane.api.names import check_name_subdomain, check_path_segment
from controlplane.api.objects import fenced, kv_errors, mod_compare, put_op
from controlplane.api.registry import kind_of_resource
from controlplane.base.errors import Code
from controlplane.base.limits import MIB, TXN_OPS_MAX
from controlplane.pb.etcd import rpc_pb2 as etcd
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.store.kv import KVStore

__all__ = ["BINDINGS_MAX", "bind"]

#: Bindings in one request.
BINDINGS_MAX: Final = 10_000
#: Pods in one transaction: nested transactions share what their parent leaves of the store's limit, and need one each.
_TXN_PODS_MAX: Final = TXN_OPS_MAX - 1
#: Bytes of pods in one transaction: well below the store's limit of a request.
_TXN_BYTES_MAX: Final = MIB
_POD: Final = kind_of_resource("pods")
#: Reads are tried without a quorum round first; what fails on those is judged again on fresh ones.
_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class _Ready:
    """A pod that can be bound: where it stands among the requests, its key, the revision read, the new value."""

    index: int
    key: bytes
    mod_revision: int
    value: bytes


async def bind(
    kv: KVStore, bindings: Sequence[api_pb2.Binding], *, options: api_pb2.WriteOptions, now_s: int
) -> list[api_pb2.BindResult]:
    """One result per binding, in order. A pod already on that very node counts as bound.

    Raises:
        ApiError: a binding is malformed, or there are too many.
        FencedError: the writer leads no more. Earlier transactions of the same request may have bound some pods.
        UnavailableError: with ``unknown_outcome``, some pods may be bound.
    """
    _check(bindings)
    results: list[api_pb2.BindResult | None] = [None] * len(bindings)
    for round_number in range(_ROUNDS):
        pending = [i for i, result in enumerate(results) if result is None or not result.bound]
        if not pending:
            break
        ready: list[_Ready] = []
        for index, found in await _read(kv, bindings, pending, serializable=round_number == 0):
            judged = _judge(bindings[index], found, index, now_s)
            if isinstance(judged, _Ready):
                ready.append(judged)
            else:
                results[index] = judged
        if options.dry_run:
            for pod in ready:
                results[pod.index] = api_pb2.BindResult(bound=True)
            break
        for batch in _batches(ready):
            bound = await _commit(kv, batch, options)
            for pod, took_effect in zip(batch, bound, strict=True):
                results[pod.index] = (
                    api_pb2.BindResult(bound=True)
                    if took_effect
                    else _refused("Conflict", "the pod was modified while it was being bound")
                )
        if round_number and not ready:
            break  # judged on fresh reads: nothing left to try
    return [result or _refused("Conflict", "not judged") for result in results]


def _check(bindings: Sequence[api_pb2.Binding]) -> None:
    if len(bindings) > BINDINGS_MAX:
        raise _bad(f"bindings: {len(bindings)} in one request; at most {BINDINGS_MAX}")
    seen: set[tuple[str, str]] = set()
    for index, binding in enumerate(bindings):
        for name, value in (("namespace", binding.namespace), ("name", binding.name)):
            if problem := check_path_segment(value):
                raise _bad(f'bindings[{index}].{name}: Invalid value: "{value}": {problem}')
        if problem := check_name_subdomain(binding.node_name):
            raise _bad(f'bindings[{index}].node_name: Invalid value: "{binding.node_name}": {problem}')
        if (binding.namespace, binding.name) in seen:
            raise _bad(f'bindings[{index}]: Duplicate value: "{binding.namespace}/{binding.name}"')
        seen.add((binding.namespace, binding.name))


async def _read(
    kv: KVStore, bindings: Sequence[api_pb2.Binding], indexes: Sequence[int], *, serializable: bool
) -> list[tuple[int, Any]]:
    """The pods (None: no such pod), with the position of their binding."""
    found: list[tuple[int, Any]] = []
    for start in range(0, len(indexes), TXN_OPS_MAX):
        part = indexes[start : start + TXN_OPS_MAX]
        keys = [storage.key_of(_POD, bindings[i].namespace, bindings[i].name) for i in part]
        request = etcd.TxnRequest(
            success=[
                etcd.RequestOp(request_range=etcd.RangeRequest(key=key, serializable=serializable)) for key in keys
            ]
        )
        with kv_errors():
            response = await kv.txn(request)
        for index, key, answer in zip(part, keys, response.responses, strict=True):
            kvs = answer.response_range.kvs
            if not kvs:
                found.append((index, None))
                continue
            raw = storage.raw_message(_POD, key, kvs[0].value)
            found.append((index, storage.decode(_POD, raw, kvs[0].mod_revision)))
    return found


def _judge(binding: api_pb2.Binding, pod: Pod | None, index: int, now_s: int) -> _Ready | api_pb2.BindResult:
    if pod is None or (binding.uid and pod.metadata.uid != binding.uid):
        return _refused("NotFound", f'pods "{binding.name}" not found')
    if pod.spec.nodeName:
        if pod.spec.nodeName == binding.node_name:
            return api_pb2.BindResult(bound=True)
        return _refused("AlreadyBound", f'pod "{binding.name}" is already assigned to node "{pod.spec.nodeName}"')
    if pod.metadata.HasField("deletionTimestamp"):
        return _refused("Deleted", f'pod "{binding.name}" is being deleted, cannot be assigned to a node')
    if binding.resource_version and pod.metadata.resourceVersion != binding.resource_version:
        return _refused("Conflict", f'pod "{binding.name}" has been modified since it was read')
    revision = int(pod.metadata.resourceVersion)
    pod.spec.nodeName = binding.node_name
    _set_scheduled(pod, now_s)
    value, _ = storage.encode(_POD, pod)
    return _Ready(index, storage.key_of(_POD, binding.namespace, binding.name), revision, value)


def _set_scheduled(pod: Pod, now_s: int) -> None:
    condition = next((c for c in pod.status.conditions if c.type == "PodScheduled"), None)
    if condition is None:
        condition = pod.status.conditions.add(type="PodScheduled")
    condition.Clear()
    condition.type, condition.status = "PodScheduled", "True"
    condition.lastTransitionTime.seconds = now_s


def _batches(ready: Sequence[_Ready]) -> Iterator[list[_Ready]]:
    batch: list[_Ready] = []
    size = 0
    for pod in ready:
        if batch and (len(batch) >= _TXN_PODS_MAX or size + len(pod.value) > _TXN_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(pod)
        size += len(pod.value)
    if batch:
        yield batch


async def _commit(kv: KVStore, batch: Sequence[_Ready], options: api_pb2.WriteOptions) -> list[bool]:
    """Which pods of the batch were bound.

    Under no request id: the mod revisions it compares never come back, so that however often and however late it is
    tried, at most one attempt binds a pod, and whoever tries again reads that it is bound."""
    fence = options.fence if options.fence.key else None
    request = etcd.TxnRequest(
        compare=[mod_compare(fence.key, fence.mod_revision)] if fence else [],
        success=[
            etcd.RequestOp(
                request_txn=etcd.TxnRequest(
                    compare=[mod_compare(pod.key, pod.mod_revision)], success=[put_op(pod.key, pod.value)]
                )
            )
            for pod in batch
        ],
    )
    with kv_errors():
        response = await kv.txn(request)
    if not response.succeeded:
        assert fence is not None
        raise fenced(fence)
    return [answer.response_txn.succeeded for answer in response.responses]


def _refused(reason: str, message: str) -> api_pb2.BindResult:
    return api_pb2.BindResult(reason=reason, message=message)


def _bad(message: str) -> ApiError:
    return ApiError(Code.INVALID_ARGUMENT, message, reason="Invalid")
