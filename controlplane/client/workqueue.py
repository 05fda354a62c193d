"""WorkQueue: keys waiting to be reconciled. Deduplicated, delayed, retried with back-off, worked a few at a time.

Owns which key is worked when; knows nothing of what the keys name. Invariants (client-go's, which users know):

* A key is in the queue at most once however often it is added.
* A key is never worked by two workers at a time: added while it is worked, it is worked again afterwards.
* A key whose work failed or was cancelled is not lost: it comes back.

So a handler adds keys freely, and the work function re-reads the world instead of trusting what was added when.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from controlplane.base.aio import wait_event
from controlplane.base.clock import Clock
from controlplane.client import metrics
from controlplane.client.fenced import NotLeadingError
from controlplane.client.interface import ApiError, ConflictError, FencedError, UnavailableError

__all__ = ["WorkFn", "WorkQueue"]

log = logging.getLogger("quarterdeck.workqueue")

KeyT = TypeVar("KeyT", bound=Hashable)
#: Works one key. Returns seconds after which to look at it again, or None. Raising means: again, with back-off.
WorkFn = Callable[[KeyT], Awaitable[float | None]]

#: Nothing delayed is due: look again when told, or after this many seconds.
_IDLE_S = 3600.0


class WorkQueue(Generic[KeyT]):
    """A named queue of keys.

    Args:
        name: the label of its metrics.
        clock: for delays and durations.
        base_delay_s: wait after a key's first failure; doubles with each.
        max_delay_s: longest wait between two tries of a key.
    """

    def __init__(self, name: str, clock: Clock, *, base_delay_s: float = 0.01, max_delay_s: float = 10.0) -> None:
        self._name = name
        self._clock = clock
        self._base_delay_s = base_delay_s
        self._max_delay_s = max_delay_s
        self._waiting: deque[KeyT] = deque()
        self._dirty: dict[KeyT, float] = {}  # to be worked -> since when; a superset of _waiting
        self._processing: dict[KeyT, float] = {}  # being worked -> since when
        self._failures: dict[KeyT, int] = {}
        self._delayed: dict[KeyT, float] = {}  # -> when due
        self._heap: list[tuple[float, int, KeyT]] = []  # of _delayed; entries that no longer agree are skipped
        self._sequence = 0
        self._ready = asyncio.Event()
        self._delays_changed = asyncio.Event()
        self._adds = metrics.QUEUE_ADDS.labels(name)
        self._retries = metrics.QUEUE_RETRIES.labels(name)
        self._depth = metrics.QUEUE_DEPTH.labels(name)
        self._wait = metrics.QUEUE_WAIT.labels(name)
        self._work = metrics.QUEUE_WORK.labels(name)
        metrics.QUEUE_UNFINISHED.labels(name).set_function(self.unfinished_s)
        metrics.QUEUE_LONGEST.labels(name).set_function(self.longest_s)

    def add(self, key: KeyT) -> None:
        """Have ``key`` worked soon; nothing to do if it already will be."""
        if key in self._dirty:
            return
        self._adds.inc()
        self._dirty[key] = self._clock.monotonic()
        if key not in self._processing:
            self._enqueue(key)

    def add_after(self, key: KeyT, delay_s: float) -> None:
        """Add ``key`` after ``delay_s`` seconds; of several delays the earliest counts."""
        if delay_s <= 0:
            self.add(key)
            return
        due = self._clock.monotonic() + delay_s
        if self._delayed.get(key, float("inf")) <= due:
            return
        self._delayed[key] = due
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, key))
        self._delays_changed.set()

    def retry(self, key: KeyT) -> None:
        """Add ``key`` again after its back-off, which doubles with every retry until :meth:`forget`."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self._retries.inc()
        self.add_after(key, min(self._max_delay_s, self._base_delay_s * (1 << min(failures, 30))))

    def forget(self, key: KeyT) -> None:
        """The key is fine: its next retry starts from the shortest wait."""
        self._failures.pop(key, None)

    def failures(self, key: KeyT) -> int:
        """How often ``key`` was retried since it was last forgotten."""
        return self._failures.get(key, 0)

    def __len__(self) -> int:
        """Keys waiting, without those being worked or delayed."""
        return len(self._waiting)

    def unfinished_s(self) -> float:
        """Seconds of work in progress, summed over workers."""
        now = self._clock.monotonic()
        return sum(now - since for since in self._processing.values())

    def longest_s(self) -> float:
        """Seconds the longest running worker has been at its key."""
        now = self._clock.monotonic()
        return max((now - since for since in self._processing.values()), default=0.0)

    async def run_workers(self, fn: WorkFn[KeyT], n: int) -> None:
        """Work keys with ``fn``, at most ``n`` at a time, until cancelled.

        What is waiting stays for the next call, also a key whose work was cancelled half way. An exception of ``fn``
        is logged and the key retried with back-off.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._release_delayed(), name=f"{self._name}-delays")
            for i in range(n):
                group.create_task(self._worker(fn), name=f"{self._name}-worker-{i}")

    async def _worker(self, fn: WorkFn[KeyT]) -> None:
        while True:
            key = await self._take()
            finished = False
            try:
                await self._work_one(fn, key)
                finished = True
            finally:
                self._done(key, again=not finished)

    async def _work_one(self, fn: WorkFn[KeyT], key: KeyT) -> None:
        try:
            again_s = await fn(key)
        except ConflictError as error:
            log.debug("conflict, working again queue=%s key=%s reason=%s", self._name, key, error)
            self.retry(key)
        except (FencedError, NotLeadingError, UnavailableError) as error:
            log.info("not now, working again queue=%s key=%s reason=%s", self._name, key, error)
            self.retry(key)
        except ApiError as error:
            log.warning(
                "failed, working again queue=%s key=%s code=%s reason=%s", self._name, key, error.code.name, error
            )
            self.retry(key)
        except Exception:  # a bug in one key's work must not stop the others'
            log.exception("crashed, working again queue=%s key=%s", self._name, key)
            self.retry(key)
        else:
            self.forget(key)
            if again_s is not None:
                self.add_after(key, again_s)

    async def _take(self) -> KeyT:
        while not self._waiting:
            self._ready.clear()
            await self._ready.wait()
        key = self._waiting.popleft()
        now = self._clock.monotonic()
        self._wait.observe(now - self._dirty.pop(key))
        self._processing[key] = now
        self._depth.set(len(self._waiting))
        return key

    def _done(self, key: KeyT, *, again: bool) -> None:
        self._work.observe(self._clock.monotonic() - self._processing.pop(key))
        if again and key not in self._dirty:
            self._dirty[key] = self._clock.monotonic()
        if key in self._dirty:
            self._enqueue(key)

    def _enqueue(self, key: KeyT) -> None:
        self._waiting.append(key)
        self._depth.set(len(self._waiting))
        self._ready.set()

    async def _release_delayed(self) -> None:
        while True:
            self._delays_changed.clear()
            now = self._clock.monotonic()
            while self._heap and self._heap[0][0] <= now:
                due, _, key = heapq.heappop(self._heap)
                if self._delayed.get(key) == due:
                    del self._delayed[key]
                    self.add(key)
            wait_s = self._heap[0][0] - now if self._heap else _IDLE_S
            await wait_event(self._delays_changed, self._clock, wait_s)
