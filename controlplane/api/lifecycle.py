"""What happens to an object between its creation and its end. Pure: old and new state in, new state out.

Owns identity (uid, times, generation), which part of an update counts (spec or status), graceful deletion and
finalizers. Source: Kubernetes API conventions, and "Finalizers", "Garbage Collection", "Pod Lifecycle" of its
documentation.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

from controlplane.api.errors import ApiError, ConflictError, bad_request
from controlplane.api.faults import Faults
from controlplane.api.names import GENERATED_SUFFIX_CHARS, check_path_segment
from controlplane.api.registry import Kind, invalid
from controlplane.base.errors import Code
from controlplane.base.rand import Rand

__all__ = [
    "PROTECTED_NAMESPACES",
    "begin_deletion",
    "conflict",
    "is_gone",
    "merge_status",
    "merge_update",
    "prepare_create",
]

#: Namespaces that exist as long as the cluster does.
PROTECTED_NAMESPACES: Final = ("default", "kube-system")
_FOREGROUND: Final = "foregroundDeletion"
_ORPHAN: Final = "orphan"
_POLICY_FINALIZERS: Final = {"": None, "Background": None, "Foreground": _FOREGROUND, "Orphan": _ORPHAN}
#: No vowels (no words), no 0, 1 or 3 (no look-alikes).
_SUFFIX_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
_GENERATED_NAME_MAX: Final = 63


def prepare_create(kind: Kind, obj: Any, *, now_s: int, rand: Rand) -> None:
    """Make a client's object a new one, in place: identity, times, defaults, first status; then validate.

    Raises:
        InvalidError: it breaks a rule.
    """
    meta = obj.metadata
    faults = Faults()
    if meta.resourceVersion:
        raise bad_request("resourceVersion should not be set on objects to be created")
    if not meta.name and meta.generateName:
        suffix = "".join(
            _SUFFIX_ALPHABET[rand.randint(0, len(_SUFFIX_ALPHABET) - 1)] for _ in range(GENERATED_SUFFIX_CHARS)
        )
        meta.name = meta.generateName[: _GENERATED_NAME_MAX - GENERATED_SUFFIX_CHARS] + suffix
    if not meta.name:
        faults.required("metadata.name", "name or generateName is required")
    else:
        faults.check("metadata.name", meta.name, check_path_segment(meta.name))
    if kind.namespaced and not meta.namespace:
        faults.required("metadata.namespace", f"a {kind.kind} lives in a namespace")
    if not kind.namespaced and meta.namespace:
        faults.forbidden("metadata.namespace", f"a {kind.kind} lives in no namespace")
    if faults.causes:
        raise invalid(kind, meta.name, faults)
    for name in ("selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "managedFields"):
        meta.ClearField(name)
    meta.uid = str(uuid.UUID(bytes=rand.token(16), version=4))
    meta.creationTimestamp.seconds = now_s
    meta.creationTimestamp.ClearField("nanos")
    if kind.has_generation:
        meta.generation = 1
    if kind.has_status and not kind.status_on_create:
        obj.ClearField("status")
    kind.default(obj)
    kind.on_create(obj)
    kind.check(obj)


def merge_update(kind: Kind, new: Any, old: Any) -> None:
    """Make a client's object the next state of ``old``, in place: everything but status is the client's.

    Raises:
        InvalidError: the object or the change breaks a rule.
        ConflictError: it is another object (uid).
    """
    _keep_identity(kind, new, old)
    if kind.has_status:
        if old.HasField("status"):
            new.status.CopyFrom(old.status)
        else:
            new.ClearField("status")
    kind.carry_over(new, old)
    kind.default(new)
    faults = Faults()
    if not kind.namespaced and new.metadata.namespace:
        faults.forbidden("metadata.namespace", f"a {kind.kind} lives in no namespace")
    added = [f for f in new.metadata.finalizers if f not in list(old.metadata.finalizers)]
    if old.metadata.HasField("deletionTimestamp") and added:
        faults.forbidden(
            "metadata.finalizers",
            f"no new finalizers can be added if the object is being deleted, found new finalizers {added}",
        )
    if faults.causes:
        raise invalid(kind, new.metadata.name, faults)
    kind.check_update(new, old)
    if kind.has_generation and _desired(kind, new) != _desired(kind, old):
        new.metadata.generation = old.metadata.generation + 1


def merge_status(kind: Kind, new: Any, old: Any) -> Any:
    """The next state of ``old`` when a client sets its status: everything else stays.

    Raises:
        ApiError: the kind has no status.
        ConflictError: it is another object (uid).
    """
    if not kind.has_status:
        raise ApiError(Code.INVALID_ARGUMENT, f"{kind.qualified} have no status to update", reason="MethodNotAllowed")
    _check_uid(kind, new, old)
    merged = kind.message()
    merged.CopyFrom(old)
    if new.status != old.status:  # an absent status equals an empty one
        merged.status.CopyFrom(new.status)
    return merged


def _desired(kind: Kind, obj: Any) -> Any:
    if kind.kind == "EndpointSlice":
        return list(obj.endpoints), list(obj.ports)
    return obj.spec


def _keep_identity(kind: Kind, new: Any, old: Any) -> None:
    _check_uid(kind, new, old)
    for name in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"):
        if old.metadata.HasField(name):
            if name.endswith("Timestamp"):
                getattr(new.metadata, name).CopyFrom(getattr(old.metadata, name))
            else:
                setattr(new.metadata, name, getattr(old.metadata, name))
        else:
            new.metadata.ClearField(name)
    if old.metadata.generateName and not new.metadata.generateName:
        new.metadata.generateName = old.metadata.generateName


def _check_uid(kind: Kind, new: Any, old: Any) -> None:
    if new.metadata.uid and new.metadata.uid != old.metadata.uid:
        raise conflict(
            kind,
            old.metadata.name,
            f"Precondition failed: UID in precondition: {new.metadata.uid}, UID in object meta: {old.metadata.uid}",
        )


def conflict(kind: Kind, name: str, why: str = "") -> ConflictError:
    """Kubernetes' conflict: re-read and decide again."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    return ConflictError(
        Code.ABORTED, f'Operation cannot be fulfilled on {kind.qualified} "{name}": {why}', reason="Conflict"
    )


