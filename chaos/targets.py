"""Who is meant: selectors of experiments turned into names, by what was seen of the cluster a moment ago. Pure.

Selectors: ``r1`` ``node-2`` (a process by name) | ``leader`` | ``scheduler`` ``controllers`` (they live in the leader's
process, so they are the leader's) | ``follower`` | ``replica`` (any) | ``majority`` ``minority`` ``all-replicas`` |
``node`` (any) ``all-nodes`` ``busiest-node`` ``node-of-pod`` (one with pods of the workload) | ``zone`` (any)
``zone-of-pod`` (one with pods of the workload) ``zone-1``… | ``pod`` (any of the workload) ``pod/NAME`` ``all-pods`` |
``container`` (any of the workload) ``container/POD/NAME`` | ``cluster`` (nobody in particular).

A local cluster has as many zones as replicas: zone i holds replica i and every node counted off to it, as racks do.

``mode`` narrows a selector that fits several, in Chaos Mesh's words: one, all, fixed (``value`` of them),
fixed-percent, random-max-percent. Which ones, the random source says, so a seed picks the same again.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from chaos.observe import PodView
from controlplane.base.errors import ConfigError
from controlplane.base.rand import Rand

__all__ = [
    "MODES",
    "SELECTORS",
    "Seen",
    "TargetError",
    "check_selector",
    "majority_of",
    "pick",
    "quorum_lost",
    "reached",
    "resolve",
    "sample",
    "zones",
]

MODES: Final = ("one", "all", "fixed", "fixed-percent", "random-max-percent")
#: Selector -> how many of those it fits are meant, when the experiment gives no mode.
SELECTORS: Final[Mapping[str, str]] = {
    "leader": "one",
    "scheduler": "one",
    "controllers": "one",
    "follower": "one",
    "replica": "one",
    "majority": "all",
    "minority": "all",
    "all-replicas": "all",
    "node": "one",
    "all-nodes": "all",
    "busiest-node": "one",
    "node-of-pod": "one",
    "zone": "all",
    "zone-of-pod": "all",
    "pod": "one",
    "all-pods": "all",
    "container": "one",
    "cluster": "all",
}

T = TypeVar("T")


class TargetError(ConfigError):
    """A selector names nobody that is there now."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The cluster at one moment, as targets need it. ``down``: replicas struck and not healed, or not answering."""

    replicas: tuple[str, ...]
    nodes: tuple[str, ...]
    leader: str | None = None
    term: int = 0
    down: frozenset[str] = frozenset()
    pods: tuple[PodView, ...] = field(default=())
    #: How many pods the workload asked for when the ground was opened.
    wanted: int = 0
    member_ids: Mapping[str, int] = field(default_factory=dict)
    #: Members of an etcd cluster that is the store.
    store: tuple[str, ...] = ()
    #: Of those, the ones that are struck.
    store_down: frozenset[str] = frozenset()
    #: Pairs whose link is cut by what is in force, in either direction.
    cut: frozenset[frozenset[str]] = frozenset()


def majority_of(size: int) -> int:
    """How many of that many are a majority."""
    return size // 2 + 1


def quorum_lost(seen: Seen, unavailable: Sequence[str]) -> bool:
    """Whether no replica would reach a majority, itself included, with these gone too; or an etcd cluster that is the
    store would have none."""
    members_up = [name for name in seen.store if name not in seen.store_down and name not in unavailable]
    if seen.store and len(members_up) < majority_of(len(seen.store)):
        return True
    up = [name for name in seen.replicas if name not in seen.down and name not in unavailable]
    return not any(1 + reached(seen, name, up) >= majority_of(len(seen.replicas)) for name in up)


def reached(seen: Seen, name: str, others: Sequence[str]) -> int:
    """How many of the others it reaches both ways, with what is cut."""
    return sum(1 for other in others if other != name and frozenset((name, other)) not in seen.cut)


def zones(seen: Seen) -> dict[str, tuple[str, ...]]:
    """Zone -> the replica and the nodes in it."""
    count = max(1, len(seen.replicas))
    return {
        f"zone-{i + 1}": (*seen.replicas[i : i + 1], *(n for j, n in enumerate(seen.nodes) if j % count == i))
        for i in range(count)
    }


def check_selector(selector: str) -> None:
    """Refuse what cannot be a selector on any cluster.

    Raises:
        ConfigError: names the nearest that exists.
    """
    if selector in SELECTORS or selector.startswith(("pod/", "zone-", "node-", "etcd-")):
        return
    if selector[:1] == "r" and selector[1:].isdigit():
        return
    if selector.startswith("container/"):
        if len(parts := selector.split("/")) != 3 or not all(parts):
            raise ConfigError(f"target {selector!r}: want container/POD/NAME, of one container of one pod")
        return
    near = difflib.get_close_matches(selector, SELECTORS, n=1)
    raise ConfigError(
        f"target {selector!r}: unknown{f'; did you mean {near[0]!r}?' if near else ''}; there are: "
        f"{', '.join(SELECTORS)}, and names such as r1, node-2, zone-1, pod/NAME, container/POD/NAME"
    )


