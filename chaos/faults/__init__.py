"""Every fault there is, by the name that experiments use. A module of faults ends with ``FAULTS``: its own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Final

from chaos.fault import Fault
from chaos.faults import clocks, disks, members, moments, network, objects, process, resources, state
from controlplane.base.errors import ConfigError

__all__ = ["REGISTRY", "fault_named"]

REGISTRY: Final[Mapping[str, Fault]] = {
    fault.name: fault
    for module in (process, network, disks, clocks, resources, members, moments, objects, state)
    for fault in module.FAULTS
}


def fault_named(name: str) -> Fault:
    """The fault of that name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    near = difflib.get_close_matches(name, REGISTRY, n=1)
    raise ConfigError(
        f"fault {name!r}: unknown{f'; did you mean {near[0]!r}?' if near else ''}; there are: {', '.join(REGISTRY)}"
    )