# -- the end --------------------------------------------------------------------------------------------------------


def begin_deletion(kind: Kind, old: Any, *, grace_s: int | None, policy: str, now_s: int) -> Any:
    """The object as it is after a delete request: marked, and perhaps :func:`is_gone` at once.

    A pod that runs on a node keeps its grace period, until the node's agent deletes it with none; a repeated request
    may only shorten it. Whatever has finalizers waits for them.

    Args:
        grace_s: None is the pod's own ``terminationGracePeriodSeconds``.
        policy: propagation: Background (or empty), Foreground, Orphan.

    Raises:
        ApiError: the policy or the grace period is not allowed, or the namespace is protected.
    """
    if policy not in _POLICY_FINALIZERS:
        allowed = ", ".join(p for p in _POLICY_FINALIZERS if p)
        raise ApiError(
            Code.INVALID_ARGUMENT,
            f'propagation_policy: Unsupported value: "{policy}": supported values: {allowed}',
            reason="Invalid",
        )
    if grace_s is not None and grace_s < 0:
        raise ApiError(
            Code.INVALID_ARGUMENT,
            f"grace_period_seconds: Invalid value: {grace_s}: must be greater than or equal to 0",
            reason="Invalid",
        )
    if kind.kind == "Namespace" and old.metadata.name in PROTECTED_NAMESPACES:
        raise ApiError(
            Code.PERMISSION_DENIED,
            f'namespaces "{old.metadata.name}" is forbidden: this namespace may not be deleted',
            reason="Forbidden",
        )
    new = kind.message()
    new.CopyFrom(old)
    meta = new.metadata
    _set_policy(meta.finalizers, policy)
    grace_s = _grace_s(kind, new, grace_s)
    if not meta.HasField("deletionTimestamp"):
        meta.deletionTimestamp.seconds = now_s + grace_s
        meta.deletionGracePeriodSeconds = grace_s
        if meta.generation:
            meta.generation += 1
        if kind.kind == "Namespace":
            new.status.phase = "Terminating"
    elif grace_s < meta.deletionGracePeriodSeconds:
        meta.deletionTimestamp.seconds -= meta.deletionGracePeriodSeconds - grace_s
        meta.deletionGracePeriodSeconds = grace_s
    return new


def _set_policy(finalizers: Any, policy: str) -> None:
    if not policy:
        return
    wanted = _POLICY_FINALIZERS[policy]
    kept = [f for f in finalizers if f not in (_FOREGROUND, _ORPHAN)]
    if wanted is not None:
        kept.append(wanted)
    del finalizers[:]
    finalizers.extend(kept)


def _grace_s(kind: Kind, obj: Any, requested_s: int | None) -> int:
    if kind.kind != "Pod" or not obj.spec.nodeName or obj.status.phase in ("Succeeded", "Failed"):
        return 0
    if requested_s is not None:
        return requested_s
    return int(obj.spec.terminationGracePeriodSeconds) if obj.spec.HasField("terminationGracePeriodSeconds") else 30


def is_gone(kind: Kind, obj: Any) -> bool:
    """Whether nothing holds a deleted object any more: no grace, no finalizers."""
    meta = obj.metadata
    if not meta.HasField("deletionTimestamp") or meta.finalizers or meta.deletionGracePeriodSeconds:
        return False
    return kind.kind != "Namespace" or not obj.spec.finalizers