def resolve(seen: Seen, selector: str, rand: Rand, *, mode: str | None = None, value: int = 0) -> tuple[str, ...]:
    """The names that are meant, at least one.

    Raises:
        TargetError: nobody fits now.
        ConfigError: the selector, the mode or its value is not one.
    """
    check_selector(selector)
    found = _candidates(seen, selector, rand)
    if not found and selector != "cluster":
        raise TargetError(f"target {selector!r}: nobody fits now ({_state(seen)})")
    return _narrow(found, mode or SELECTORS.get(selector, "all"), value, rand)


def _candidates(seen: Seen, selector: str, rand: Rand) -> tuple[str, ...]:
    up = tuple(name for name in seen.replicas if name not in seen.down)
    size = len(seen.replicas)
    if selector in {"leader", "scheduler", "controllers"}:
        return (seen.leader,) if seen.leader else ()
    if selector == "follower":
        return tuple(name for name in up if name != seen.leader)
    if selector == "majority":
        return tuple(sorted(sample(seen.replicas, majority_of(size), rand)))
    if selector == "minority":
        return tuple(sorted(sample(seen.replicas, size - majority_of(size), rand)))
    if selector in {"busiest-node", "node-of-pod"}:
        on = _pods_on(seen)
        if selector == "busiest-node":
            return tuple(sorted(on, key=lambda name: (-on[name], name))[:1])
        return tuple(sorted(on))
    if selector in {"zone", "zone-of-pod"}:
        on = _pods_on(seen)
        among = [names for _, names in sorted(zones(seen).items()) if selector == "zone" or any(n in on for n in names)]
        return pick(among, rand) if among else ()
    if selector.startswith("zone-"):
        return zones(seen).get(selector, ())
    if selector in {"pod", "all-pods"}:
        return tuple(f"pod/{pod.name}" for pod in seen.pods if pod.ready and not pod.deleting)
    if selector.startswith("pod/"):
        return (selector,) if any(f"pod/{pod.name}" == selector for pod in seen.pods) else ()
    if selector == "container":
        live = [pod for pod in seen.pods if pod.ready and not pod.deleting]
        return tuple(f"container/{pod.name}/{name}" for pod in live for name, _ in pod.containers)
    if selector.startswith("container/"):
        return _container(seen, selector)
    groups = {"replica": up, "all-replicas": seen.replicas, "node": seen.nodes, "all-nodes": seen.nodes, "cluster": ()}
    if selector in groups:
        return groups[selector]
    return (selector,) if selector in {*seen.replicas, *seen.nodes, *seen.store} else ()


def _pods_on(seen: Seen) -> Counter[str]:
    """Node -> how many Ready pods of the workload are on it; those that have none are not in it."""
    return Counter(pod.node for pod in seen.pods if pod.ready and not pod.deleting and pod.node in seen.nodes)


def _container(seen: Seen, selector: str) -> tuple[str, ...]:
    _, pod_name, name = selector.split("/")
    pod = next((pod for pod in seen.pods if pod.name == pod_name), None)
    if pod is None:
        return ()
    names = [each for each, _ in pod.containers]
    if name not in names:
        raise TargetError(f"target {selector!r}: {pod_name} has no container {name!r}; it has: {', '.join(names)}")
    return (selector,)


def _narrow(found: Sequence[str], mode: str, value: int, rand: Rand) -> tuple[str, ...]:
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r}: want one of {', '.join(MODES)}")
    if mode == "all" or not found:
        return tuple(found)
    if mode == "one":
        return (pick(found, rand),)
    if mode == "fixed":
        if not 1 <= value <= len(found):
            raise ConfigError(f"mode fixed: value {value}: want 1 to {len(found)}")
        count = value
    else:
        if not 1 <= value <= 100:
            raise ConfigError(f"mode {mode}: value {value}: want a percentage, 1 to 100")
        most = max(1, len(found) * value // 100)
        count = most if mode == "fixed-percent" else rand.randint(1, most)
    return tuple(sorted(sample(found, count, rand)))


def pick(among: Sequence[T], rand: Rand) -> T:
    """One of them."""
    return among[rand.randint(0, len(among) - 1)]


def sample(among: Sequence[T], count: int, rand: Rand) -> list[T]:
    """So many of them, each at most once."""
    left = list(among)
    return [left.pop(rand.randint(0, len(left) - 1)) for _ in range(min(count, len(left)))]


def _state(seen: Seen) -> str:
    down = f"; down: {', '.join(sorted(seen.down))}" if seen.down else ""
    return f"leader: {seen.leader or 'none'}; {len(seen.pods)} pods{down}"
