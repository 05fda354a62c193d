"""Quantities read and print as Kubernetes' do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.api.quantity import QuantityError, canonical, to_milli, to_nano, to_whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", "0"),
        ("0.5", "500m"),
        (".5", "500m"),
        ("1.", "1"),
        ("1000m", "1"),
        ("1.5", "1500m"),
        ("1000", "1k"),
        ("1024", "1024"),
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("0.5Ki", "512"),
        ("0.1Ki", "102400m"),
        ("12e6", "12e6"),
        ("12E6", "12e6"),
        ("1E", "1E"),
        ("100n", "100n"),
        ("0.1n", "1n"),
        ("-1k", "-1k"),
        ("+3", "3"),
        ("128974848", "128974848"),
    ],
)
def test_the_canonical_text_is_kubernetes_own(text: str, expected: str) -> None:
    assert canonical(text) == expected


@pytest.mark.parametrize("text", ["", ".", "m", "1 Gi", "1gi", "1KI", "1Kib", "1e", "0x1", "1_000", "1,5", "٣", "1e3m"])
def test_what_is_no_quantity_says_what_one_is(text: str) -> None:
    with pytest.raises(QuantityError, match="is not a quantity: a number and a suffix of"):
        canonical(text)


def test_a_quantity_beyond_the_largest_is_refused() -> None:
    assert canonical(str((1 << 63) - 1)) == str((1 << 63) - 1)
    with pytest.raises(QuantityError, match="too large"):
        canonical(str(1 << 63))
    with pytest.raises(QuantityError, match="too large"):
        canonical("9e99")


def test_units_round_up() -> None:
    assert to_milli("0.0001") == 1
    assert to_whole("1500m") == 2
    assert to_nano("1") == 10**9


@settings(deadline=None, max_examples=60)
@given(
    st.integers(min_value=-(10**12), max_value=10**12),
    st.sampled_from(["n", "u", "m", "", "k", "M", "Ki", "Mi", "e3", "e-3"]),
)
def test_the_canonical_text_means_the_same_and_is_stable(number: int, suffix: str) -> None:
    text = f"{number}{suffix}"
    assert to_nano(canonical(text)) == to_nano(text)
    assert canonical(canonical(text)) == canonical(text)
