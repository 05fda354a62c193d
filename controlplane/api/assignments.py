"""The pods of one node, as its session is told them: first all, then differences.

Owns what the agent was told already. Pure bookkeeping on one session; knows no stream. The full list comes from a
linearizable read, the differences from the replica's pod cache, which may be older: whatever the list has already
is not told again, and nothing the list has is taken back by an older event, because a pod's uid never returns and
its versions only grow.

What waits to be told is kept per pod, newest state only, so a slow agent costs a bounded amount of memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.v1 import node_pb2

__all__ = ["ASSIGNMENTS_PODS_MAX", "AssignmentLog"]

#: Pods in one message; more follow in the next.
ASSIGNMENTS_PODS_MAX: Final = 200


class AssignmentLog:
    """What one agent was told, and what it has still to be told."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}  # uid -> version of the state told or waiting to be
        self._upserts: dict[str, Pod] = {}
        self._removed: dict[str, None] = {}
        self._listed: int | None = None  # revision of the full list; None before it
        self._revision = 0

    def start(self, pods: Iterable[Pod], revision: int) -> node_pb2.Assignments:
        """The full list, read at ``revision``. Differences noted before it are sorted in."""
        pods = list(pods)
        self._told = {pod.metadata.uid: _version(pod) for pod in pods}
        early_upserts, self._upserts = self._upserts, {}
        early_removed, self._removed = self._removed, {}
        self._listed = self._revision = revision
        for pod in early_upserts.values():
            self.changed(None, pod)
        for uid in early_removed:
            self._gone(uid)
        return node_pb2.Assignments(revision=revision, full=True, upserts=pods)

    def changed(self, old: Pod | None, new: Pod | None) -> bool:
        """A pod of this node changed in the cache. True: there is something to tell."""
        if new is None:
            return old is not None and self._gone(old.metadata.uid)
        uid, version = new.metadata.uid, _version(new)
        if self._listed is None:
            self._upserts[uid] = new
            return False
        told = self._told.get(uid)
        # Not in the list, and older than it: the pod was gone by then, and the cache is behind.
        if version <= (self._listed if told is None else told):
            return False
        news = told is None or old is None or _concerns_agent(old, new)
        self._told[uid] = version
        if news or uid in self._upserts:
            self._upserts[uid] = new
        return news

    def take(self) -> node_pb2.Assignments | None:
        """What there is to tell now, at most a message full; None when nothing."""
        if self._listed is None or not (self._upserts or self._removed):
            return None
        uids = list(self._upserts)[:ASSIGNMENTS_PODS_MAX]
        pods = [self._upserts.pop(uid) for uid in uids]
        removed = list(self._removed)
        self._removed.clear()
        self._revision = max([self._revision, *(_version(pod) for pod in pods)])
        return node_pb2.Assignments(revision=self._revision, upserts=pods, removed_uids=removed)

    def _gone(self, uid: str) -> bool:
        self._upserts.pop(uid, None)
        if self._listed is None:
            self._removed[uid] = None
            return False
        if self._told.pop(uid, None) is None:
            return False
        self._removed[uid] = None
        return True


def _version(pod: Pod) -> int:
    return int(pod.metadata.resourceVersion or 0)


def _concerns_agent(old: Pod, new: Pod) -> bool:
    """Whether a change is news to the agent: statuses are its own words coming back."""
    a, b = old.metadata, new.metadata
    return (
        a.deletionTimestamp != b.deletionTimestamp
        or a.deletionGracePeriodSeconds != b.deletionGracePeriodSeconds
        or old.spec != new.spec
        or a.labels != b.labels
        or a.annotations != b.annotations
    )
