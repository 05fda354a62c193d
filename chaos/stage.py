"""One trial at work: faults struck and healed through the undo list, waits, and what was observed.

Owns the rule of the blast radius (no quorum is lost unless the experiment says so) and the order *decide, write down,
strike*. Actions and probes act on a Stage; so does Chaos Toolkit's own `chaos run`, which has no load and no recorder.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from chaos.catalogue import Catalogue
from chaos.census import Census
from chaos.fault import JSON, DeviationError, FaultError, ImpossibleError, Strike
from chaos.faults import REGISTRY, fault_named
from chaos.ground import Ground
from chaos.history import Recorder
from chaos.load import Load
from chaos.lookout import Lookout
from chaos.records import Mark
from chaos.targets import TargetError, resolve
from chaos.undo import Entry
from controlplane.base.errors import ConfigError, QuarterdeckError
from controlplane.base.rand import Rand

__all__ = ["COMMON", "BlastRadiusError", "Census", "Stage", "Struck", "catalogue_of", "heal_entry"]

POLL_S: Final = 0.02
#: Arguments that every fault takes, beside its own parameters.
COMMON: Final[Mapping[str, str]] = {
    "target": "a selector: leader, follower, majority, node, zone, pod/NAME, … (chaos/targets.py)",
    "mode": "one, all, fixed, fixed-percent, random-max-percent",
    "value": "how many, or what percentage, for the mode",
    "for_s": "seconds after which it is healed; without, it stays until healed",
}


class BlastRadiusError(ConfigError):
    """The fault would cost the quorum, and the experiment does not allow that."""


@dataclass(slots=True)
class Struck:
    """A strike of this trial, while it lasts."""

    entry: Entry
    facts: dict[str, JSON] = field(default_factory=dict)


@dataclass(slots=True)
class Stage:
    """Everything an action or a probe plays with. ``act`` and ``n``: the experiment's name and the trial, from 1.

    ``observed`` collects what goes into the last mark of the trial.
    """

    ground: Ground
    lookout: Lookout
    act: str
    n: int
    rand: Rand
    wanted: int
    by: str
    allow_quorum_loss: bool = False
    recorder: Recorder | None = None
    load: Load | None = None
    observed: dict[str, Any] = field(default_factory=dict)
    excused: set[str] = field(default_factory=set)
    struck: list[Struck] = field(default_factory=list)
    first_fault_s: float | None = None
    last_fault_s: float = 0.0
    last_heal_s: float = 0.0
    census: Census | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    #: What a snapshot held, to be compared with what is restored from it.
    saved: dict[str, Any] = field(default_factory=dict)
    #: Who led before the last fault that hit a leader (or the first fault of all), in which term, and when that was.
    leader_before: str | None = None
    leader_fault_s: float = 0.0
    term_before: int = 0
    #: Asked while faults are in force, of what is true at the moment: nothing is waited for.
    at_once: bool = False

    def mark(self, name: str, **detail: Any) -> Mark | None:
        """Into the history, if there is one."""
        return self.recorder.mark(self.act, self.n, name, **detail) if self.recorder is not None else None

    def prove(self, claim: str, seen: str) -> None:
        """What was seen of a coincidence that the experiment claims (``claims``); empty: nothing."""
        self.ground.say(f"proven: {seen}" if seen else f"no proof of {claim}")
        self.mark("proved", what=claim, seen=seen)

    def now_s(self) -> float:
        """Now, on the ground's clock."""
        return self.ground.clock.monotonic()

    def since_fault_s(self) -> float:
        """Seconds since the first fault of this trial."""
        return self.now_s() - (self.first_fault_s if self.first_fault_s is not None else self.now_s())

    # -- faults ------------------------------------------------------------------------------------------------------

    async def plan(self, name: str, arguments: Mapping[str, JSON], rand: Rand | None = None) -> Strike:
        """Decide, by what is seen now; no effect.

        Raises:
            ImpossibleError: it cannot be made here.
            ConfigError: an argument, or the target now, does not fit.
        """
        fault = fault_named(name)
        why = self.ground.missing(fault)
        if why is not None:
            raise ImpossibleError(f"{name} cannot be made here: {why}")
        seen = await self.ground.look()
        # From here on nothing is waited for until the strike is written down: two at once cannot both be the last
        # that a majority bears.
        source = rand or self.rand
        params = {key: value for key, value in arguments.items() if key not in COMMON}
        selector = str(arguments.get("target") or fault.target or "cluster")
        mode, value = arguments.get("mode"), int(arguments.get("value") or 0)
        return fault.plan(self.ground, resolve(seen, selector, source, mode=mode, value=value), params, source)

    async def inject(self, name: str, arguments: Mapping[str, JSON], rand: Rand | None = None) -> Struck:
        """Decide, write the undoing down, strike.

        Raises:
            BlastRadiusError: it would cost the quorum.
            TargetError: whom it was meant for was gone when it struck; it is taken back.
            ImpossibleError, ConfigError, FaultError: as :meth:`plan` and the fault.
        """
        strike = await self.plan(name, arguments, rand)
        if strike.quorum_lost and not self.allow_quorum_loss:
            raise BlastRadiusError(f"{strike.says}: would cost the quorum, which only allow-quorum-loss: true allows")
        struck = Struck(self.ground.undo.add(self.by, strike))
        self.struck.append(struck)
        self.excused.update(strike.excused)
        self.ground.say(strike.says)
        seen, now_s = self.ground.seen, self.now_s()
        if self.first_fault_s is None:
            self.first_fault_s = now_s
        if self.leader_before is None or seen.leader in strike.victims:
            self.leader_before, self.term_before, self.leader_fault_s = seen.leader, seen.term, now_s
        self.last_fault_s = now_s
        self.mark(
            "fault", id=struck.entry.id, fault=name, victims=list(strike.victims), params=dict(arguments),
            says=strike.says, excused=list(strike.excused),
        )  # fmt: skip
        if self.census is not None:
            self.census.include(strike.victims)
        try:
            struck.facts = dict(await REGISTRY[name].strike(self.ground, strike))
        except TargetError as error:
            # Nobody was there to be struck: nothing of it shall count as in force.
            await heal_entry(self.ground, struck.entry)
            self.struck.remove(struck)
            self.mark("healed", id=struck.entry.id, fault=name, proof={"bit": False, "failed": str(error)})
            raise
        if self.census is not None and name == "kill":
            self.census.killed(strike.victims)
        for claim, seen_then in struck.facts.pop("proved", {}).items():
            self.prove(claim, seen_then)
        for key, value in struck.facts.items():
            old = self.observed.get(key)
            self.observed[key] = old + value if isinstance(old, int) and isinstance(value, int) else value
        return struck

    async def heal(self, struck: Struck) -> None:
        """Ask for its proof, take it back, strike it off the list. Raises FaultError: it stays on the list."""
        if struck not in self.struck:
            return
        fault = REGISTRY[struck.entry.strike.fault]
        try:
            proof = dict(await fault.proof(self.ground, struck.entry.strike))
        except FaultError as error:
            # The fault itself says that it did not last: not to be taken for one that did.
            proof = {"bit": False, "failed": str(error)}
        except QuarterdeckError as error:
            proof = {"unknown": str(error)}
        if fault.name == "scale":
            # What asks for fewer pods again does not say which: pods are compared before.
            self.changes = self.pod_changes()
        if self.census is not None and fault.name == "pod-add":
            self.census.leave(struck.entry.strike.victims)
        await heal_entry(self.ground, struck.entry)
        self.last_heal_s = self.now_s()
        if struck in self.struck:
            self.struck.remove(struck)
        self.mark("healed", id=struck.entry.id, fault=fault.name, proof={**struck.facts, **proof})

    def pod_changes(self) -> dict[str, Any]:
        """What became of the pods of the beginning that had no reason to go."""
        if self.changes or self.census is None:
            return self.changes
        return self.census.changes(self.excused)

    async def heal_all(self) -> None:
        """The newest first. What fails is raised when the others are healed."""
        failures: list[QuarterdeckError] = []
        for struck in reversed(list(self.struck)):
            try:
                await self.heal(struck)
            except QuarterdeckError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    # -- waits -------------------------------------------------------------------------------------------------------

    async def until(self, holds: Callable[[], bool | Awaitable[bool]], within_s: float, what: str) -> float:
        """Seconds until it held.

        Raises:
            DeviationError: it did not within the time.
        """
        began_s = self.now_s()
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return self.now_s() - began_s
            if self.now_s() - began_s > within_s:
                raise DeviationError(f"not within {within_s:g} s: {what}")
            if self.load is not None:
                self.load.check()
            await self.ground.clock.sleep(POLL_S)


async def heal_entry(ground: Ground, entry: Entry) -> None:
    """Take one strike back, the last step of it first, and strike it off the list. Any process may do it.

    Raises:
        FaultError: it cannot be taken back; it stays on the list.
        ConfigError: this program does not know the fault.
    """
    for undo in reversed(entry.strike.undo):
        try:
            await fault_named(undo.fault).heal(ground, undo)
        except (FaultError, ConfigError):
            raise
        except (QuarterdeckError, OSError) as error:
            raise FaultError(f"{entry.strike.says}: not healed: {error}") from error
    ground.undo.remove(entry)


def fault_arguments() -> dict[str, dict[str, str]]:
    """Action -> argument -> sentence, of every fault."""
    return {
        name.replace("-", "_"): {**(COMMON if fault.target else {"for_s": COMMON["for_s"]}), **fault.params}
        for name, fault in REGISTRY.items()
    }


def catalogue_of(actions: Mapping[str, Mapping[str, str]], probes: Mapping[str, Mapping[str, str]]) -> Catalogue:
    """With every fault as an action."""
    return Catalogue(
        actions={**fault_arguments(), **actions}, probes=probes, faults={n: f.target for n, f in REGISTRY.items()}
    )
