"""Kubernetes quantities (``100m``, ``2``, ``1.5Gi``, ``1e3``) read as exact decimals. Pure.

The API server validates; the agent only has to read what was admitted, and may not import the API package.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

__all__ = ["parse_quantity", "whole"]

_FORM: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([KMGTPE]i|[numkMGTPE]))?")
_SUFFIXES: Final = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30),
    "Ti": Decimal(2**40), "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


def parse_quantity(text: str) -> Decimal:
    """The value in base units (cores, bytes, pieces).

    Raises:
        ValueError: not a quantity.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 500m, 2 or 1.5Gi")
    number, exponent, suffix = match.groups()
    value = Decimal(number + (exponent or ""))
    return value * _SUFFIXES[suffix] if suffix else value


def whole(text: str) -> int:
    """The value rounded up to a whole base unit. Raises ValueError."""
    value = parse_quantity(text)
    floor = int(value)
    return floor if floor >= value else floor + 1
