"""What a Deployment promises while it is scaled, rolled out and broken: never more pods than wanted and the surge, no
pod in two places, and in the end as many as wanted.

Judged by the processes on the machine, not by what the API believes. A pod that the API says is going does not count,
as on a node that is taken for dead: its replacement is the point.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from chaos.findings import Finding, judge
from chaos.records import History, Mark, PodSeen, ProcessSeen

__all__ = ["check_pods"]

#: A smaller number takes this long to have its effect: controllers, agents, and the looking every tenth of a second.
_SHRINK_NS: Final = 10_000_000_000


def check_pods(history: History) -> list[Finding]:
    """Nothing if no Deployment was worked on."""
    wanted = [mark for mark in history.marks if mark.act == "deploy" and mark.name == "wanted"]
    if not wanted:
        return []
    names = {str(mark.detail["workload"]) for mark in wanted if "workload" in mark.detail}
    pods = [seen for seen in history.pods if not names or seen.workload in names]
    return [_not_too_many(pods, history.processes, wanted), _one_place(history.processes), _settled(history, pods)]


def _not_too_many(pods: Sequence[PodSeen], processes: Sequence[ProcessSeen], wanted: Sequence[Mark]) -> Finding:
    """At every moment: processes of pods that are not going, against what was wanted lately and the surge."""
    moments: list[PodSeen | ProcessSeen] = sorted([*pods, *processes], key=lambda seen: seen.at_ns)
    running: defaultdict[str, set[str]] = defaultdict(set)
    going: set[str] = set()
    checked, most = 0, 0
    broken: list[str] = []
    for at, seen in enumerate(moments):
        if isinstance(seen, PodSeen):
            if seen.deleting or seen.gone:
                going.add(seen.uid)
        elif seen.running:
            running[seen.uid].add(seen.node)
        else:
            running[seen.uid].discard(seen.node)
        if at + 1 < len(moments) and moments[at + 1].at_ns == seen.at_ns:
            continue  # of one look: only all of it together was ever so
        count = sum(1 for uid, nodes in running.items() if nodes and uid not in going)
        allowed = _allowed(wanted, seen.at_ns)
        checked += 1
        most = max(most, count - allowed)
        if count > allowed:
            broken.append(f"{count} pods ran at {seen.at_ns / 1e9:.3f} s, allowed are {allowed}")
    return judge("deployments: never more pods than wanted and the surge", checked, broken)


def _allowed(wanted: Sequence[Mark], at_ns: int) -> int:
    """The most that was wanted in the time that a change may take, and the surge."""
    recent = [mark for mark in wanted if at_ns - _SHRINK_NS <= mark.at_ns <= at_ns]
    before = [mark for mark in wanted if mark.at_ns < at_ns - _SHRINK_NS][-1:]
    counting = [*before, *recent] or list(wanted[:1])
    return max(int(mark.detail["replicas"]) + int(mark.detail["surge"]) for mark in counting)


def _one_place(processes: Sequence[ProcessSeen]) -> Finding:
    running: defaultdict[str, set[str]] = defaultdict(set)
    broken = []
    for seen in sorted(processes, key=lambda seen: (seen.at_ns, seen.running)):
        if not seen.running:
            running[seen.uid].discard(seen.node)
            continue
        running[seen.uid].add(seen.node)
        if len(running[seen.uid]) > 1:
            broken.append(
                f"pod {seen.uid} ran on {' and '.join(sorted(running[seen.uid]))} at {seen.at_ns / 1e9:.3f} s"
            )
    return judge("deployments: no pod in two places", len(running), broken)


def _settled(history: History, pods: Sequence[PodSeen]) -> Finding:
    settled = [mark.detail for mark in history.marks if mark.act == "deploy" and mark.name == "settled"]
    broken = [
        f"{found['ready']} of {found['wanted']} pods Ready" for found in settled if found.get("settled_s") is None
    ]
    restarts = sum({seen.uid: seen.restarts for seen in pods if not seen.gone}.values())
    took = [float(found["settled_s"]) for found in settled if found.get("settled_s") is not None]
    said = [f"{took[-1]:.2f} s after the load ended"] if took else []
    said += [f"{restarts} containers restarted"] if restarts else []
    return judge("deployments: as wanted in the end", len(settled), broken, note="; ".join(said))
