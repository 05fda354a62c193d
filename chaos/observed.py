"""What was seen of the cluster from outside the history, judged: leaders, pods, nodes, restored state. Pure.

What a trial's ``observed`` mark says decides what is asked of it; a time with a budget and no observation is a question
that was not answered, so it is INCONCLUSIVE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chaos.budgets import Budgets
from chaos.findings import Finding, judge

__all__ = ["observed_findings"]


def observed_findings(act: str, observed: Mapping[str, Any], budgets: Budgets) -> list[Finding]:
    """Every rule that the observation speaks to."""
    if not observed:
        return []
    findings = []
    if "pods_watched" in observed and budgets.pods_restarted is not None:
        findings.append(_untouched(observed, int(budgets.pods_restarted)))
    if "containers_killed" in observed:
        findings.append(_started_again(observed))
    if "states" in observed:
        findings.append(_agreed(observed["states"]))
    if "during" in observed:
        findings.append(_during(observed["during"], budgets.steady_gap_s))
    if "leader_before" in observed and "leader_after" in observed:
        findings.append(_new_leader(observed))
    if budgets.leader_s is not None:
        findings.append(_within("another replica leads", "leader_s", budgets.leader_s, observed))
    if "replaced_s" in observed:
        findings.append(_replaced(observed, budgets.replaced_s))
    elif budgets.replaced_s is not None:
        findings.append(_within("pods Ready elsewhere", "replaced_s", budgets.replaced_s, observed))
    if "pods_on_new_nodes" in observed:
        findings.append(_scaled(observed))
    if "snapshot_hash" in observed:
        findings.append(_restored(observed))
    if observed.get("left_out"):
        findings.append(_left_out(observed["left_out"]))
    if budgets.first_write_s is not None:
        findings.append(_within("a write acknowledged", "first_write_s", budgets.first_write_s, observed))
    if budgets.converged_s is not None:
        findings.append(_within("everything as it should be", "converged_s", budgets.converged_s, observed))
    return findings


def _within(what: str, name: str, budget_s: float, observed: Mapping[str, Any]) -> Finding:
    """A time that was waited for. Named and None: it never came. Not named: nobody looked."""
    took_s = observed.get(name)
    broken = []
    if name in observed and took_s is None:
        broken.append("not seen")
    elif took_s is not None and float(took_s) > budget_s:
        broken.append(f"took {float(took_s):.3f} s")
    note = f"{float(took_s):.3f} s" if took_s is not None else ""
    return judge(f"{what} within {budget_s:g} s", int(name in observed), broken, note=note)


def _untouched(observed: Mapping[str, Any], allowed: int) -> Finding:
    """Pods that had no reason to stop were neither restarted nor replaced: by the API's account and by the operating
    system's, which knows their processes."""
    restarted, replaced = int(observed["pods_restarted"]), int(observed["pods_replaced_without_need"])
    ended = int(observed["processes_ended"])
    counts = {"restarted": restarted, "replaced without need": replaced, "whose process ended": ended}
    broken = [f"{n} {what}" for what, n in counts.items() if n > allowed]
    rule = "no pod restarted" if not allowed else f"at most {allowed} pods restarted"
    # Where every pod had a reason to go there was none to watch.
    at_least = 0 if observed.get("pods_excused") else 1
    return judge(rule, int(observed["pods_watched"]), broken, at_least=at_least)


def _left_out(kinds: Sequence[str]) -> Finding:
    """Kinds that a schedule may do without: told with the verdict, so that nobody takes them for survived."""
    note = f"left out: {', '.join(dict.fromkeys(kinds))}"
    return judge("random faults that cannot be made here", 0, [], at_least=0, note=note)


def _new_leader(observed: Mapping[str, Any]) -> Finding:
    old, new = observed["leader_before"], observed["leader_after"]
    broken = []
    if not new or new == old:
        broken.append(f"the leader was {old} and is {new}")
    if int(observed["term_after"]) <= int(observed["term_before"]):
        broken.append(f"the term was {observed['term_before']} and is {observed['term_after']}")
    # Not a violation: nobody was disturbed longer than the gap that is judged. But a replica that comes back should
    # leave the leader alone, so it is told.
    later = int(observed.get("elections_after", 0))
    note = f"{old} → {new}" + (f", then {later} more terms" if later else "")
    return judge("another replica leads", 1, broken, note=note)


