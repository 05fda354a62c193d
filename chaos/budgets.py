"""What an experiment may cost: its budgets. Values only, with the defaults of runs that say nothing.

A number that is None is not judged. Times in seconds, the rest are counts per trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Self

from controlplane.base.errors import ConfigError

__all__ = ["Budgets", "budgets_of_act"]


@dataclass(frozen=True, slots=True)
class Budgets:
    """See the module.

    write_gap_s, read_gap_s: longest time without an acknowledged write, an answered read.
    leader_s: from the fault until another replica leads.
    replaced_s: from the fault until all pods are Ready on other nodes.
    converged_s: from the end of the fault until everything is as it should be.
    first_write_s: from a loss of service to the first acknowledged write.
    leases_failed: grants, renewals and revocations of leases that failed or were not answered.
    steady_gap_s: longest time in which a probe of the steady state was out of its tolerance while a fault lasted.
    downtime: a loss of service is expected: the gap and unanswered operations are not judged unless they are given.
    """

    write_gap_s: float | None = 1.0
    read_gap_s: float | None = None
    leader_s: float | None = None
    replaced_s: float | None = None
    converged_s: float | None = None
    first_write_s: float | None = None
    requests_failed: int | None = 0
    operations_failed: int | None = 0
    operations_unknown: int | None = 0
    leases_failed: int | None = 0
    pods_restarted: int | None = 0
    steady_gap_s: float | None = None
    downtime: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From an experiment's own words.

        Raises:
            ConfigError: an unknown name, or a value that is no number of that kind.
        """
        known = {field.name for field in fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise ConfigError(f"budget {name!r} is unknown; there are: {', '.join(sorted(known))}")
            if name == "downtime":
                if not isinstance(value, bool):
                    raise ConfigError(f"budget downtime is {value!r}, must be true or false")
            elif value is None:
                continue
            elif isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:  # nor NaN
                raise ConfigError(f"budget {name} is {value!r}, must be a number >= 0, or null for no judgement")
        base = cls()
        if given.get("downtime"):
            base = replace(base, write_gap_s=None, operations_failed=None, operations_unknown=None, leases_failed=None)
        return replace(base, **given)


#: Acts of histories from before experiments had budgets of their own. Generous next to what is normal, so that a busy
#: machine does not fail a run, and well under what a person would call an outage.
_ACTS: Final[Mapping[str, Budgets]] = {
    "leader-kill": Budgets(),
    "node-kill": Budgets(replaced_s=10.0),
    "scaling": Budgets(),
    "store-leader-kill": Budgets(write_gap_s=5.0),
    "disaster": Budgets(write_gap_s=15.0),
}


def budgets_of_act(act: str) -> Budgets:
    """The budgets of an act whose ``begin`` names none."""
    return _ACTS.get(act, Budgets())
