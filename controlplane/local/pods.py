"""The pods of a local node, as the agent's own records on disk tell: to kill them when their machine "dies".

Reads the record format that ``node.runtime.record`` documents (version 1: ``pods/UID/.agent/containers/ID.json`` with
``name``, ``pid``, ``pgid``, ``start_ticks``, ``boot_id``, ``finished_at_ms``), and nothing else of the agent. A
recorded process group is killed only if its leader is still the process that was started.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from controlplane.local.procfs import boot_id, stat_of

__all__ = ["containers", "kill", "kill_all", "running"]


def running(node_dir: Path) -> dict[str, list[int]]:
    """Pod uid -> process groups of its containers that run now."""
    found: dict[str, list[int]] = {}
    for uid, _, pgid in _alive(node_dir):
        found.setdefault(uid, []).append(pgid)
    return found


def containers(node_dir: Path) -> dict[str, dict[str, int]]:
    """Pod uid -> container name -> its process group, of containers that run now."""
    found: dict[str, dict[str, int]] = {}
    for uid, name, pgid in _alive(node_dir):
        found.setdefault(uid, {})[name] = pgid
    return found


def _alive(node_dir: Path) -> Iterator[tuple[str, str, int]]:
    """(pod uid, container name, process group)."""
    boot = boot_id()
    for path in sorted(node_dir.glob("pods/*/.agent/containers/*.json")):
        try:
            record = json.loads(path.read_text())
            pid, pgid = int(record["pid"]), int(record["pgid"])
            start_ticks, boot_then, finished = record["start_ticks"], record["boot_id"], record["finished_at_ms"]
        except (OSError, ValueError, TypeError, KeyError):
            continue  # being replaced, or not a record
        if pid <= 1 or pgid <= 1 or finished or boot_then != boot:
            continue
        stat = stat_of(pid)
        if stat is not None and stat.start_ticks == start_ticks:
            yield path.parents[2].name, str(record.get("name", "")), pgid


def kill_all(node_dir: Path) -> int:
    """SIGKILL every process group of every pod of the node; return how many pods had one."""
    found = running(node_dir)
    kill(found)
    return len(found)


def kill(found: Mapping[str, Iterable[int]]) -> None:
    """SIGKILL the process groups that :func:`running` found."""
    for groups in found.values():
        for pgid in groups:
            try:
                os.killpg(pgid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself between the look and the signal
