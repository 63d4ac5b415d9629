"""Comparing two entrants: the seed is the unit, sections are corrected for one another, and no more is said than may be."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats as reference

from qbench.analysis.compare import Comparison, compare_entrants, format_comparison
from qbench.boards.build import make_section_builders
from qbench.errors import UsageError
from tests.synthetic_runs import DEFAULTS, make_failed_run, make_frame, make_runs

FP = make_runs("fp", None, [0.100, 0.102, 0.098, 0.101])
RTN = [
    *make_runs("rtn", "int2", [0.40, 0.45, 0.43, 0.41]),
    *make_runs("rtn", "int4", [0.20, 0.22, 0.21, 0.20]),
]
STE = [
    *make_runs("ste", "int2", [0.30, 0.36, 0.32, 0.33]),
    *make_runs("ste", "int4", [0.13, 0.14, 0.15, 0.12]),
]


def compared(a: str, b: str, *parts: Sequence[dict[str, Any]]) -> list[Comparison]:
    return compare_entrants(make_section_builders(make_frame(*parts), None, DEFAULTS)[1], a, b)


def test_it_is_scipys_paired_test_of_the_means_over_formats_by_seed() -> None:
    (c,) = compared("ste", "rtn", FP, RTN, STE)
    ste, rtn = (
        np.array([[r["packed"] for r in part[:4]], [r["packed"] for r in part[4:]]]).mean(0)
        for part in (STE, RTN)
    )
    test = reference.ttest_rel(ste, rtn)
    low, high = test.confidence_interval()
    assert (c.difference.value, c.p) == pytest.approx((float(np.mean(ste - rtn)), test.pvalue))
    assert (c.difference.low, c.difference.high) == pytest.approx((low, high))
    assert (c.formats, c.seeds, c.dropped, c.verdict) == (
        ("int2", "int4"),
        4,
        0,
        "ste is better than rtn",
    )
    (back,) = compared("rtn", "ste", FP, RTN, STE)
    assert back.difference.value == pytest.approx(-c.difference.value) and back.verdict == c.verdict


def test_full_precision_is_held_against_every_format() -> None:
    (c,) = compared("fp", "ste", FP, RTN, STE)
    assert c.formats == ("int2", "int4") and c.verdict == "fp is better than ste"


def test_sections_are_corrected_for_one_another() -> None:
    parts = [
        [{**r, "size": size, "key": size + r["key"]} for r in (*FP, *RTN, *STE)]
        for size in ("xs", "s", "m")
    ]
    alone, together = compared("ste", "rtn", parts[0]), compared("ste", "rtn", *parts)
    assert len(together) == 3 and alone[0].p is not None
    assert [c.p for c in together] == pytest.approx([3 * alone[0].p] * 3)


@pytest.mark.parametrize(("other", "says"), [
    ([0.30, 0.37, 0.31, 0.335], "they cannot be told apart over 4 seeds"),
    ([0.30, 0.36, 0.32, 0.33], "the same in every seed"),
    ([0.31, 0.37, 0.33, 0.34], "they differ by the same amount in every seed, so nothing is known of its spread"),
    ([0.30011, 0.36012, 0.32010, 0.33009], "ste is better than lotion but by less than anybody should care about (0.001)"),
    ([0.50], "nothing can be said: 1 shared seed, and it takes two"),
])  # fmt: skip
def test_no_more_is_said_than_may_be(other: list[float], says: str) -> None:
    (c,) = compared("ste", "lotion", FP, STE, make_runs("lotion", "int2", other))
    assert c.verdict == says and c.formats == ("int2",)
    assert says in format_comparison(c) and "\n  " in format_comparison(c)


def test_a_seed_that_one_of_them_lacks_is_left_out_and_told() -> None:
    holed = [*make_runs("lotion", "int2", [0.2, 0.21, 0.22]), make_failed_run("lotion", "int2", 3)]
    (c,) = compared("ste", "lotion", FP, STE, holed)
    assert (c.seeds, c.dropped) == (3, 1) and "3 seeds, 1 left out" in format_comparison(c)


def test_nothing_in_common_is_nothing_and_wrong_names_are_one_line() -> None:
    assert compared("ste", "pege", FP, STE, make_runs("pege", "int3", [0.2, 0.3])) == []
    for a, b, says in (
        ("ste", "lotoin", "did you mean lotion"),
        ("ste", "ste", "compared with itself"),
    ):
        with pytest.raises(UsageError, match=says):
            compared(a, b, FP, STE, make_runs("lotion", "int2", [0.2]))


def test_no_minimum_effect_is_no_reason_to_fail() -> None:
    rows = [{**r, "effect": 0.0} for r in (*FP, *RTN, *STE)]
    (c,) = compared("ste", "rtn", rows)
    assert c.minimum_effect == 0 and format_comparison(c).splitlines()[1].startswith("  -0.0838 [")


def test_sections_of_one_title_are_told_apart_by_their_setting() -> None:
    longer = [{**r, "steps": 999, "key": "long" + r["key"]} for r in (*FP, *RTN, *STE)]
    alone, both = compared("ste", "rtn", FP, RTN, STE), compared("ste", "rtn", FP, RTN, STE, longer)
    assert [c.section for c in alone] == ["digits/xs"]
    assert len({c.section for c in both}) == 2 and any(
        "digits/xs (" in c.section and "999 steps" in c.section for c in both
    )
    assert all(format_comparison(c).startswith(f"{c.section}: ") for c in both)


def test_an_unknown_entrant_is_told_who_is_there() -> None:
    with pytest.raises(UsageError, match=r"unknown entrant 'zzz'; known: fp, rtn, ste$"):
        compared("ste", "zzz", FP, RTN, STE)
    with pytest.raises(
        UsageError, match=r"unknown entrant 'rtm'; did you mean rtn\? known: fp, rtn, ste$"
    ):
        compared("ste", "rtm", FP, RTN, STE)


def test_no_seed_in_common_is_json_too() -> None:
    (c,) = compared(
        "ste", "lotion", FP, STE, [{**r, "seed": 9} for r in make_runs("lotion", "int2", [0.2])]
    )
    assert (
        json.loads(json.dumps(c.to_json(), allow_nan=False))["difference"] is None
        and "0 shared seeds" in c.verdict
    )


def test_entrants_without_a_common_seed_are_independent_samples() -> None:
    far, near = (
        [{**r, "seed": r["seed"] + 9} for r in make_runs("lotion", "int2", x)]
        for x in ([0.20, 0.21, 0.22], [0.30, 0.36, 0.32])
    )
    (c,) = compared("ste", "lotion", FP, STE, far)
    test = reference.ttest_ind([0.30, 0.36, 0.32, 0.33], [0.20, 0.21, 0.22], equal_var=False)
    assert (c.p, c.difference.low) == pytest.approx((test.pvalue, test.confidence_interval().low))
    assert (c.seeds, c.dropped, c.verdict) == (
        0,
        0,
        "no seed in common, compared as independent samples: lotion is better than ste",
    )
    assert json.loads(json.dumps(c.to_json(), allow_nan=False))["difference"][
        "value"
    ] == pytest.approx(0.1175)
    (c,) = compared("ste", "lotion", FP, STE, near)
    assert c.verdict.endswith("independent samples: they cannot be told apart")


def test_numbers_are_printed_to_a_tenth_of_the_minimum_effect() -> None:
    (c,) = compared("ste", "rtn", FP, RTN, STE)
    line = format_comparison(c).splitlines()[1]
    assert line.startswith("  -0.0838 [") and math.isclose(c.minimum_effect, 0.001)
