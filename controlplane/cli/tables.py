"""Tables as a kubectl user knows them: upper-case headings, columns by width, no lines, nothing cut."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["age", "table"]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, gap: int = 3) -> str:
    """The table as text, one row a line, trailing blanks removed, no final newline."""
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    lines = [
        (" " * gap).join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (headings, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def age(seconds: float) -> str:
    """A duration as kubectl writes ages: 45s, 3m12s, 5h7m, 2d3h, 40d."""
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
    return f"{days}d{hours}h" if days < 8 and hours else f"{days}d"
