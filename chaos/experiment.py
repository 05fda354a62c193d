"""An experiment as a file: Chaos Toolkit's format, YAML or JSON, read into values or refused with the place named.

Chaos Toolkit's own keys: title, description, tags, contributions, configuration, secrets, controls,
steady-state-hypothesis, method, rollbacks, runtime, extensions. Ours is an extension named ``quarterdeck``
(:class:`Settings`). Owns the format; what actions and probes there are, it asks (``catalogue``).

An error names the file, the field as a path (``method[2].provider.func``) and the nearest name that exists.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from chaos.catalogue import Catalogue
from chaos.fault import JSON
from chaos.reading import Reader, near
from chaos.schedule import Choice, Schedule
from chaos.settings import Settings, read_settings
from chaos.targets import MODES, check_selector
from controlplane.base.errors import ConfigError
from controlplane.base.yaml_limits import check_yaml

__all__ = ["RANDOM_FAULTS", "Activity", "Experiment", "Settings", "names", "parse", "parse_schedule", "read"]

#: The action whose arguments are a schedule.
RANDOM_FAULTS: Final = "random_faults"
FOLDER: Final = Path(__file__).with_name("experiments")
_FILE_BYTES_MAX: Final = 1024 * 1024
_DEPTH_MAX: Final = 32
_TOP: Final = (
    "version", "title", "description", "tags", "contributions", "configuration", "secrets", "controls", "runtime",
    "steady-state-hypothesis", "method", "rollbacks", "extensions",
)  # fmt: skip
_ACTIVITY: Final = ("type", "name", "provider", "pauses", "background", "tolerance", "controls", "ref")
_PROVIDER: Final = ("type", "module", "func", "arguments", "secrets")
_CHOICE: Final = ("fault", "weight", "target", "mode", "value", "for_s", "params", "optional")
_MODULES: Final = ("chaos.ctk.actions", "chaos.ctk.probes")


@dataclass(frozen=True, slots=True)
class Activity:
    """One action or probe. ``before_s``, ``after_s``: pauses around it. ``where``: its path in the file."""

    kind: str
    name: str
    func: str
    arguments: Mapping[str, JSON]
    where: str
    before_s: float = 0.0
    after_s: float = 0.0
    background: bool = False
    tolerance: JSON = None
    raw: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Experiment:
    """A file that has been read. ``schedule``: what the method's random faults are drawn from. ``raw`` is what the file
    says, for journals."""

    name: str
    title: str
    description: str
    tags: tuple[str, ...]
    hypothesis: tuple[Activity, ...]
    method: tuple[Activity, ...]
    rollbacks: tuple[Activity, ...]
    schedule: Schedule | None
    settings: Settings
    raw: Mapping[str, Any]


def names() -> list[str]:
    """The experiments that come with the program, by name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name_or_file: str, catalogue: Catalogue) -> Experiment:
    """An experiment by file, or by the name of one that comes with the program.

    Raises:
        ConfigError: there is none, or it is not one; says where and what is near.
    """
    path = FOLDER / f"{name_or_file}.yaml"
    if "/" in name_or_file or name_or_file.endswith((".yaml", ".yml", ".json")):
        path = Path(name_or_file)
    elif not path.is_file():
        near = difflib.get_close_matches(name_or_file, names(), n=1)
        raise ConfigError(
            f"no experiment {name_or_file!r}{f'; did you mean {near[0]!r}?' if near else ''}; there are: "
            f"{', '.join(names())}; or name a file"
        )
    try:
        if path.stat().st_size > _FILE_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {_FILE_BYTES_MAX} bytes: no experiment")
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text) if path.suffix == ".json" else _from_yaml(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return parse(raw, path.stem, str(path), catalogue)


def _from_yaml(text: str) -> Any:
    check_yaml(text, depth_max=_DEPTH_MAX)
    return yaml.safe_load(text)


def parse_schedule(arguments: Mapping[str, Any], catalogue: Catalogue) -> Schedule:
    """The arguments of random faults, checked. Raises ConfigError."""
    return _Reader(RANDOM_FAULTS, catalogue).schedule(arguments, "arguments")


def parse(raw: Any, name: str, file: str, catalogue: Catalogue) -> Experiment:
    """Check everything that can be checked without a cluster. Raises ConfigError."""
    reader = _Reader(file, catalogue)
    top = reader.mapping(raw, "")
    if "schedule" in top:
        reader.refuse("schedule", f"is the action {RANDOM_FAULTS} of the method, so that Chaos Toolkit plays it too")
    reader.keys(top, "", _TOP)
    for key in ("title", "description", "method"):
        if key not in top:
            reader.refuse(key, "is missing")
    reader.configure(top.get("configuration") or {})
    hypothesis = reader.mapping(top.get("steady-state-hypothesis") or {}, "steady-state-hypothesis")
    reader.keys(hypothesis, "steady-state-hypothesis", ("title", "probes", "controls"))
    method = reader.activities(top["method"], "method")
    found = Experiment(
        name=name,
        title=reader.text(top["title"], "title"),
        description=reader.text(top["description"], "description"),
        tags=tuple(str(tag) for tag in top.get("tags") or ()),
        hypothesis=reader.activities(hypothesis.get("probes"), "steady-state-hypothesis.probes", tolerance=True),
        method=method,
        rollbacks=reader.activities(top.get("rollbacks"), "rollbacks"),
        schedule=reader.schedule_of(method),
        settings=read_settings(reader, top.get("extensions") or []),
        raw=top,
    )
    if not found.method:
        reader.refuse("method", "is empty: nothing would be done")
    return found


class _Reader(Reader):
    """Reads an experiment's own parts."""

    def __init__(self, file: str, catalogue: Catalogue) -> None:
        super().__init__(file)
        self._catalogue = catalogue
        self._configuration: dict[str, Any] = {}

    def configure(self, value: Any) -> None:
        """Chaos Toolkit's configuration: literals, and ``{type: env, key: NAME, default: …}``."""
        for key, item in self.mapping(value, "configuration").items():
            if isinstance(item, dict) and item.get("type") == "env":
                if str(item.get("key")) not in os.environ and "default" not in item:
                    self.refuse(f"configuration.{key}", f"the environment has no {item.get('key')}, and no default")
                self._configuration[key] = os.environ.get(str(item.get("key")), item.get("default"))
            else:
                self._configuration[key] = item

    def activities(self, value: Any, where: str, *, tolerance: bool = False) -> tuple[Activity, ...]:
        return tuple(
            self.activity(item, f"{where}[{n}]", tolerance=tolerance) for n, item in enumerate(self.items(value, where))
        )

    def activity(self, value: Any, where: str, *, tolerance: bool) -> Activity:
        raw = self.mapping(value, where)
        self.keys(raw, where, _ACTIVITY)
        if "ref" in raw:
            self.refuse(f"{where}.ref", "references are resolved by Chaos Toolkit's `chaos run` only; repeat it here")
        kind = raw.get("type")
        if kind not in ("action", "probe"):
            self.refuse(f"{where}.type", f"{kind!r}: want action or probe")
        if tolerance and "tolerance" not in raw:
            self.refuse(f"{where}.tolerance", "is missing: a probe of the steady state says what it must answer")
        provider = self.mapping(raw.get("provider"), f"{where}.provider")
        func = self._provider(provider, f"{where}.provider")
        known = self._catalogue.actions if provider["module"] == _MODULES[0] else self._catalogue.probes
        if func not in known:
            self.refuse(f"{where}.provider.func", f"{func!r}: unknown{near(func, known)}")
        arguments = self._arguments(provider.get("arguments") or {}, func, known[func], f"{where}.provider.arguments")
        pauses = self.mapping(raw.get("pauses") or {}, f"{where}.pauses")
        self.keys(pauses, f"{where}.pauses", ("before", "after"))
        return Activity(
            kind=str(kind),
            name=self.text(raw.get("name"), f"{where}.name"),
            func=func,
            arguments=arguments,
            where=where,
            before_s=self.number(pauses.get("before", 0), f"{where}.pauses.before"),
            after_s=self.number(pauses.get("after", 0), f"{where}.pauses.after"),
            background=self.yes_or_no(raw.get("background", False), f"{where}.background"),
            tolerance=self.tolerance(raw.get("tolerance"), f"{where}.tolerance"),
            raw=raw,
        )

    def _provider(self, provider: dict[str, Any], where: str) -> str:
        self.keys(provider, where, _PROVIDER)
        if provider.get("type") != "python":
            self.refuse(f"{where}.type", f"{provider.get('type')!r}: only python; others run under `chaos run` only")
        if provider.get("module") not in _MODULES:
            self.refuse(f"{where}.module", f"{provider.get('module')!r}: want {' or '.join(_MODULES)}")
        return self.text(provider.get("func"), f"{where}.func")

    def _arguments(self, value: Any, func: str, known: Mapping[str, str], where: str) -> dict[str, JSON]:
        arguments = {key: self._substituted(item, f"{where}.{key}") for key, item in self.mapping(value, where).items()}
        for key in arguments:
            if key not in known:
                self.refuse(f"{where}.{key}", f"{func} has no such argument{near(key, known)}")
        if "target" in arguments:
            self._selector(arguments["target"], f"{where}.target")
        if arguments.get("mode") is not None and arguments["mode"] not in MODES:
            self.refuse(f"{where}.mode", f"{arguments['mode']!r}: want one of {', '.join(MODES)}")
        if "for_s" in arguments:
            self.number(arguments["for_s"], f"{where}.for_s")
        return arguments

    def _selector(self, value: Any, where: str) -> None:
        try:
            check_selector(str(value))
        except ConfigError as error:
            self.refuse(where, str(error))

    def _substituted(self, value: Any, where: str) -> Any:
        if isinstance(value, str) and (match := re.fullmatch(r"\$\{(\w+)\}", value)):
            if match[1] not in self._configuration:
                self.refuse(where, f"{value}: not in configuration{near(match[1], self._configuration)}")
            return self._configuration[match[1]]
        return value

    def tolerance(self, value: Any, where: str) -> JSON:
        if isinstance(value, dict):
            if value.get("type") not in ("range", "regex"):
                self.refuse(f"{where}.type", f"{value.get('type')!r}: want range or regex, or a plain value")
            wanted = "range" if value["type"] == "range" else "pattern"
            if wanted not in value:
                self.refuse(f"{where}.{wanted}", "is missing")
        return value

    def schedule_of(self, method: Iterable[Activity]) -> Schedule | None:
        found = [activity for activity in method if activity.func == RANDOM_FAULTS]
        if len(found) > 1:
            self.refuse(found[1].where, f"is the second {RANDOM_FAULTS}: one schedule has all kinds of fault")
        return self.schedule(found[0].arguments, f"{found[0].where}.provider.arguments") if found else None

    def schedule(self, raw: Mapping[str, Any], where: str) -> Schedule:
        for key in ("duration_s", "faults"):
            if key not in raw:
                self.refuse(f"{where}.{key}", "is missing")
        return Schedule(
            duration_s=self.number(raw["duration_s"], f"{where}.duration_s", 1.0),
            every_s=self.bounds(raw.get("every_s", [2, 6]), f"{where}.every_s"),
            at_most=self.whole(raw.get("at_most", 1), f"{where}.at_most", 1, 10),
            faults=[
                self.choice(item, f"{where}.faults[{n}]")
                for n, item in enumerate(self.items(raw["faults"], f"{where}.faults"))
            ],
        )

    def choice(self, value: Any, where: str) -> Choice:
        raw = self.mapping(value, where)
        self.keys(raw, where, _CHOICE)
        fault = self.text(raw.get("fault"), f"{where}.fault")
        if fault not in self._catalogue.faults:
            self.refuse(f"{where}.fault", f"{fault!r}: unknown{near(fault, self._catalogue.faults)}")
        target = str(raw.get("target") or self._catalogue.faults[fault])
        if target:
            self._selector(target, f"{where}.target")
        params = self.mapping(raw.get("params") or {}, f"{where}.params")
        self._arguments(params, fault, self._catalogue.actions[fault.replace("-", "_")], f"{where}.params")
        return Choice(
            fault=fault,
            weight=self.number(raw.get("weight", 1), f"{where}.weight", 0.0, 1000.0),
            target=target,
            mode=raw.get("mode"),
            value=self.whole(raw.get("value", 0), f"{where}.value", 0, 100),
            for_s=self.bounds(raw.get("for_s", [1, 3]), f"{where}.for_s"),
            params=params,
            optional=self.yes_or_no(raw.get("optional", False), f"{where}.optional"),
        )
