"""The rules a history must obey. Pure: from a history to findings, one module per subject.

::

    fresh      keys written once each, and the watch over them
    log        who wrote what at which revision: what the rest is judged by
    registers  keys that several clients fight over: linearizability by revisions
    search     the same keys without trusting a revision (Wing and Gong's search), on short stretches
    appends    lists that transactions append to: lost updates, aborted reads, duplicates, cycles
    watches    the six properties of watches
    leases     never early, not late, all keys at once
    locks      one holder at a time, by fencing token
    pods       never too many, never in two places
    evictions  no pod evicted from a node that was there; asked of each trial, by the verdict

A rule that a history has nothing for is not listed, but for those of ``fresh``: every run writes.
"""

from __future__ import annotations

from chaos.checkers.appends import check_appends
from chaos.checkers.fresh import check_fresh
from chaos.checkers.leases import check_leases
from chaos.checkers.lineage import Lineage, Restore
from chaos.checkers.locks import check_locks
from chaos.checkers.log import Log
from chaos.checkers.pods import check_pods
from chaos.checkers.registers import check_registers
from chaos.checkers.search import check_by_search
from chaos.checkers.watches import check_watches
from chaos.findings import Finding
from chaos.records import History

__all__ = ["Lineage", "Restore", "check_all"]


def check_all(history: History) -> list[Finding]:
    """Every rule, in the order to show them."""
    lineage = Lineage.of(history)
    log = Log(history, lineage)
    return [
        *check_fresh(history, lineage),
        *check_registers(log),
        *check_by_search(history, lineage),
        *check_appends(history, lineage),
        *check_watches(log),
        *check_leases(log),
        *check_locks(log),
        *check_pods(history),
    ]
