"""Kubernetes' resource quantities: ``100m``, ``1.5Gi``, ``12e6``. Pure.

Owns parsing and the canonical text. A quantity is exact to a billionth (``n``); finer input is rounded away from zero,
as Kubernetes does. Canonical: no fraction, the largest suffix that keeps it exact, the family of suffixes (binary,
decimal, exponent) of the input. Source: k8s.io/apimachinery resource.Quantity.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["QuantityError", "canonical", "to_milli", "to_nano", "to_whole"]

_NANO: Final = 10**9
#: Largest value Kubernetes keeps: 2^63 - 1 whole units.
_WHOLE_MAX: Final = (1 << 63) - 1
_SYNTAX: Final = re.compile(
    r"(?a)(?P<sign>[+-]?)(?P<whole>\d{0,40})(?:\.(?P<fraction>\d{0,40}))?(?P<suffix>[eE][+-]?\d{1,2}|[KMGTPE]i|[numkMGTPE]|)"
)
_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY_DOWN: Final = tuple((suffix, 1 << bits) for suffix, bits in sorted(_BINARY.items(), key=lambda i: -i[1]))
_DECIMAL_DOWN: Final = tuple((suffix, exponent) for suffix, exponent in sorted(_DECIMAL.items(), key=lambda i: -i[1]))


class QuantityError(ValueError):
    """The text is no quantity; the message says what one looks like."""


def to_nano(text: str) -> int:
    """Billionths of a unit, exactly (finer input rounded away from zero).

    Raises:
        QuantityError: not a quantity, or beyond 2^63 - 1 units.
    """
    return _parse(text)[0]


def to_milli(text: str) -> int:
    """Thousandths, rounded up: what CPU is counted in."""
    return -(-to_nano(text) // 10**6)


def to_whole(text: str) -> int:
    """Whole units, rounded up: what bytes and pods are counted in."""
    return -(-to_nano(text) // _NANO)


def canonical(text: str) -> str:
    """The text Kubernetes prints for this quantity: ``0.5`` is ``500m``, ``1024Mi`` is ``1Gi``, ``1000`` is ``1k``.

    Raises:
        QuantityError: as :func:`to_nano`.
    """
    nano, family = _parse(text)
    if nano == 0:
        return "0"
    if family == "binary" and nano % _NANO == 0 and abs(nano) >= 1024 * _NANO:
        whole = nano // _NANO
        for suffix, unit in _BINARY_DOWN:
            if whole % unit == 0:
                return f"{whole // unit}{suffix}"
        return str(whole)
    for suffix, exponent in _DECIMAL_DOWN:
        unit = 10 ** (exponent + 9)
        if nano % unit == 0:
            if family == "exponent":
                return f"{nano // unit}" + (f"e{exponent}" if exponent else "")
            return f"{nano // unit}{suffix}"
    raise AssertionError("every integer is a multiple of one nano")


def _parse(text: str) -> tuple[int, str]:
    match = _SYNTAX.fullmatch(text)
    if match is None or not (match["whole"] or match["fraction"]):
        raise QuantityError(
            f"{text!r} is not a quantity: a number and a suffix of n u m k M G T P E, Ki Mi Gi Ti Pi Ei, or eN"
        )
    fraction, suffix = match["fraction"] or "", match["suffix"]
    digits = int((match["whole"] or "0") + fraction)
    if suffix in _BINARY:
        family, scaled, divisor = "binary", (digits * _NANO) << _BINARY[suffix], 10 ** len(fraction)
    else:
        family = "decimal" if suffix in _DECIMAL else "exponent"
        power = (_DECIMAL[suffix] if family == "decimal" else int(suffix[1:])) + 9 - len(fraction)
        scaled, divisor = digits * 10 ** max(power, 0), 10 ** max(-power, 0)
    nano = -(-scaled // divisor)
    if nano > _WHOLE_MAX * _NANO:
        raise QuantityError(f"{text!r} is too large: at most {_WHOLE_MAX}")
    return (-nano if match["sign"] == "-" else nano), family
