"""A run as Chaos Toolkit's journal, with our own keys beside its: ``seed``, ``faults``, ``trials``, ``verdict``. Pure.

A journal is of one execution; a run may have played several trials. It tells of the one that matters most: the first
that deviated or was not done, or else the last; ``trials`` has a line for each.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from chaos.during import Played
from chaos.experiment import Experiment
from chaos.findings import Verdict
from chaos.trial import TrialLog
from chaos.verdict import ActReport, Report

__all__ = ["journal"]


def journal(trials: Sequence[tuple[Experiment, TrialLog]], report: Report, *, seed: int) -> dict[str, Any]:
    """The journal of a run; empty trials: one that says that nothing was done."""
    judged = {(act.act, act.n): act for act in report.acts}
    told = next(((e, log) for e, log in trials if log.deviations or log.impossible), trials[-1] if trials else None)
    common: dict[str, Any] = {
        "chaoslib-version": "quarterdeck",
        "platform": platform.platform(),
        "node": "localhost",
        "seed": seed,
        "verdict": report.verdict.value,
        "trials": [_trial(experiment, log, judged.get((experiment.name, log.n))) for experiment, log in trials],
    }
    if told is None:
        return {
            **common, "experiment": {}, "status": "aborted", "deviated": False, "run": [], "rollbacks": [],
            "steady_states": {"before": None, "after": None, "during": []}, "start": "", "end": "", "duration": 0.0,
        }  # fmt: skip
    experiment, log = told
    played = [*log.before, *log.run, *log.rollbacks, *log.after]
    start_ms = min((each.start_ms for each in played), default=0)
    end_ms = max((each.end_ms for each in played), default=0)
    act = judged.get((experiment.name, log.n))
    return {
        **common,
        "experiment": dict(experiment.raw),
        "start": _iso(start_ms),
        "end": _iso(end_ms),
        "duration": (end_ms - start_ms) / 1000,
        "status": _status(log),
        "deviated": bool(log.deviations),
        "steady_states": {
            "before": _state(log.before),
            "after": _state(log.after) if log.after else None,
            "during": [_state(sample) for sample in log.during],
        },
        "run": [_run(each) for each in log.run],
        "rollbacks": [_run(each) for each in log.rollbacks],
        "faults": [dict(fault) for fault in getattr(act, "faults", ())],
        "availability": asdict(act.served) if act is not None else {},
        "observed": dict(act.observed) if act is not None else {},
    }


def _status(log: TrialLog) -> str:
    """Chaos Toolkit's words: completed, failed (the steady state did not hold before), aborted."""
    if log.impossible:
        return "aborted"
    if any(each.tolerated is False for each in log.before):
        return "failed"
    return "completed" if log.whole else "aborted"


def _trial(experiment: Experiment, log: TrialLog, act: ActReport | None) -> dict[str, Any]:
    return {
        "experiment": experiment.name,
        "n": log.n,
        "status": _status(log),
        "deviated": bool(log.deviations),
        "deviations": list(log.deviations),
        "impossible": log.impossible,
        "verdict": (act.verdict if act is not None else Verdict.INCONCLUSIVE).value,
    }


def _state(played: Sequence[Played]) -> dict[str, Any]:
    return {
        "steady_state_met": all(each.tolerated for each in played),
        "probes": [{**_run(each), "tolerance_met": bool(each.tolerated)} for each in played],
    }


def _run(played: Played) -> dict[str, Any]:
    found: dict[str, Any] = {
        "activity": dict(played.activity.raw),
        "start": _iso(played.start_ms),
        "end": _iso(played.end_ms),
        "duration": (played.end_ms - played.start_ms) / 1000,
        "status": played.status,
        "output": _plain(played.output),
    }
    if played.error:
        found["exception"] = [played.error]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat() if at_ms else ""
