"""No false eviction: pods are replaced elsewhere only if their node was away for as long as that takes. Pure.

Three accounts that know nothing of each other: when each agent was heard (asked directly, from outside the cluster),
when the API said that a node is given up (the taint that drives pods away), and which pods went. An agent that was
heard all the time, or was away for less than the control plane waits, and whose node was given up all the same, is a
false eviction. In doubt a node counts as away: an answer that did not come proves nothing against the control plane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chaos.findings import Finding, judge
from chaos.records import Mark, NodeSeen, PodSeen

__all__ = ["EVICTED_AFTER_S", "LATE_S", "RULE", "SILENT_S", "Span", "check_evictions", "pauses", "reasons"]

RULE: Final = "no pod evicted from a node that was there, or came back in time"
#: The soonest that a node is given up: a broken session may be opened again for so long, and so long it is suspected.
EVICTED_AFTER_S: Final = 2.0
#: The same of an agent that is silent and whose session is not broken, because it was paused: heartbeats may be missed
#: for so long, and so long it is suspected; less the time since the last heartbeat before it.
SILENT_S: Final = 3.5
#: When a pause is seen to begin and to end, for those who ask now and then.
_SEEN_S: Final = 1.5
#: A verdict on a node, and what the API says of it, may come so much later than the silence it is about: a new leader
#: must listen first, and who watches the API may have lost the replica it watched.
LATE_S: Final = 6.0


#: Faults after which a node has a reason to be given up although its agent may be heard, or for no time at all: of
#: links (those that they cut off for good are in the mark), and those of an agent that says goodbye.
_CUTS: Final = frozenset({"partition", "flapping"})
_GOODBYES: Final = frozenset({"stop", "node-add"})
#: What is restored is of another time; it may say of any node that it is dead.
_RESTORES: Final = "lose-control-plane"
_EVERYBODY: Final = "*"


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when, in ns of the history's clock."""

    begin_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9


def reasons(struck: Iterable[tuple[Mark, int]]) -> dict[str, list[Span]]:
    """Node (``*``: all) -> when it had a reason beside its silence, by the marks of faults and when each was healed."""
    found: dict[str, list[Span]] = {}
    for mark, healed_ns in struck:
        kind = mark.detail.get("fault")
        nodes: Sequence[str] = ()
        if kind == _RESTORES:
            nodes = (_EVERYBODY,)
        elif kind in _GOODBYES:
            nodes = mark.detail.get("victims", ())
        elif kind in _CUTS:
            nodes = mark.detail.get("excused", ())
        for name in nodes:
            found.setdefault(name, []).append(Span(mark.at_ns, healed_ns))
    return found


def pauses(struck: Iterable[tuple[Mark, int]]) -> dict[str, list[Span]]:
    """Node -> when its agent was paused, and nothing else was done to it meanwhile."""
    hits = [(mark, Span(mark.at_ns, healed_ns)) for mark, healed_ns in struck]
    found: dict[str, list[Span]] = {}
    for mark, span in hits:
        for name in mark.detail.get("victims", ()) if mark.detail.get("fault") == "pause" else ():
            others = (at for other, at in hits if other is not mark and name in other.detail.get("victims", ()))
            if not any(at.begin_ns <= span.end_ns and span.begin_ns <= at.end_ns for at in others):
                found.setdefault(name, []).append(span)
    return found


def check_evictions(
    nodes: Sequence[NodeSeen],
    pods: Sequence[PodSeen],
    had_reason: Mapping[str, Sequence[Span]],
    paused: Mapping[str, Sequence[Span]],
    *,
    begin_ns: int,
    end_ns: int,
) -> Finding | None:
    """The finding over that time; None: nobody looked at the nodes."""
    if not nodes:
        return None
    names = sorted({seen.node for seen in nodes})
    broken: list[str] = []
    given_up = evicted = 0
    short: list[float] = []
    for name in names:
        mine = sorted((seen for seen in nodes if seen.node == name), key=lambda seen: seen.at_ns)
        away = list(_spans(mine, end_ns, lambda seen: not seen.heard, lambda seen: seen.since_ns or seen.at_ns))
        condemned = list(_spans(mine, end_ns, lambda seen: seen.condemned, lambda seen: seen.at_ns))
        waits = [(span, _patience(span, paused.get(name, ()))) for span in away]
        short += [
            span.seconds
            for span, wait_s in waits
            if begin_ns <= span.begin_ns and span.end_ns < end_ns and span.seconds < wait_s
        ]
        excuses = [*had_reason.get(name, ()), *had_reason.get(_EVERYBODY, ())]
        for span in condemned:
            gone = len(_gone(name, span, pods))
            if not begin_ns <= span.begin_ns <= end_ns or not gone:
                continue
            given_up, evicted = given_up + 1, evicted + gone
            about = [
                (Span(each.begin_ns, min(each.end_ns, span.begin_ns)).seconds, wait_s)
                for each, wait_s in waits
                if _about(each, span.begin_ns)
            ]
            right = any(away_s >= wait_s for away_s, wait_s in about)
            if not right and not any(_about(excuse, span.begin_ns) for excuse in excuses):
                away_s, wait_s = max(about, default=(0.0, EVICTED_AFTER_S))
                broken.append(
                    f"{gone} pods of {name}, which was given up at {span.begin_ns / 1e9:.3f} s: it had been away for "
                    f"{away_s:.1f} s at most, and {wait_s:g} s are waited for"
                )
    said = [f"{evicted} pods of {given_up} nodes that were given up evicted"] if given_up and not broken else []
    if short:
        said.append(f"{len(short)} shorter absences, the longest {max(short):.1f} s")
    return judge(RULE, len(names), broken, note="; ".join(said))


def _spans(
    seen: Iterable[NodeSeen], end_ns: int, holds: Callable[[NodeSeen], bool], begin: Callable[[NodeSeen], int]
) -> Iterable[Span]:
    """While it held. A node was away from when it was heard for the last time to when it was heard again."""
    since: int | None = None
    for each in seen:
        if holds(each) and since is None:
            since = begin(each)
        elif not holds(each) and since is not None:
            yield Span(since, each.at_ns)
            since = None
    if since is not None:
        yield Span(since, end_ns)


def _about(span: Span, at_ns: int) -> bool:
    """Whether a verdict of that moment can be about that time."""
    return span.begin_ns < at_ns and span.end_ns >= at_ns - LATE_S * 1e9


def _patience(span: Span, paused: Iterable[Span]) -> float:
    """How long the control plane waits for a node that is away like this; seconds."""
    seen_ns = _SEEN_S * 1e9
    silent = any(each.begin_ns - seen_ns <= span.begin_ns and span.end_ns <= each.end_ns + seen_ns for each in paused)
    return SILENT_S if silent else EVICTED_AFTER_S


def _gone(node: str, span: Span, pods: Iterable[PodSeen]) -> set[str]:
    """Pods of the node that went, or began to, while it was given up."""
    where = {pod.uid: pod.node for pod in pods if pod.node}
    return {
        pod.uid
        for pod in pods
        if where.get(pod.uid) == node
        and (pod.gone or pod.deleting)
        and span.begin_ns - LATE_S * 1e9 <= pod.at_ns <= span.end_ns + LATE_S * 1e9
    }
