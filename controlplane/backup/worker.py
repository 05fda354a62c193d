"""A thread for work that may take long, or never end: a store for backups that is slow, or hangs.

Owns one thing only: the loop never waits for the store, and neither does the end of the process. One job at a time.
One that takes too long is given up on, though not ended (a thread cannot be): until it has ended by itself, every other
is refused at once, so that neither threads nor jobs gather behind a store that hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from controlplane.base.errors import StorageError

__all__ = ["LONG_S", "Worker"]

T = TypeVar("T")

_PATIENCE_S: Final = 60.0
#: Patience with what moves a whole snapshot.
LONG_S: Final = 3_600.0


class Worker:
    """See the module. Close it when done; a job that hangs then is left to end with the process."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._given_up: asyncio.Future[object] | None = None
        # A daemon, unlike a thread of concurrent.futures: those are waited for when the interpreter ends.
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def run(self, job: Callable[[], T], *, patience_s: float = _PATIENCE_S) -> T:
        """Run a job in the thread; its result, or what it raised.

        Raises:
            StorageError: it, or one before it, does not end.
        """
        if self._given_up is not None and not self._given_up.done():
            raise StorageError("the store for backups does not answer: an earlier request still waits")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                result = job()
            except Exception as error:  # noqa: BLE001 - carried to whoever waits
                tell(_fail, error)
            else:
                tell(_succeed, result)

        def tell(how: Callable[..., None], value: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(how, done, value)

        self._jobs.put(work)
        try:
            async with asyncio.timeout(patience_s):
                return await asyncio.shield(done)
        except TimeoutError:
            self._given_up = done  # type: ignore[assignment] # only its end is looked at
            done.add_done_callback(lambda ended: ended.exception())
            raise StorageError(f"the store for backups has not answered for {patience_s:.0f} s") from None

    def post(self, job: Callable[[], None]) -> None:
        """Run a job that cannot fail, some time; nobody waits for it."""
        self._jobs.put(job)

    def close(self) -> None:
        """Take no more jobs; the thread ends after the one it does."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _succeed(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[T], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
