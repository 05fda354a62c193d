"""Writes the reports of a run into its folder: the only part of the package that touches files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from chaos.history import load
from chaos.report.junit import junit
from chaos.report.text import as_dict
from chaos.verdict import Report, judge_history
from controlplane.base.errors import ConfigError

__all__ = ["write_all"]

_LOG_BYTES_MAX: Final = 4_000_000


def write_all(folder: Path, report: Report | None = None) -> list[Path]:
    """``report.json``, ``junit.xml`` and ``report.html`` from ``history.jsonl`` (and ``experiment.json`` and ``logs/``,
    where they are). Returns what was written. ``report``: of that history, if it has been judged already.

    Raises:
        ConfigError: there is no history in the folder, or what is there cannot be read.
    """
    history = load(folder / "history.jsonl")
    report = report or judge_history(history)
    # Slow to import, and only needed here.
    from chaos.report.page import page

    written = {
        "report.json": json.dumps(as_dict(report), indent=2) + "\n",
        "junit.xml": junit(report),
        "report.html": page(history, report, experiment=_experiment(folder), logs=_logs(folder)),
    }
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in written]


def _experiment(folder: Path) -> Mapping[str, Any]:
    path = folder / "experiment.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no object")
    return found


def _logs(folder: Path) -> Mapping[str, str]:
    """The end of each process's log, by name."""
    logs: dict[str, str] = {}
    for path in sorted((folder / "logs").glob("*.log")):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES_MAX))
            logs[path.stem] = file.read(_LOG_BYTES_MAX).decode("utf-8", "replace")
    return logs
