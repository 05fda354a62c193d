"""Replicas that are broken on purpose, to see experiments fail: real processes, real faults, real load.

A build is a folder with a ``sitecustomize.py``, which Python runs before the replica's program when the folder stands
in its PYTHONPATH. The production packages know nothing of it: there is no switch to flip by mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos import experiment
from chaos.runner import Run, run
from chaos.steps import catalogue
from controlplane.cli.bring_up import bring_up
from controlplane.local.cluster import LocalCluster
from controlplane.local.spec import ARCHIVE, plan

__all__ = ["BUILDS", "Build", "play", "start"]

_HERE: Final = Path(__file__).parent
_WEB: Final = _HERE.parents[1] / "examples" / "web.yaml"


@dataclass(frozen=True, slots=True)
class Build:
    """``plays``: the experiment that must fail on it. ``because``: the rule that is broken."""

    folder: str
    plays: str
    because: str

    @property
    def path(self) -> Path:
        """What goes into PYTHONPATH."""
        return _HERE / self.folder


#: By name.
BUILDS: Final = {
    build.folder.replace("_", "-"): build
    for build in (
        Build("forgets_the_tail", "power-cut", "no acknowledged write lost"),
        Build("stale_reads", "leader-isolated", "revisions follow real time"),
    )
}


def start(build: Build, root: Path, *, port_base: int, hosts: str) -> LocalCluster:
    """Three such replicas with honest agents, started; also who is started again is broken, if it is through this
    object. ``down`` it."""
    cluster = LocalCluster.create(
        root, plan(replicas=3, nodes=3, port_base=port_base, tls=True, hosts=hosts, archive=ARCHIVE)
    )
    cluster.sources = {f"r{n}": build.path for n in (1, 2, 3)}
    try:
        cluster.prepare()
        for name in cluster.names:
            cluster.start(name)
    except BaseException:
        cluster.down()
        raise
    return cluster


async def play(build: Build, root: Path, *, port_base: int, hosts: str, say: Callable[[str], None]) -> Run:
    """Start them, and run the build's experiment on them. The cluster is stopped after.

    Raises:
        QuarterdeckError: the cluster did not come up.
    """
    cluster = start(build, root, port_base=port_base, hosts=hosts)
    try:
        served = await bring_up(
            root, replicas=3, nodes=3, port_base=port_base, store="embedded", tls=True, hosts=hosts, manifest=_WEB
        )
        served.sources = cluster.sources
        return await run(served, [experiment.read(build.plays, catalogue())], name=build.plays, seed=1, say=say)
    finally:
        cluster.down()
