"""Faults: what is wrong with an object, collected, in Kubernetes' words. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from controlplane.api.errors import FieldCause

__all__ = ["Faults"]


@dataclass(slots=True)
class Faults:
    """A list of field causes with one method per way to be wrong."""

    causes: list[FieldCause] = field(default_factory=list)

    def required(self, path: str, hint: str = "") -> None:
        """The field must be there."""
        self._add(path, f"Required value: {hint}" if hint else "Required value", "FieldValueRequired")

    def invalid(self, path: str, value: object, allowed: str) -> None:
        """The value is not allowed; ``allowed`` says what is."""
        shown = f'"{value}"' if isinstance(value, str) else str(value)
        self._add(path, f"Invalid value: {shown}: {allowed}", "FieldValueInvalid")

    def unsupported(self, path: str, value: str, supported: Iterable[str]) -> None:
        """The value is not one of a fixed set."""
        names = ", ".join(f'"{s}"' for s in supported)
        self._add(path, f'Unsupported value: "{value}": supported values: {names}', "FieldValueNotSupported")

    def duplicate(self, path: str, value: object) -> None:
        """The value must be unique in its list."""
        self._add(path, f'Duplicate value: "{value}"', "FieldValueDuplicate")

    def forbidden(self, path: str, why: str) -> None:
        """The field may not be set, or not be changed."""
        self._add(path, f"Forbidden: {why}", "FieldValueForbidden")

    def check(self, path: str, value: object, problem: str | None) -> None:
        """Record ``problem`` if there is one."""
        if problem is not None:
            self.invalid(path, value, problem)

    def one_of(self, path: str, value: str, supported: tuple[str, ...]) -> None:
        """``value`` must be one of ``supported``."""
        if value not in supported:
            self.unsupported(path, value, supported)

    def at_least(self, path: str, value: int, low: int) -> None:
        """``value`` must not be below ``low``."""
        if value < low:
            self.invalid(path, value, f"must be greater than or equal to {low}")

    def between(self, path: str, value: int, low: int, high: int) -> None:
        """``value`` must be in [low, high]."""
        if not low <= value <= high:
            self.invalid(path, value, f"must be between {low} and {high}, inclusive")

    def _add(self, path: str, message: str, reason: str) -> None:
        self.causes.append(FieldCause(path, message, reason))
