"""Comparing two entrants: the seed is the unit, and the verdict says no more than the test does."""

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
STE_INT2 = [0.30, 0.36, 0.32, 0.33]
STE = [
    *make_runs("ste", "int2", STE_INT2),
    *make_runs("ste", "int4", [0.13, 0.14, 0.15, 0.12]),
]


def compare(a: str, b: str, *parts: Sequence[dict[str, Any]]) -> list[Comparison]:
    builders = make_section_builders(make_frame(*parts), None, DEFAULTS)[1]
    return compare_entrants(builders, a, b)


# ---- the test ----


def test_it_is_scipys_paired_test_of_the_means_over_formats_by_seed() -> None:
    (c,) = compare("ste", "rtn", FP, RTN, STE)
    ste, rtn = (
        np.array([[r["packed"] for r in part[:4]], [r["packed"] for r in part[4:]]]).mean(0)
        for part in (STE, RTN)
    )
    test = reference.ttest_rel(ste, rtn)
    low, high = test.confidence_interval()
    assert (c.difference.value, c.p) == pytest.approx((float(np.mean(ste - rtn)), test.pvalue))
    assert (c.difference.low, c.difference.high) == pytest.approx((low, high))
    assert (c.formats, c.seeds, c.dropped) == (("int2", "int4"), 4, 0)
    assert c.verdict == "ste is better than rtn"
    (back,) = compare("rtn", "ste", FP, RTN, STE)
    assert back.difference.value == pytest.approx(-c.difference.value) and back.verdict == c.verdict


def test_full_precision_is_compared_with_every_format() -> None:
    (c,) = compare("fp", "ste", FP, RTN, STE)
    assert c.formats == ("int2", "int4") and c.verdict == "fp is better than ste"


def test_p_values_are_adjusted_for_the_number_of_sections() -> None:
    parts = [
        [{**r, "size": size, "key": size + r["key"]} for r in (*FP, *RTN, *STE)]
        for size in ("xs", "s", "m")
    ]
    alone, together = compare("ste", "rtn", parts[0]), compare("ste", "rtn", *parts)
    assert len(together) == 3 and alone[0].p is not None
    assert [c.p for c in together] == pytest.approx([3 * alone[0].p] * 3)


def test_a_seed_that_one_entrant_lacks_is_left_out_and_counted() -> None:
    incomplete = [
        *make_runs("lotion", "int2", [0.2, 0.21, 0.22]),
        make_failed_run("lotion", "int2", 3),
    ]
    (c,) = compare("ste", "lotion", FP, STE, incomplete)
    assert (c.seeds, c.dropped) == (3, 1) and "3 seeds, 1 left out" in format_comparison(c)


def test_entrants_without_a_common_seed_are_independent_samples() -> None:
    far, near = (
        [{**r, "seed": r["seed"] + 9} for r in make_runs("lotion", "int2", scores)]
        for scores in ([0.20, 0.21, 0.22], [0.30, 0.36, 0.32])
    )
    (c,) = compare("ste", "lotion", FP, STE, far)
    test = reference.ttest_ind(STE_INT2, [0.20, 0.21, 0.22], equal_var=False)
    assert (c.p, c.difference.low) == pytest.approx((test.pvalue, test.confidence_interval().low))
    assert (c.seeds, c.dropped) == (0, 0)
    assert c.verdict == (
        "no seed in common, compared as independent samples: lotion is better than ste"
    )
    data = json.loads(json.dumps(c.to_json(), allow_nan=False))
    assert data["difference"]["value"] == pytest.approx(0.1175)
    (c,) = compare("ste", "lotion", FP, STE, near)
    assert c.verdict.endswith("independent samples: no significant difference")


def test_without_a_test_the_difference_is_null_in_json() -> None:
    elsewhere = [{**r, "seed": 9} for r in make_runs("lotion", "int2", [0.2])]
    (c,) = compare("ste", "lotion", FP, STE, elsewhere)
    assert json.loads(json.dumps(c.to_json(), allow_nan=False))["difference"] is None
    assert "0 shared seeds" in c.verdict


# ---- verdicts and texts ----


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([0.30, 0.37, 0.31, 0.335], "no significant difference over 4 seeds"),
        (STE_INT2, "equal in every seed"),
        (
            [0.31, 0.37, 0.33, 0.34],
            "they differ by the same amount in every seed, so the spread is unknown",
        ),
        (
            [0.30011, 0.36012, 0.32010, 0.33009],
            "ste is better than lotion but by less than the minimum effect (0.001)",
        ),
        ([0.50], "no conclusion is possible: 1 shared seed, but two are needed"),
    ],
)
def test_the_verdict_says_no_more_than_the_test(scores: list[float], verdict: str) -> None:
    (c,) = compare("ste", "lotion", FP, STE, make_runs("lotion", "int2", scores))
    assert c.verdict == verdict and c.formats == ("int2",)
    assert verdict in format_comparison(c) and "\n  " in format_comparison(c)


def test_numbers_are_printed_to_a_tenth_of_the_minimum_effect() -> None:
    (c,) = compare("ste", "rtn", FP, RTN, STE)
    line = format_comparison(c).splitlines()[1]
    assert line.startswith("  -0.0838 [") and math.isclose(c.minimum_effect, 0.001)


def test_a_comparison_without_a_minimum_effect_is_printed() -> None:
    rows = [{**r, "effect": 0.0} for r in (*FP, *RTN, *STE)]
    (c,) = compare("ste", "rtn", rows)
    assert c.minimum_effect == 0
    assert format_comparison(c).splitlines()[1].startswith("  -0.0838 [")


def test_sections_of_one_title_are_distinguished_by_their_setting() -> None:
    longer = [{**r, "steps": 999, "key": "long" + r["key"]} for r in (*FP, *RTN, *STE)]
    assert [c.section for c in compare("ste", "rtn", FP, RTN, STE)] == ["digits/xs"]
    both = compare("ste", "rtn", FP, RTN, STE, longer)
    assert len({c.section for c in both}) == 2
    assert any("digits/xs (" in c.section and "999 steps" in c.section for c in both)
    assert all(format_comparison(c).startswith(f"{c.section}: ") for c in both)


# ---- nothing to compare ----


def test_entrants_without_a_common_format_give_no_comparison() -> None:
    assert compare("ste", "pege", FP, STE, make_runs("pege", "int3", [0.2, 0.3])) == []


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("ste", "zzz", r"^unknown entrant 'zzz'; known: fp, lotion, rtn, ste$"),
        ("ste", "lotoin", "did you mean lotion"),
        ("ste", "rtm", r"'rtm'; did you mean rtn\? known: fp, lotion, rtn, ste$"),
        ("ste", "ste", "compared with itself"),
    ],
)
def test_a_wrong_label_is_an_error_of_one_line(a: str, b: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(a, b, FP, RTN, STE, make_runs("lotion", "int2", [0.2]))
