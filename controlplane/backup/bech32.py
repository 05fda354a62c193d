"""Bech32 (BIP 173), in which age writes keys: a checksummed text that says what kind of key it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["bech32_decode", "bech32_encode"]

_ALPHABET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_LENGTH: Final = 6


def bech32_encode(kind: str, data: bytes) -> str:
    """``kind`` in lower case, then the data with their checksum."""
    values = _regroup(data, 8, 5, pad=True)
    tail = _polymod([*_expand(kind), *values, *[0] * _CHECKSUM_LENGTH]) ^ 1
    values += [(tail >> 5 * (5 - i)) & 31 for i in range(_CHECKSUM_LENGTH)]
    return f"{kind}1{''.join(_ALPHABET[value] for value in values)}"


def bech32_decode(text: str) -> tuple[str, bytes]:
    """Kind, in lower case, and data. Raises ValueError: it is no Bech32, or mistyped."""
    if text not in (text.lower(), text.upper()):
        raise ValueError("upper and lower case are mixed")
    kind, separator, rest = text.lower().rpartition("1")
    if not separator or not kind or len(rest) < _CHECKSUM_LENGTH or any(letter not in _ALPHABET for letter in rest):
        raise ValueError("it is no key in age's form")
    values = [_ALPHABET.index(letter) for letter in rest]
    if _polymod([*_expand(kind), *values]) != 1:
        raise ValueError("its checksum does not match: mistyped or cut off")
    return kind, bytes(_regroup(values[:-_CHECKSUM_LENGTH], 5, 8, pad=False))


def _expand(kind: str) -> list[int]:
    return [ord(letter) >> 5 for letter in kind] + [0] + [ord(letter) & 31 for letter in kind]


def _polymod(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATOR):
            if top >> bit & 1:
                check ^= generator
    return check


def _regroup(values: Sequence[int] | bytes, from_bits: int, to_bits: int, *, pad: bool) -> list[int]:
    held = bits = 0
    regrouped = []
    for value in values:
        held = held << from_bits | value
        bits += from_bits
        while bits >= to_bits:
            bits -= to_bits
            regrouped.append(held >> bits & (1 << to_bits) - 1)
    if pad and bits:
        regrouped.append(held << (to_bits - bits) & (1 << to_bits) - 1)
    elif not pad and (bits >= from_bits or held & (1 << bits) - 1):
        raise ValueError("it has bits left over")
    return regrouped
