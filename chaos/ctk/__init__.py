"""Quarterdeck's extension for Chaos Toolkit: the same actions and probes, for its own ``chaos run`` and ``discover``.

Everything here is a plain synchronous function, as Chaos Toolkit wants it, around the asynchronous one of our engine.
The undo list of the cluster's folder is shared: what an action strikes, ``heal`` (or ``qd chaos heal``) takes
back. There is no load and no verdict here; ``qd chaos run`` has them.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from chaos.ctk import actions, probes

__all__ = ["discover"]


def discover(discover_system: bool = True) -> dict[str, Any]:
    """What there is, in the form of ``chaoslib``'s discovery. ``discover_system`` changes nothing: what runs here is
    asked by the probes."""
    return {
        "extension": "chaos.ctk",
        "version": metadata.version("quarterdeck"),
        "target": {"type": "quarterdeck"} if discover_system else {},
        "activities": [
            *_activities("action", actions.FUNCTIONS), *_activities("probe", probes.FUNCTIONS),
        ],
    }  # fmt: skip


def _activities(kind: str, functions: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "type": kind,
            "name": name,
            "mod": function.__module__,
            "doc": function.__doc__,
            "arguments": [{"name": each} for each in function.__signature__.parameters],
        }
        for name, function in functions.items()
    ]
