"""Owner garbage collection: pure decisions from an object and what is known of its owners and dependents.

Owns the rules: an object whose owners are all gone goes too; an owner deleted in the foreground waits for the
dependents that block it; an orphaning owner lets its dependents go first. Identity is the uid, never the name alone.
Must not know: the API, how owners were looked up.

Kubernetes' rule of caution is kept: an owner of a kind this API does not know counts as present.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from controlplane.pb.k8s.meta_v1_pb2 import ObjectMeta, OwnerReference

__all__ = [
    "FOREGROUND",
    "ORPHAN",
    "Delete",
    "DropFinalizer",
    "DropOwners",
    "Keep",
    "OwnerState",
    "Verdict",
    "decide_dependent",
    "decide_owner",
]

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"


class OwnerState(Enum):
    """What became of an owner reference."""

    PRESENT = "present"
    #: Being deleted in the foreground: it waits for its dependents.
    WAITING = "waiting"
    #: No object with that uid.
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Keep:
    """Nothing to do."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the object with this propagation policy."""

    propagation_policy: str


@dataclass(frozen=True, slots=True)
class DropOwners:
    """Remove the references with these uids: others still own the object."""

    uids: frozenset[str]


@dataclass(frozen=True, slots=True)
class DropFinalizer:
    """The owner need not wait any longer."""

    finalizer: str


Verdict = Keep | Delete | DropOwners | DropFinalizer


def decide_dependent(
    meta: ObjectMeta, owners: Sequence[tuple[OwnerReference, OwnerState]], *, has_dependents: bool
) -> Verdict:
    """What happens to an object given what became of its owners.

    Args:
        meta: the object's.
        owners: each of its owner references with the owner's state.
        has_dependents: whether other objects name it as their owner.
    """
    if not owners or meta.HasField("deletionTimestamp"):
        return Keep()
    lost = frozenset(ref.uid for ref, state in owners if state is not OwnerState.PRESENT)
    if not lost:
        return Keep()
    if any(state is OwnerState.PRESENT for _, state in owners):
        return DropOwners(lost)
    if any(state is OwnerState.WAITING for _, state in owners) and has_dependents:
        return Delete("Foreground")
    if ORPHAN in meta.finalizers:
        return Delete("Orphan")
    if FOREGROUND in meta.finalizers:
        return Delete("Foreground")
    return Delete("Background")


def decide_owner(meta: ObjectMeta, dependents: Sequence[ObjectMeta]) -> Verdict:
    """What happens to an object that is being deleted, given the objects that name it as their owner.

    Dependents of an orphaning owner lose their reference first (the caller's doing, see :class:`DropOwners`); the
    finalizer goes when none is left. A foreground owner waits only for dependents that say they block it.
    """
    if not meta.HasField("deletionTimestamp"):
        return Keep()
    if ORPHAN in meta.finalizers:
        return DropFinalizer(ORPHAN) if not dependents else Keep()
    if FOREGROUND in meta.finalizers:
        blocking = any(ref.uid == meta.uid and ref.blockOwnerDeletion for d in dependents for ref in d.ownerReferences)
        return Keep() if blocking else DropFinalizer(FOREGROUND)
    return Keep()
