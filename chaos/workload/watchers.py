"""Watches of every kind on shared keys: one over everything through the whole run, with what keys were before and asked
for progress; one that reads slowly; one of a single key; short ones that begin in the future, or where compaction ends.

Owns resuming and what is recorded of each response. Also the compaction that makes a boundary there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

from chaos.history import Recorder
from chaos.records import Change, Op, Outcome, Told
from chaos.workload.pace import Process
from chaos.workload.shared import Newest
from controlplane.base.clock import Clock
from controlplane.client import ApiError, EtcdClient, UnavailableError
from controlplane.client import etcd_client as etcd
from controlplane.client.etcd_client import WatchStream
from controlplane.pb.etcd import kv_pb2, rpc_pb2

__all__ = ["Brief", "Compactor", "Follower", "Kind"]

_RESUME_PAUSE_S: Final = 0.02
_PROGRESS_EVERY_S: Final = 0.7
#: Short watches: for so long each, and so far ahead of what was written when they begin in the future.
_BRIEF_S: Final = 2.5
_AHEAD: Final = 40
_COMPACT_EVERY_S: Final = 4.0
#: What is younger than this stays: who resumes within it is not refused.
_KEEP_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What sort of watch. ``slow_s``: waited before each response is taken; ``single``: of this key, not a prefix."""

    name: str
    key: str
    single: bool = False
    prev_kv: bool = False
    progress: bool = False
    slow_s: float = 0.0


class Follower:
    """One watch through the whole run: resumed after the last revision when a replica goes, or from where the store
    still has history when told of a compaction."""

    def __init__(self, kind: Kind, client: EtcdClient, recorder: Recorder, clock: Clock) -> None:
        self._watch = _Watch(kind, client, recorder, clock)
        self._clock = clock

    async def run(self, start_revision: int) -> None:
        """From that revision on, until cancelled."""
        self._watch.next = start_revision
        while True:
            try:
                await self._watch.follow()
            except ApiError:
                await self._clock.sleep(_RESUME_PAUSE_S)

    @property
    def changed(self) -> int:
        """The last revision of which a change has come; a deletion is one."""
        return self._watch.changed

    def hurry(self) -> None:
        """Be slow no more: the end is near."""
        self._watch.slow_s = 0.0

    async def reached(self, revision: int, timeout_s: float) -> bool:
        """Whether everything up to that revision has come, waiting at most that long."""
        deadline_s = self._clock.monotonic() + timeout_s
        while self._watch.next <= revision:
            if self._clock.monotonic() > deadline_s:
                return False
            await self._clock.sleep(_RESUME_PAUSE_S)
        return True


