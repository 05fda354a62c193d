"""What a controller is, and what it gets to work with.

Owns: the :class:`Controller` base and its environment. Must not know: any particular controller, raft, or how
leadership is won.

Invariants:

- A controller changes the cluster only through :class:`FencedClient`, so a deposed leader's late write is refused by
  the store, not merged.
- Level-triggered: ``reconcile`` gets a *key*, looks at the present state, and may be called any number of times with
  nothing to do. What woke it up is deliberately not told.
- Between winning and losing leadership nothing is remembered that the cluster does not hold: ``on_lead`` starts from
  ``keys()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.client.caches import Caches, EventSink
from controlplane.client.fenced import FencedClient

__all__ = ["Controller", "Environment"]


@dataclass(frozen=True, slots=True)
class Environment:
    """What the manager hands to every controller."""

    client: FencedClient
    caches: Caches
    events: EventSink
    clock: Clock
    rand: Rand


class Controller:
    """One reconciler with one queue. Subclass, set ``name``, subscribe in ``__init__``, implement ``reconcile``.

    The manager calls, in this order: the constructor (once, on every replica, before informers start), then for each
    term that is won ``on_lead()``, ``reconcile(key)`` for all of ``keys()`` and whatever was enqueued since, and at
    the end of the term, with every reconcile stopped, ``on_stop()``.
    """

    #: Name of the queue in logs and metrics.
    name: str = ""
    #: Reconciles in flight at the same time; a key is never reconciled twice at once.
    workers: int = 1

    def __init__(self, env: Environment) -> None:
        self.env = env
        self._sink: Callable[[str, float], None] | None = None

    def attach(self, sink: Callable[[str, float], None] | None) -> None:
        """Manager only: where enqueued keys go during a term (key, delay in seconds); None between terms."""
        self._sink = sink

    def enqueue(self, key: str, delay_s: float = 0.0) -> None:
        """Ask for a reconcile. Dropped while not leading: a new term starts with all of ``keys()``."""
        if self._sink is not None:
            self._sink(key, delay_s)

    def keys(self) -> Iterable[str]:
        """Every key that may need work when a term begins."""
        raise NotImplementedError

    async def reconcile(self, key: str) -> float | None:
        """Bring the key's part of the world one step nearer to what is wanted.

        Returns: seconds after which to look again even if nothing changes, or None. Raises ApiError to be called
        again with back-off (a conflict is the ordinary case).
        """
        raise NotImplementedError

    def on_lead(self) -> None:
        """A term begins: forget what an earlier term believed."""

    def on_stop(self) -> None:
        """The term is over."""
