"""What faults and probes stand on: one cluster, who speaks for it, and what is broken of it.

Owns the connections and the undo list; decides nothing. Opened from the cluster's folder alone, also while the cluster
does not serve, because ``qd chaos heal`` must work then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from chaos.fault import Fault
from chaos.links import Links, links_of
from chaos.observe import Pods, Replicas
from chaos.remote import RemoteCluster
from chaos.targets import Seen
from chaos.undo import UndoList
from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import Rand, SystemRand
from controlplane.client import ApiClient, EtcdClient, GrpcClient
from controlplane.local.cluster import LocalCluster
from controlplane.pb.k8s.apps_v1_pb2 import Deployment

__all__ = ["NAMESPACE", "WORKLOAD", "Ground", "aside", "to_its_end"]

P = ParamSpec("P")
T = TypeVar("T")

NAMESPACE: Final = "default"
#: The Deployment and the Service that experiments are run on.
WORKLOAD: Final = "web"
_PATIENCE_S: Final = 30.0
_ASK_AGAIN_S: Final = 0.2
_NO_ANSWER: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED})
#: Faults that take a replica out of service while they last: it counts as down from the strike on.
TAKES_DOWN: Final = frozenset(
    {"kill", "stop", "pause", "zone-loss", "member-replace", "member-remove", "lose-control-plane"}
)
#: Faults whose links are dead while they last, or may be at any moment.
CUTS: Final = frozenset({"partition", "flapping"})


@dataclass(slots=True)
class Ground:
    """One cluster. ``links``: what cuts and slows its links, if its processes are on hosts or behind proxies."""

    cluster: LocalCluster
    client: ApiClient
    kv: EtcdClient
    replicas: Replicas
    pods: Pods
    links: Links | None
    clock: Clock
    rand: Rand
    say: Callable[[str], None]
    undo: UndoList
    seen: Seen
    #: The snapshot that a lost control plane is restored from.
    snapshot: Path | None = None
    #: What replicas are known to be down beyond what was struck here; for tests and remote grounds.
    extra_down: set[str] = field(default_factory=set)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        cluster: LocalCluster,
        *,
        say: Callable[[str], None],
        clock: Clock | None = None,
        rand: Rand | None = None,
        broken: bool = False,
    ) -> AsyncIterator[Ground]:
        """``broken``: do not wait for the cluster to answer."""
        clock, rand = clock or SystemClock(), rand or SystemRand()
        spec = cluster.spec
        credentials = cluster.credentials()
        async with (
            GrpcClient(spec.endpoints, credentials=credentials) as client,
            EtcdClient(spec.kv_endpoints, foreign=bool(spec.store), credentials=credentials) as kv,
            Replicas({r.name: r.client for r in spec.replicas}, clock, credentials) as replicas,
            Pods(
                client, namespace=NAMESPACE, label_selector=f"app={WORKLOAD}", clock=clock, rand=rand, wait=not broken
            ) as pods,
        ):
            yield cls(
                cluster=cluster, client=client, kv=kv, replicas=replicas, pods=pods,
                links=links_of(cluster), clock=clock, rand=rand, say=say, undo=UndoList(cluster.root / "chaos"),
                seen=Seen(tuple(r.name for r in spec.replicas), tuple(n.name for n in spec.nodes)),
            )  # fmt: skip

    async def look(self) -> Seen:
        """See the cluster anew: who leads, who answers, which pods there are. Also kept as ``seen``."""
        answers = await self.replicas.statuses()
        for name in self.replicas.names:
            # Asked again before it is called silent: this machine may be busy. Who is dead refuses at once.
            if name not in answers and (answer := await self.replicas.status(name)) is not None:
                answers[name] = answer
        leader, term = self.replicas.leader_among(answers)
        spec = self.cluster.spec
        names = tuple(r.name for r in spec.replicas)
        struck = {
            victim for entry in self.undo.entries if entry.strike.fault in TAKES_DOWN for victim in entry.strike.victims
        }
        # Running, and of no use: a partition says so itself.
        struck |= {name for entry in self.undo.entries for name in entry.strike.args.get("down", ())}
        silent = {name for name in names if name not in answers}
        ids = {member.name: member.id for answer in answers.values() for member in answer.members if member.name}
        self.seen = Seen(
            replicas=names,
            nodes=tuple(n.name for n in spec.nodes),
            leader=leader,
            term=term,
            down=frozenset((struck | silent | self.extra_down) & set(names)),
            pods=tuple(self.pods.views()),
            wanted=self.seen.wanted,
            member_ids={**self.seen.member_ids, **ids},
            store=tuple(member.name for member in spec.store),
            store_down=frozenset(struck & {member.name for member in spec.store}),
            cut=frozenset(
                frozenset(link)
                for entry in self.undo.entries
                if entry.strike.fault in CUTS
                for link in entry.strike.args["links"]
            ),
        )
        return self.seen

    def missing(self, fault: Fault) -> str | None:
        """Why a fault cannot be made on this ground; None: it can."""
        if isinstance(self.cluster, RemoteCluster) and (why := self.cluster.impossible(fault.name)) is not None:
            return why
        return fault.missing(self)

    async def count_wanted(self) -> int:
        """How many pods the workload asks for now; kept in ``seen``. Raises ApiError."""
        deployment = await self.client.get(Deployment, WORKLOAD, namespace=NAMESPACE)
        self.seen = replace(self.seen, wanted=deployment.spec.replicas)
        return self.seen.wanted

    async def patiently(self, call: Callable[[], Awaitable[T]], *, timeout_s: float = _PATIENCE_S) -> T:
        """Call until the cluster answers: for what must be done although it may not serve yet. Raises StatusError: its
        answer, or that there was none when the time is up."""
        deadline_s = self.clock.monotonic() + timeout_s
        while True:
            try:
                return await call()
            except StatusError as error:
                if error.code not in _NO_ANSWER or self.clock.monotonic() > deadline_s:
                    raise
                await self.clock.sleep(_ASK_AGAIN_S)


async def aside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run it in a thread, and to its end even if the caller is cancelled: nobody undoes what is still being done, and
    the loop carries the load meanwhile."""
    work = asyncio.create_task(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():  # cancelled again, too: a thread cannot be
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        raise


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await it, and to its end even if the caller is cancelled meanwhile, or was before: once. Cancelled twice, it is
    given up, or not begun.

    Raises:
        asyncio.CancelledError: the caller was cancelled; the work has ended.
    """
    me = asyncio.current_task()
    if me is not None and me.cancelling() > 1:
        work.close()
        raise asyncio.CancelledError
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError as cancelled:
        try:
            if me is None or me.cancelling() == 1:
                await asyncio.wait([task])
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        if not task.cancelled() and task.exception() is not None:
            raise cancelled from task.exception()
        raise
