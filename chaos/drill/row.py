"""What a drill measured, the table of it, and the verdict of a whole run.

Owns the words of the table; an honest one: what was not measured is "-", what was not done is no success.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from rich.console import Console
from rich.table import Table

__all__ = ["Mark", "Row", "print_table", "verdict_of"]

_FAILED: Final = 1
_INCONCLUSIVE: Final = 4


class Mark(StrEnum):
    """How a drill ended."""

    PASS = "PASS"  # noqa: S105 - no password
    FAIL = "FAIL"
    NOT_COMPARED = "NOT COMPARED"
    UNENDED = "-"


@dataclass(slots=True)
class Row:
    """What a drill measured; times in seconds, None: not measured.

    ``point``: what was restored, in words, and ``point_s``: how long before the disaster that was; where everything is
    lost, by a client's own acknowledgements. ``recovery_s``: from the disaster (a loss) or the command's beginning
    until writes are acknowledged, or what was lost runs again. ``restarts``: pods that had to survive and did not run
    on as the same processes.
    """

    drill: str
    keys: int
    point_s: float | None = None
    recovery_s: float | None = None
    command_s: float | None = None
    gap_s: float | None = None
    restarts: int | None = None
    point: str = ""
    verdict: Mark = Mark.UNENDED
    notes: list[str] = field(default_factory=list)


def verdict_of(rows: Sequence[Row], *, beside: bool, etcd: str) -> tuple[str, int]:
    """The verdict in words, and the exit code.

    Args:
        beside: whether it was asked for beside etcd, so that a run without it shows less than was asked for.
        etcd: what its own drill is called.
    """
    failed = [row.drill for row in rows if row.verdict not in (Mark.PASS, Mark.NOT_COMPARED)]
    if failed:
        return f"FAIL ({', '.join(failed)})", _FAILED
    if not beside:
        return "PASS (not compared with etcd: not asked for)", 0
    missing = [note for row in rows if row.verdict is Mark.NOT_COMPARED for note in row.notes]
    if missing or not any(row.drill == etcd for row in rows):
        return f"INCONCLUSIVE: every drill passed, but NOT COMPARED with etcd: {''.join(missing[:1])}", _INCONCLUSIVE
    return Mark.PASS, 0


def print_table(rows: Sequence[Row]) -> None:
    """A line a drill, on standard output."""
    table = Table(box=None, pad_edge=False, header_style="")
    headings = (
        "DRILL", "KEYS", "RESTORED TO", "RECOVERY POINT", "RECOVERY TIME", "COMMAND", "WRITE GAP", "PODS RESTARTED",
        "VERDICT",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        seconds = [_seconds(value) for value in (row.point_s, row.recovery_s, row.command_s, row.gap_s)]
        restarts = "-" if row.restarts is None else str(row.restarts)
        table.add_row(row.drill, str(row.keys), row.point or "-", *seconds, restarts, row.verdict)
    Console(width=160, highlight=False).print(table)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