class Brief:
    """Short watches, one after the other: from a revision that is not written yet, from the first one that compaction
    has left, and from one before it, which must be refused."""

    def __init__(self, prefix: str, client: EtcdClient, newest: Newest, recorder: Recorder, clock: Clock) -> None:
        self._prefix = prefix
        self._client = client
        self._newest = newest
        self._recorder = recorder
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled."""
        number = 0
        while True:
            await self._clock.sleep(0.1)
            if not self._newest.revision:
                continue
            number += 1
            starts = {"future": self._newest.revision + _AHEAD}
            if self._newest.compacted:
                starts |= {"boundary": self._newest.compacted, "gone": self._newest.compacted - 1}
            names = list(starts)
            name = names[number % len(names)]
            kind = Kind(f"{name}-{number}", self._prefix, prev_kv=True, progress=name != "future")
            watch = _Watch(kind, self._client, self._recorder, self._clock, brief=True)
            watch.next = starts[name]
            try:
                async with asyncio.timeout(_BRIEF_S):
                    await watch.follow()
            except (ApiError, TimeoutError):
                pass  # over, on purpose or with its replica: the next one follows


class _Watch:
    """A watch and its resumptions, recorded."""

    def __init__(
        self, kind: Kind, client: EtcdClient, recorder: Recorder, clock: Clock, *, brief: bool = False
    ) -> None:
        self._kind = kind
        self._client = client
        self._recorder = recorder
        self._clock = clock
        self._brief = brief
        self._segment = 0
        self.slow_s = kind.slow_s
        #: The first revision that has not come.
        self.next = 0
        #: The last revision of which a change has come.
        self.changed = 0

    async def follow(self) -> None:
        """One watch, until it is refused or its replica goes. Raises ApiError."""
        self._segment += 1
        key = self._kind.key.encode()
        end = b"" if self._kind.single else etcd.prefix_end(key)
        async with self._client.watch(
            key, range_end=end, start_revision=self.next, prev_kv=self._kind.prev_kv
        ) as stream:
            asking = asyncio.create_task(self._ask(stream)) if self._kind.progress else None
            try:
                asked = self.next
                async for response in stream:
                    self._note(response, asked)
                    if response.canceled:
                        self.next = max(self.next, response.compact_revision)
                        await self._clock.sleep(_RESUME_PAUSE_S)
                        return
                    if self.slow_s:
                        await self._clock.sleep(self.slow_s)
            finally:
                if asking is not None:
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self, stream: WatchStream) -> None:
        while True:
            await self._clock.sleep(_PROGRESS_EVERY_S)
            try:
                await stream.request_progress()
            except UnavailableError:
                return  # its reader is told why

    def _note(self, response: rpc_pb2.WatchResponse, asked: int) -> None:
        changes = [_change(event) for event in response.events]
        # An answer about progress has no events; nor have those that say created or canceled.
        progress = not changes and not response.created and not response.canceled
        self._recorder.told(
            Told(
                self._kind.name, self._segment, self._recorder.now_ns(), response.header.revision, changes,
                created=response.created,
                prefix=self._kind.key if response.created else "",
                single=self._kind.single and response.created,
                start_revision=asked if response.created else 0,
                prev_kv=self._kind.prev_kv and response.created,
                brief=self._brief and response.created,
                progress=progress,
                canceled=response.canceled,
                compact_revision=response.compact_revision,
            )
        )  # fmt: skip
        for change in changes:
            self.next = max(self.next, change.mod_revision + 1)
            self.changed = max(self.changed, change.mod_revision)
        if progress:
            self.next = max(self.next, response.header.revision + 1)


def _change(event: kv_pb2.Event) -> Change:
    kv = event.kv
    before = event.prev_kv if event.HasField("prev_kv") else None
    return Change(
        kv.key.decode(),
        None if event.type == kv_pb2.Event.DELETE else kv.value.decode(),
        kv.create_revision,
        kv.mod_revision,
        kv.version,
        before.value.decode() if before else None,
        before.mod_revision if before else 0,
    )


class Compactor:
    """Compacts what is some time old, again and again."""

    def __init__(self, client: EtcdClient, newest: Newest, recorder: Recorder, clock: Clock) -> None:
        self._client = client
        self._newest = newest
        self._process = Process("c1", recorder)
        self._clock = clock
        self._past: deque[tuple[float, int]] = deque()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._clock.sleep(_COMPACT_EVERY_S)
            now_s = self._clock.monotonic()
            self._past.append((now_s, self._newest.revision))
            target = 0
            while self._past and self._past[0][0] < now_s - _KEEP_S:
                target = self._past.popleft()[1]
            if target > self._newest.compacted:
                await self._compact(target)

    async def _compact(self, revision: int) -> None:
        def done(op_id: int, call_ns: int, return_ns: int, result: etcd.Outcome[rpc_pb2.CompactionResponse]) -> Op:
            outcome: Outcome = "ok"
            error, at = "", 0
            if isinstance(result, etcd.Acknowledged):
                at = result.revision
                self._newest.compacted = revision
            elif isinstance(result, etcd.Failed):
                outcome, error = "fail", f"{result.code.name}: {result.message}"
            else:
                outcome, error = "info", result.reason
            return Op(
                op_id, self._process.name, "compact", result.endpoint, "", call_ns, return_ns, outcome,
                revision=at, error=error, part="compact", asked=revision,
            )  # fmt: skip

        lost = Op(0, self._process.name, "compact", "", "", 0, 0, "info", part="compact", asked=revision)
        await self._process.run(lambda: self._client.compact(revision), done, lost)
