"""Faults of links: partitions of every shape, loss, delay, narrow links, resets, slow ends, links that come and go.

A fault is on the links between its targets and the ``others``, in one direction or both, and knows nothing of how they
are broken (``links``). Where links cannot be broken, or not so, it says why, and what cluster to start instead.

A partition counts as a loss of whoever cannot reach a majority any more, both ways.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from chaos.fault import JSON, Fault, FaultError, Strike, Undo
from chaos.faults.params import known, number, word
from chaos.ground import Ground, aside
from chaos.links import OUTSIDE, Link, Links, directed
from chaos.targets import Seen, majority_of, quorum_lost, reached, sample
from controlplane.base.errors import ConfigError
from controlplane.base.rand import Rand

__all__ = ["FAULTS", "cut_off", "ring"]

_DIRECTIONS: Final = ("both", "to", "from")
_SHAPES: Final = ("split", "ring")
_NO_LINKS: Final = (
    "the processes meet on plain loopback; start the cluster with HOSTS=netns (root), or HOSTS=links (anybody)"
)
_SIDES: Final = {
    "others": "who is on the other side: all (the default), replicas, nodes, clients, or names such as r2,node-1",
    "direction": "both (the default), to (what targets send to the others), from (what they get of them)",
}


class _OnLinks(Fault):
    """What all of them have in common. ``kind``: as ``links`` calls it."""

    kind: str
    target = "leader"
    #: Figures that are parameters: name -> (default, low, high).
    figures: Mapping[str, tuple[float, float, float]] = {}

    def missing(self, ground: Ground) -> str | None:
        links = ground.links
        return _NO_LINKS if links is None else links.missing(self.kind)

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        figures = {
            name: number(self.name, params, name, default, low, high)
            for name, (default, low, high) in self.figures.items()
        }
        links = self._links(ground, targets, params, rand)
        return self._strike(ground, targets, links, figures, rand, self._says(targets, params, figures))

    def _links(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> list[Link]:
        others = _others(self.name, ground.seen, targets, params)
        wanted = directed(targets, others, word(self.name, params, "direction", "both", _DIRECTIONS))
        found = [link for link in wanted if _must(ground).exists(link)]
        if not found:
            raise ConfigError(
                f"{self.name}: between {', '.join(targets)} and {', '.join(others) or 'nobody'} there is no link that "
                f"HOSTS={ground.cluster.spec.hosts} can break"
            )
        return found

    def _strike(
        self,
        ground: Ground,
        targets: Sequence[str],
        links: list[Link],
        figures: dict[str, float],
        rand: Rand,
        says: str,
    ) -> Strike:
        token = f"{self.name}-{rand.token(4).hex()}"
        cuts = self.kind == "cut"
        lonely, nodes = cut_off(ground.seen, links) if cuts else ((), ())
        args = {"token": token, "links": [list(link) for link in links], "figures": figures, "down": list(lonely)}
        return Strike(
            self.name, tuple(targets), args, (Undo(self.name, {"token": token}),), says=says, excused=nodes,
            quorum_lost=bool(lonely) and quorum_lost(_with(ground.seen, links), ()),
        )  # fmt: skip

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        await aside(self._break, ground, strike)
        return {"links": len(strike.args["links"])}

    def _break(self, ground: Ground, strike: Strike) -> None:
        links = [(source, target) for source, target in strike.args["links"]]
        _must(ground).strike(strike.args["token"], self.kind, links, dict(strike.args["figures"]))

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        return await aside(_must(ground).proof, strike.args["token"])

    async def heal(self, ground: Ground, undo: Undo) -> None:
        if ground.links is not None:  # none: the cluster was started anew, on loopback
            await aside(ground.links.heal, undo.args["token"])

    def _says(self, targets: Sequence[str], params: Mapping[str, JSON], figures: Mapping[str, float]) -> str:
        shown = ", ".join(f"{name} {value:g}" for name, value in figures.items() if value)
        way = {"both": "between", "to": "from", "from": "towards"}[str(params.get("direction", "both"))]
        others = params.get("others", "all")
        joint = {"both": "and", "to": "to", "from": "from"}[str(params.get("direction", "both"))]
        return f"{self.name} {way} {', '.join(targets)} {joint} {others}{f' ({shown})' if shown else ''}"


class Partition(_OnLinks):
    """Dead links."""

    name = "partition"
    kind = "cut"
    doc = "nothing passes between the targets and the others (split), or between all but neighbours (ring)"
    params: Mapping[str, str] = {**_SIDES, "shape": "split (the default), or ring: replicas hear their neighbours only"}

    def _links(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> list[Link]:
        if word(self.name, params, "shape", "split", _SHAPES) == "split":
            return super()._links(ground, targets, params, rand)
        for side in _SIDES:
            if side in params:
                raise ConfigError(f"{self.name}: a ring is among all replicas: it has no {side}")
        return ring(sample(ground.seen.replicas, len(ground.seen.replicas), rand))

    def _says(self, targets: Sequence[str], params: Mapping[str, JSON], figures: Mapping[str, float]) -> str:
        if params.get("shape") == "ring":
            return "partition: every replica hears its neighbours only"
        return super()._says(targets, params, figures)


class Loss(_OnLinks):
    """A bad cable."""

    name = kind = "loss"
    doc = "a share of the packets gets lost"
    params: Mapping[str, str] = {**_SIDES, "percent": "of packets, 1 to 99, 20 by default"}
    figures: Mapping[str, tuple[float, float, float]] = {"percent": (20, 1, 99)}


class Latency(_OnLinks):
    """A long way."""

    name = kind = "latency"
    doc = "everything arrives later, by a delay and some jitter, in order"
    params: Mapping[str, str] = {
        **_SIDES, "delay_ms": "each way, 75 by default", "jitter_ms": "plus or minus, 50 by default",
    }  # fmt: skip
    figures: Mapping[str, tuple[float, float, float]] = {"delay_ms": (75, 0, 60_000), "jitter_ms": (50, 0, 60_000)}


class Bandwidth(_OnLinks):
    """A narrow link."""

    name = kind = "bandwidth"
    doc = "a link carries no more than so many kilobits per second"
    params: Mapping[str, str] = {**_SIDES, "rate_kbit": "kilobits per second, 64 by default"}
    figures: Mapping[str, tuple[float, float, float]] = {"rate_kbit": (64, 1, 10_000_000)}

    def _break(self, ground: Ground, strike: Strike) -> None:
        links = [(source, target) for source, target in strike.args["links"]]
        rate_bytes_s = float(strike.args["figures"]["rate_kbit"]) * 1000 / 8
        _must(ground).strike(strike.args["token"], self.kind, links, {"rate_bytes_s": rate_bytes_s})


class SlowClose(_OnLinks):
    """Ends that come late."""

    name = kind = "slow-close"
    doc = "the end of a connection is heard late: who went seems to be there still"
    params: Mapping[str, str] = {**_SIDES, "delay_ms": "2000 by default"}
    figures: Mapping[str, tuple[float, float, float]] = {"delay_ms": (2000, 1, 60_000)}


class _Repeated(_OnLinks):
    """A fault that this process drives while it lasts. If the process dies, what is in force stays until it is healed
    by another."""

    def __init__(self) -> None:
        self._driving: dict[str, asyncio.Task[None]] = {}

    def _drive(self, token: str, work: Awaitable[None]) -> None:
        self._driving[token] = asyncio.ensure_future(work)

    def _check(self, token: str) -> None:
        task = self._driving.get(token)
        if task is not None and task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise FaultError(f"{self.name} ended early: {error}") from error

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        self._check(strike.args["token"])
        return await super().proof(ground, strike)

    async def heal(self, ground: Ground, undo: Undo) -> None:
        task = self._driving.pop(undo.args["token"], None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await super().heal(ground, undo)


class Reset(_Repeated):
    """Connections torn down."""

    name = kind = "reset"
    doc = "every TCP connection is reset, once or again and again"
    params: Mapping[str, str] = {**_SIDES, "every_ms": "again after that long; 0, the default: once"}
    figures: Mapping[str, tuple[float, float, float]] = {"every_ms": (0, 0, 60_000)}

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        facts = await super().strike(ground, strike)
        every_s = float(strike.args["figures"]["every_ms"]) / 1000
        if every_s and ground.cluster.spec.hosts == "netns":  # a relay repeats it by itself
            self._drive(strike.args["token"], self._again(ground, strike, every_s))
        return facts

    async def _again(self, ground: Ground, strike: Strike, every_s: float) -> None:
        while True:
            await ground.clock.sleep(every_s)
            await aside(self._break, ground, strike)


class Flapping(_Repeated):
    """A loose contact."""

    name = "flapping"
    kind = "cut"
    doc = "links go down and come up again and again, by times that the seed says"
    params: Mapping[str, str] = {
        **_SIDES, "down_ms": "about, 300 by default", "up_ms": "about, 700 by default",
    }  # fmt: skip
    figures: Mapping[str, tuple[float, float, float]] = {"down_ms": (300, 10, 60_000), "up_ms": (700, 10, 60_000)}

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, dict[str, float]] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        strike = super().plan(ground, targets, params, rand)
        figures = strike.args["figures"]
        times_ms = [
            [round(figures["down_ms"] * (0.5 + rand.random())), round(figures["up_ms"] * (0.5 + rand.random()))]
            for _ in range(64)
        ]
        return replace(strike, args={**strike.args, "times_ms": times_ms})

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        await aside(self._down, ground, strike)
        self._drive(strike.args["token"], self._flap(ground, strike))
        return {"links": len(strike.args["links"])}

    def _down(self, ground: Ground, strike: Strike) -> None:
        links = [(source, target) for source, target in strike.args["links"]]
        _must(ground).strike(strike.args["token"], self.kind, links, {})

    async def _flap(self, ground: Ground, strike: Strike) -> None:
        links, token = _must(ground), strike.args["token"]
        while True:
            for down_ms, up_ms in strike.args["times_ms"]:
                await ground.clock.sleep(down_ms / 1000)
                proof = await aside(links.proof, token)
                await aside(links.heal, token)
                self._sum(token, proof)
                await ground.clock.sleep(up_ms / 1000)
                await aside(self._down, ground, strike)

    def _sum(self, token: str, proof: Mapping[str, JSON]) -> None:
        seen = self._seen.setdefault(token, {})
        for name, value in {**proof, "times_down": 1}.items():
            if name != "bit":
                seen[name] = seen.get(name, 0) + float(value)

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        last = await super().proof(ground, strike)
        self._sum(strike.args["token"], last)
        seen = self._seen.pop(strike.args["token"])
        return {"bit": any(value for name, value in seen.items() if name != "times_down"), **seen}


FAULTS: Final[tuple[Fault, ...]] = (
    Partition(), Loss(), Latency(), Bandwidth(), Reset(), SlowClose(), Flapping(),
)  # fmt: skip


def ring(order: Sequence[str]) -> list[Link]:
    """The links to cut so that each reaches its two neighbours only; of three, the ends reach the middle only."""
    size = len(order)
    return [
        (a, b)
        for i, a in enumerate(order)
        for j, b in enumerate(order)
        if abs(i - j) > 1 and (size == 3 or {i, j} != {0, size - 1})
    ]


def cut_off(seen: Seen, links: Sequence[Link]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who is out of service with these links cut too: replicas that reach no majority both ways, and nodes that reach
    no replica both ways."""
    then = _with(seen, links)
    up = [name for name in seen.replicas if name not in seen.down]
    lonely = [name for name in up if reached(then, name, up) + 1 < majority_of(len(seen.replicas))]
    nodes = [name for name in seen.nodes if up and reached(then, name, up) == 0]
    return tuple(lonely), tuple(nodes)


def _with(seen: Seen, links: Sequence[Link]) -> Seen:
    return replace(seen, cut=seen.cut | {frozenset(link) for link in links})


def _others(fault: str, seen: Seen, targets: Sequence[str], params: Mapping[str, JSON]) -> list[str]:
    text = params.get("others", "all")
    if not isinstance(text, str):
        raise ConfigError(f"{fault}: others is {text!r}: want all, replicas, nodes, clients, or names")
    groups: dict[str, Callable[[], Sequence[str]]] = {
        "all": lambda: (*seen.replicas, *seen.nodes),
        "replicas": lambda: seen.replicas,
        "nodes": lambda: seen.nodes,
        "clients": lambda: (OUTSIDE,),
    }
    found: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if part in groups:
            found += groups[part]()
        elif part in {*seen.replicas, *seen.nodes}:
            found.append(part)
        else:
            names = ", ".join((*seen.replicas, *seen.nodes))
            raise ConfigError(f"{fault}: others: {part!r}: want {', '.join(groups)}, or names: {names}")
    return [name for name in dict.fromkeys(found) if name not in targets]


def _must(ground: Ground) -> Links:
    if ground.links is None:
        raise FaultError(_NO_LINKS)
    return ground.links
