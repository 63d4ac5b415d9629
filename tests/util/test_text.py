"""Words that every renderer shares: counted things, and parameters with their values."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from qbench.util.text import count, spell, value

ROOT = Path(__file__).resolve().parents[2]


def test_one_is_not_a_plural() -> None:
    assert [count(n, "run") for n in (0, 1, 2, 1050, 12_000)] == [
        "0 runs",
        "1 run",
        "2 runs",
        "1050 runs",
        "12,000 runs",
    ]


def test_every_plural_is_made_in_one_place() -> None:
    by_hand = re.compile(r"""['"]s['"] ?\*|['"]s['"] if """)
    found = [
        path.name
        for path in (ROOT / "qbench").rglob("*.py")
        if by_hand.search(path.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == ["page.py", "text.py", "tuning.py"], (
        "page's and tuning's words stand without their number"
    )


def test_parameters_are_spelled_alike_wherever_they_come_from() -> None:
    assert (
        spell({"scale": "mse", "clip": True, "lam": 100.0, "rate": 0.003})
        == "clip=true, lam=100, rate=0.003, scale=mse"
    )
    assert value([1, 2]) == "[1, 2]" and value(None) == "null"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_digit_of_a_value_is_lost(x: float) -> None:
    assert float(value(x)) == x
