"""What a fault is: the contract between the runner, which decides when, and the faults, which know how.

A fault first *plans*: it turns targets and parameters into a :class:`Strike`, a value that says who is hit and what
undoes it, and has no effect. The runner puts the undoing on disk (``undo``), and only then *strikes*. *Healing* takes
nothing but the :class:`Undo`: another process may do it after the runner was killed.

Invariants: ``plan`` is a pure function of what was seen, the parameters and the random source, so a seed makes the
same choices again. ``heal`` may be repeated, and may find nothing to do. What cannot be made here raises
ImpossibleError or is told by ``missing``; it is never skipped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from controlplane.base.errors import QuarterdeckError
from controlplane.base.rand import Rand

if TYPE_CHECKING:
    from chaos.ground import Ground

__all__ = ["JSON", "DeviationError", "Fault", "FaultError", "ImpossibleError", "Strike", "Undo"]

#: A value that JSON can hold.
JSON = Any


class FaultError(QuarterdeckError):
    """The machine or the cluster refused what was tried. The message says what, and its words."""


class DeviationError(QuarterdeckError):
    """The cluster did not do what the experiment expects of it. The message says what was waited for."""


class ImpossibleError(QuarterdeckError):
    """The fault cannot be made on this ground. The message says why, and what would make it possible."""


@dataclass(frozen=True, slots=True)
class Undo:
    """One step that takes a fault back. ``args`` are enough for a process that knows nothing else."""

    fault: str
    args: Mapping[str, JSON]


@dataclass(frozen=True, slots=True)
class Strike:
    """What will be done, to whom, and what undoes it. ``quorum_lost``: fewer replicas than a majority will serve, with
    everything that is struck already. ``says``: one line for people."""

    fault: str
    victims: tuple[str, ...]
    args: Mapping[str, JSON]
    undo: tuple[Undo, ...]
    quorum_lost: bool
    says: str
    #: Nodes whose pods have a reason to go, and pods that do ("*": all).
    excused: tuple[str, ...] = field(default=())


class Fault(Protocol):
    """One kind of fault. Subclass it: the defaults are those of a fault that is always possible and proves itself."""

    #: As experiments name it.
    name: str
    #: One sentence, for ``qd chaos list --faults``.
    doc: str
    #: What it is aimed at when an experiment does not say; a selector of ``targets``. Empty: it has no targets.
    target: str
    #: Parameters it takes, each with a sentence.
    params: Mapping[str, str]

    def missing(self, ground: Ground) -> str | None:
        """Why it cannot be made on this ground (no root, no namespaces); None: it can."""
        return None

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        """Decide; no effect.

        Raises:
            ConfigError: a parameter or a target does not fit; says which.
        """
        ...

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        """Do it; return facts about it.

        Raises:
            FaultError: the machine refused.
        """
        ...

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        """Evidence, asked for before healing, that it really bit. ``{"bit": False}``: it did not."""
        return {}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        """Take it back. Repeatable.

        Raises:
            FaultError: it could not be; the step stays on the list.
        """
        ...
