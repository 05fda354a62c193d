"""The ``quarterdeck`` extension of an experiment: what it is judged by, under which load, and what it may cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from chaos.budgets import Budgets
from chaos.claims import CLAIMS
from chaos.fault import JSON
from chaos.load import PARTS
from chaos.reading import Reader, near
from controlplane.base.errors import ConfigError

__all__ = ["BUDGETS", "Settings", "read_settings"]

BUDGETS: Final = (
    "write_gap_s", "read_gap_s", "leader_s", "replaced_s", "converged_s", "first_write_s", "requests_failed",
    "operations_failed", "operations_unknown", "leases_failed", "pods_restarted", "steady_gap_s", "downtime",
)  # fmt: skip
_FIELDS: Final = (
    "name", "budgets", "workload", "proves", "allow-quorum-loss", "repeatable", "steady_s", "store", "replicas_min",
    "nodes_min",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """The ``quarterdeck`` extension. ``budgets``: what the verdict judges by. ``workload``: parts of the load.
    ``allow_quorum_loss``: the blast radius. ``repeatable``: may be repeated under one load. ``store``: the one it is
    made for; empty: any. ``proves``: coincidences that its name claims (``claims``): a trial without proof of each is
    INCONCLUSIVE."""

    budgets: Mapping[str, JSON] = field(default_factory=dict)
    workload: tuple[str, ...] = ("kv", "watch", "http")
    allow_quorum_loss: bool = False
    repeatable: bool = True
    steady_s: float = 2.0
    store: str = ""
    replicas_min: int = 1
    nodes_min: int = 1
    proves: tuple[str, ...] = ()


def read_settings(reader: Reader, value: Any) -> Settings:
    """The settings of an experiment's ``extensions``; the defaults if there is no extension of ours.

    Raises:
        ConfigError: a field or a value is none of ours; says where.
    """
    ours = [
        (n, reader.mapping(item, f"extensions[{n}]"))
        for n, item in enumerate(reader.items(value, "extensions"))
        if isinstance(item, dict) and item.get("name") == "quarterdeck"
    ]
    if not ours:
        return Settings()
    where, raw = f"extensions[{ours[0][0]}]", ours[0][1]
    reader.keys(raw, where, _FIELDS)
    budgets = reader.mapping(raw.get("budgets") or {}, f"{where}.budgets")
    reader.keys(budgets, f"{where}.budgets", BUDGETS)
    try:
        Budgets.of(budgets)
    except ConfigError as error:
        reader.refuse(f"{where}.budgets", str(error))
    workload = tuple(str(part) for part in reader.items(raw.get("workload"), f"{where}.workload"))
    for part in workload:
        if part not in PARTS:
            reader.refuse(f"{where}.workload", f"{part!r}: unknown{near(part, PARTS)}")
    proves = tuple(str(claim) for claim in reader.items(raw.get("proves"), f"{where}.proves"))
    for claim in proves:
        if claim not in CLAIMS:
            reader.refuse(f"{where}.proves", f"{claim!r}: unknown{near(claim, CLAIMS)}")
    store = raw.get("store", "")
    if store not in ("", "embedded", "etcd"):
        reader.refuse(f"{where}.store", f"{store!r}: want embedded or etcd")
    return Settings(
        budgets=budgets,
        workload=workload or Settings().workload,
        allow_quorum_loss=reader.yes_or_no(raw.get("allow-quorum-loss", False), f"{where}.allow-quorum-loss"),
        repeatable=reader.yes_or_no(raw.get("repeatable", True), f"{where}.repeatable"),
        steady_s=reader.number(raw.get("steady_s", 2), f"{where}.steady_s", 0.5, 600.0),
        store=str(store),
        proves=proves,
        replicas_min=reader.whole(raw.get("replicas_min", 1), f"{where}.replicas_min", 1, 9),
        nodes_min=reader.whole(raw.get("nodes_min", 1), f"{where}.nodes_min", 0, 200),
    )