def _replaced(observed: Mapping[str, Any], budget_s: float | None) -> Finding:
    killed, took_s = int(observed.get("pods_killed", 0)), observed.get("replaced_s")
    broken = []
    if took_s is None:
        broken.append("pods were not Ready elsewhere")
    elif budget_s is not None and float(took_s) > budget_s:
        broken.append(f"took {float(took_s):.2f} s")
    note = f"{killed} pods in {float(took_s):.2f} s" if took_s is not None else f"{killed} pods"
    rule = "pods Ready elsewhere" + ("" if budget_s is None else f" within {budget_s:g} s")
    return judge(rule, killed, broken, note=note)


def _scaled(observed: Mapping[str, Any]) -> Finding:
    wanted, ready, took_s = int(observed["pods_wanted"]), int(observed["pods_ready"]), observed.get("scaled_s")
    broken = [] if ready >= wanted and took_s is not None else [f"{ready} of {wanted} pods Ready"]
    on_new = {str(k): int(v) for k, v in observed["pods_on_new_nodes"].items()}
    broken += [f"{node} has no pod" for node, pods in on_new.items() if not pods]
    note = ", ".join(f"{pods} on {node}" for node, pods in on_new.items())
    return judge("all pods Ready, new nodes used", len(on_new), broken, note=note)


def _restored(observed: Mapping[str, Any]) -> Finding:
    broken = []
    if observed["snapshot_hash"] != observed["restored_hash"]:
        broken.append(f"state hash {observed['restored_hash']} is not the snapshot's {observed['snapshot_hash']}")
    if observed["snapshot_digest"] != observed["served_digest"]:
        broken.append("the keys served are not the snapshot's")
    if int(observed["restored_revision"]) <= int(observed["revision_before_loss"]):
        broken.append(f"revision {observed['restored_revision']} is not above {observed['revision_before_loss']}")
    note = f"{observed['keys']} keys of revision {observed['snapshot_revision']}"
    return judge("restored exactly, at a higher revision", int(observed["keys"]), broken, note=note)


def _started_again(observed: Mapping[str, Any]) -> Finding:
    """Each killed container runs again: as often as it was killed, and by its pod's restartPolicy. One too many is
    among the restarts without need."""
    wanted, found = int(observed["containers_restarts_expected"]), int(observed["containers_restarts_seen"])
    broken = [f"{wanted} restarts expected, {found} seen"] if found < wanted else []
    note = f"{int(observed['containers_killed'])} killed, {found} restarts"
    return judge("every killed container started again", int(observed["containers_killed"]), broken, note=note)


def _agreed(states: Mapping[str, Any]) -> Finding:
    """After healing. ``agree`` None: somebody was silent, or never seen at a revision of another's."""
    note = str(states.get("text", ""))
    broken = [note] if states.get("agree") is False else []
    checked = len(states.get("members", ())) if states.get("agree") is not None else 0
    return judge("state hashes agree at an equal revision on all members", checked, broken, note=note)


def _during(during: Mapping[str, Any], allowed_s: float | None) -> Finding:
    """The steady state while faults lasted: shown, and judged where the experiment says how long it may be lost."""
    said: list[str] = []
    broken: list[str] = []
    for name, found in during.get("probes", {}).items():
        if found["deviated"]:
            longest_s = float(found["longest_s"])
            text = f"{name}: {found['deviated']} of {found['asked']}, longest {longest_s:.1f} s"
            (broken if allowed_s is not None and longest_s > allowed_s else said).append(text)
    samples = int(during.get("samples", 0))
    note = f"asked {samples} times; " + ("deviated: " + "; ".join(said) if said else "it held" if not broken else "")
    rule = "steady state during" if allowed_s is None else f"steady state during: lost for at most {allowed_s:g} s"
    return judge(rule, samples, broken, at_least=1 if allowed_s is not None else 0, note=note.rstrip("; "))
