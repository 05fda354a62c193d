"""Tables as a kubectl user knows them: upper-case headings, columns by width, no lines, nothing cut."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Table", "age", "table"]

_YEAR_DAYS = 365


class Table:
    """A table that grows: rows of later calls keep the widths of earlier ones, as a watch needs.

    The heading row comes out once, with the first rows; never if ``headings_shown`` is False.
    """

    def __init__(self, headings: Sequence[str], *, headings_shown: bool = True, gap: int = 3) -> None:
        self._headings = headings
        self._pending = [headings] if headings_shown else []
        self._widths = [len(heading) if headings_shown else 0 for heading in headings]
        self._gap = " " * gap

    def add(self, rows: Sequence[Sequence[str]]) -> str:
        """These rows as text, one a line, trailing blanks removed, no final newline."""
        lines = [*self._pending, *rows]
        self._pending = []
        for row in rows:
            self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)]
        return "\n".join(
            self._gap.join(cell.ljust(width) for cell, width in zip(row, self._widths, strict=True)).rstrip()
            for row in lines
        )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, gap: int = 3) -> str:
    """A whole table as text, one row a line, trailing blanks removed, no final newline."""
    return Table(headings, gap=gap).add(rows)


def age(seconds: float) -> str:
    """A duration as kubectl writes ages: 45s, 3m12s, 5h7m, 2d3h, 40d, 3y20d."""
    total = max(0, int(seconds))
    if total < 120:
        return f"{total}s"
    minutes, secs = divmod(total, 60)
    if minutes < 10:
        return f"{minutes}m{secs}s" if secs else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 8:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days, hours = divmod(hours, 24)
    if days < 8:
        return f"{days}d{hours}h" if hours else f"{days}d"
    if days < 2 * _YEAR_DAYS:
        return f"{days}d"
    years, days = divmod(days, _YEAR_DAYS)
    return f"{years}y{days}d" if days and years < 8 else f"{years}y"
