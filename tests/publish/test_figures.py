"""Figures: numbers land where the axes say, every cell is drawn or told of, marks can be told apart, names stay names."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as tree
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench.publish.document import About, document
from qbench.publish.figures import overall
from qbench.publish.figures.axes import Axis, fit, spell
from qbench.publish.figures.cost import _counts, unknown_time
from qbench.publish.figures.loss_curves import curves
from qbench.publish.figures.panels import Figure, score_axis, short, styles, whisker
from qbench.publish.figures.section import figures
from qbench.publish.figures.svg import NEAR, Style, el, label, path, spread, thin
from tests.made_sites import ENV, MEANS, board, losses, one_of_everything, ranked
from tests.synthetic_runs import frame, runs
from tests.terminal.test_board import HOSTILE

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


def doc_of(rows: pd.DataFrame) -> dict[str, Any]:
    built, summary = board(rows)
    return document(About("made"), built, rows, summary)


def drawn(rows: pd.DataFrame, section: int = 0) -> dict[str, Figure]:
    doc = doc_of(rows)
    cells = {
        key: c["id"]
        for s in doc["sections"]
        for row in s["rows"]
        for c in row["cells"]
        for key in c["runs"]["key"]
    }
    found = figures(doc["sections"][section], styles(doc["sections"]), curves(losses(rows), cells))
    return {figure.name: figure for figure in found}


def parsed(figure: Figure) -> list[tree.Element]:
    return [tree.fromstring(panel.markup()) for panel in figure.panels]


# ---- axes ----


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.booleans())
def test_an_axis_holds_what_it_was_made_for(values: list[float], zero: bool) -> None:
    axis = fit(values, 10, 300, zero=zero)
    assert all(10 <= axis(v) <= 300 for v in values)
    assert [axis(v) for v in sorted(values)] == sorted(axis(v) for v in values)


@given(st.floats(1e-9, 1e9), st.floats(1.0001, 1e12))
def test_ticks_are_few_round_and_within(low: float, factor: float) -> None:
    axis = fit([low, low * factor], 0, 1)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 9 and ticks == sorted(set(ticks))
    assert all(axis.low * (1 - 1e-9) <= t <= axis.high * (1 + 1e-9) for t in ticks)


def test_axes_turn_logarithmic_where_numbers_span_far() -> None:
    assert (
        not fit([0.1, 1.9], 0, 1).log
        and fit([0.1, 2.0], 0, 1).log
        and not fit([-0.1, 20], 0, 1).log
    )
    assert fit([1e-3, 10], 0, 100)(0.1) == pytest.approx(50)


def test_an_interval_that_goes_on_beyond_its_axis_ends_in_an_arrowhead() -> None:
    axis = Axis(0.0, 1.0, 100, 200)
    cells = [
        {"score": {"value": 0.5, "low": low, "high": high}}
        for low, high in ((0.2, 0.8), (-1, 0.8), (0.2, 3), (2, 3))
    ]
    whole, left, right, gone = (whisker(cell, axis, 10) for cell in cells)
    assert whole.count("M") == 1 and gone == ""
    assert "M104 7l-4 3 4 3" in left and "M196 7l4 3-4 3" in right


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 16, 20, 32, 64, 100, 512])
def test_numbers_of_trials_keep_apart_on_their_axis(most: int) -> None:
    ticks = _counts(most)
    assert ticks[0] == 1 and len(ticks) <= 9 and ticks == sorted(set(ticks)) and ticks[-1] <= most
    assert all((b - a) * 280 / max(most - 1, 1) >= 14 for a, b in itertools.pairwise(ticks))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (0, "0"),
        (-0.0, "0"),
        (0.25, "0.25"),
        (1e-5, "1e-5"),
        (3e7, "3e7"),
        (1500, "1500"),
        (12.5, "12.5"),
    ],
)
def test_ticks_are_spelled_short(x: float, said: str) -> None:
    assert spell(x) == said


@given(st.lists(st.floats(0, 300), min_size=1, max_size=20))
def test_labels_keep_apart_and_in_order(places: list[float]) -> None:
    found = spread(places, 12, 0, 300)
    ordered = sorted(found)
    assert all(b - a >= 12 - 1e-6 for a, b in itertools.pairwise(ordered))
    assert [found[i] for i in sorted(range(len(places)), key=lambda i: places[i])] == ordered


@given(
    st.lists(st.tuples(st.floats(-500, 500), st.floats(-500, 500)), min_size=1, max_size=30),
    st.sampled_from([1, 10]),
)
def test_a_short_path_leads_through_its_points(
    points: list[tuple[float, float]], unit: int
) -> None:
    """Relative steps of rounded places, so that roundings do not add up."""
    np.testing.assert_allclose(walked(path(points, unit=unit)), points, atol=0.0501 * unit)


def walked(d: str) -> list[tuple[float, float]]:
    """The places that a path of ours comes to, as SVG reads it."""
    found: list[tuple[float, float]] = []
    for letter, words in re.findall(r"([Mlhv])([^a-zA-Z]*)", d):
        numbers = list(map(float, re.findall(r"-?(?:\d+\.?\d*|\.\d+)", words)))
        steps = {"h": [(n, 0.0) for n in numbers], "v": [(0.0, n) for n in numbers]}.get(
            letter
        ) or list(zip(numbers[::2], numbers[1::2], strict=True))
        for dx, dy in steps:
            px, py = found[-1] if found and letter != "M" else (0.0, 0.0)
            found.append((px + dx, py + dy))
    return found


@given(st.lists(st.floats(0, 200), min_size=2, max_size=40))
def test_a_thinned_curve_stays_within_half_a_pixel(heights: list[float]) -> None:
    points = [(8.0 * n, y) for n, y in enumerate(heights)]
    kept = thin(points)
    assert kept[0] == points[0] and kept[-1] == points[-1] and set(kept) <= set(points)
    between = np.interp([x for x, _ in points], [x for x, _ in kept], [y for _, y in kept])
    # The distance of a point from its line is what lies above or below it, times the cosine of the slope.
    x, y = np.array(kept).T
    slopes = np.abs(np.diff(y) / np.diff(x))[
        np.searchsorted(x[1:-1], [p for p, _ in points], side="right")
    ]
    ends = np.isin([p for p, _ in points], x)
    assert np.all(np.where(ends, 0, np.abs(between - heights)) <= NEAR * np.hypot(1, slopes) + 1e-9)


def test_a_smooth_curve_needs_few_points() -> None:
    points = [(10.0 * n, 60 * 0.9**n) for n in range(32)]
    assert len(thin(points)) < len(points) / 3 and thin([(float(n), 3.0) for n in range(50)]) == [
        (0.0, 3.0),
        (49.0, 3.0),
    ]


def test_controls_do_not_press_rivals_into_a_corner() -> None:
    section = doc_of(ranked(seeds=10))["sections"][0]
    cells = [row["cells"][-1] for row in section["rows"] if row["role"] != "reference"]
    whole = score_axis(section, cells, 0, 100)
    far = [
        {**c, "score": {"value": 30.0, "low": 29.0, "high": 31.0}} if "rtn" in c["id"] else c
        for c in cells
    ]
    assert score_axis(section, far, 0, 100).high < 1.0 and whole.high < 1.0


# ---- what is drawn ----


def test_every_cell_with_a_score_has_a_mark_at_its_place() -> None:
    rows = ranked(seeds=10)
    section = doc_of(rows)["sections"][0]
    for i, svg in enumerate(parsed(drawn(rows)["scores"])):
        tips = {t.text for t in svg.iter("title")}
        for row in section["rows"]:
            cell = row["cells"][0 if row["role"] == "reference" else i]
            assert any(
                t
                and t.startswith(
                    f"{row['entrant']}, {cell['format']}: {cell['score']['value']:.3f}"
                )
                for t in tips
            )


def test_a_failed_cell_says_its_reason_in_its_line() -> None:
    words = " ".join(
        t.text or ""
        for svg in parsed(drawn(one_of_everything())["scores"])
        for t in svg.iter("text")
    )
    assert "oom" in words and "not asked" in words


def test_a_control_off_the_axis_has_an_arrow_and_its_number() -> None:
    rows = frame(
        runs("fp", None, [0.1, 0.11], **ENV),
        runs("rtn", "int2", [9.0, 9.1], **ENV),
        *(
            runs(m, "int2", [0.2 + 0.01 * n, 0.21 + 0.01 * n], **ENV)
            for n, m in enumerate(("ste", "lsq"))
        ),
    )
    words = [t.text for svg in parsed(drawn(rows)["scores"]) for t in svg.iter("text")]
    assert "→ 9.050" in words


def test_the_front_is_the_summarys() -> None:
    rows = ranked(seeds=10)
    section = doc_of(rows)["sections"][0]
    kept = {
        (row["entrant"], c["format"])
        for row in section["rows"]
        for c in row["cells"]
        if c["front"] and row["role"] != "reference"
    }
    (svg,) = parsed(drawn(rows)["front"])
    marks = [
        (g.get("class", ""), t.text or "")
        for g in svg.iter("g")
        for p in g.findall("path")
        for t in p.findall("title")
    ]
    filled = {tuple(words.split(":")[0].split(", ")) for cls, words in marks if "hollow" not in cls}
    assert filled == kept and 0 < len(kept) < len(marks) == 2 * len(MEANS)


def test_costs_and_tuning_are_drawn_where_they_are_known() -> None:
    found = drawn(ranked(seeds=2))
    assert "tuning" not in found and "time" not in found
    assert [panel.title for panel in found["cost"].panels] == [
        "step time over full precision",
        "training time, s",
        "peak memory, MB",
    ]
    doc = doc_of(ranked(seeds=2))
    for row in doc["sections"][0]["rows"]:
        for n, cell in enumerate(row["cells"]):
            cell["best_of"] = [0.5, 0.4, 0.3 + 0.01 * n]
            e = {"value": 0.4, "low": None, "high": None}
            cell["equal_time"] = {
                "at_time": {**e, "value": 0.6},
                "at_steps": e,
                "progress": 0.5,
                "note": "",
            }
    more = {f.name: f for f in figures(doc["sections"][0], styles(doc["sections"]), {})}
    assert len(more["tuning"].panels) == len(more["time"].panels) == 2 and "losses" not in more
    assert "lsq 0.3 of 3" in more["tuning"].panels[0].said


def test_a_view_at_equal_time_that_cannot_be_drawn_is_a_sentence() -> None:
    section = doc_of(ranked(seeds=2))["sections"][0]
    cells = [cell for row in section["rows"] for cell in row["cells"]]
    for cell in cells:
        cell["equal_time"] = {
            "at_time": None,
            "at_steps": None,
            "progress": None,
            "note": "2 of 2 runs without a validation curve",
        }
    assert "time" not in {f.name for f in figures(section, styles([section]), {})}
    assert (
        unknown_time(section)
        == "At equal training time nothing can be shown: the validation curves of its runs are not here."
    )
    cells[0]["equal_time"]["note"] = "1 of 2 runs not evaluated by then"
    assert unknown_time(section).endswith(
        "too few runs had been evaluated when full precision was done."
    )
    e = {"value": 0.4, "low": None, "high": None}
    for cell in cells:
        cell["equal_time"] = {"at_time": e, "at_steps": e, "progress": 0.5, "note": ""}
    assert unknown_time(section) == ""


def tuned(curves_of: dict[str, list[float | None]], share: float = 1.0) -> Figure:
    """The figure of best-of-n curves, by entrant; the others have none."""
    doc = doc_of(ranked(seeds=2))
    for row in doc["sections"][0]["rows"]:
        for cell in row["cells"]:
            cell["best_of"], cell["best_of_share"] = curves_of.get(row["entrant"], []), share
    return next(
        f for f in figures(doc["sections"][0], styles(doc["sections"]), {}) if f.name == "tuning"
    )


def test_the_best_of_n_stands_at_n_though_fewer_trials_have_no_score() -> None:
    """None for n = 1 and 2: what is known of 3 and 4 trials is drawn at 3 and 4, where it is for everybody else."""
    (svg, _) = parsed(tuned({"lsq": [None, None, 0.32, 0.3], "ste": [0.6, 0.55, 0.5, 0.45]}))
    tips = [t.text for t in svg.iter("title")]
    assert (
        "lsq, 4 trials: 0.3" in tips
        and "ste, 4 trials: 0.45" in tips
        and "ste, 1 trial: 0.6" in tips
    )
    assert not [t for t in tips if t and t.startswith(("lsq, 1 ", "lsq, 2 "))]
    ticks = {
        t.text: float(t.get("x", "nan"))
        for g in svg.iter("g")
        if g.get("class") == "tick k"
        for t in g
    }
    late, whole = sorted(
        walked(p.get("d", ""))
        for p in svg.iter("path")
        if p.get("class") == "line" and "M" in p.get("d", "")
    )[::-1][:2]
    assert [x for x, _ in (late[0], late[-1])] == pytest.approx([ticks["3"], ticks["4"]], abs=0.11)
    assert [x for x, _ in (whole[0], whole[-1])] == pytest.approx(
        [ticks["1"], ticks["4"]], abs=0.11
    )


def test_the_caption_says_that_validation_chooses_and_test_is_shown() -> None:
    found = tuned({"lsq": [0.4, 0.3]}, share=0.25)
    assert found.caption.startswith(
        "Of n trials the one that is best on validation: the test score"
    )
    assert "trials, with 25 % of the steps" in "".join(
        tree.tostring(svg, encoding="unicode") for svg in parsed(found)
    )


def test_an_entrant_without_any_finished_trial_has_no_line() -> None:
    found = tuned({"lsq": [None, None], "ste": [0.6, 0.5]})
    assert found.panels[0].said == "ste 0.5 of 2"


def test_a_control_far_off_is_told_of_and_does_not_flatten_the_others() -> None:
    (svg, _) = parsed(tuned({"rtn": [9.0, 8.0], "ste": [0.6, 0.5], "lsq": [0.4, 0.3]}))
    assert "↑ rtn 8" in {t.text for t in svg.iter("text")}
    lines = [
        walked(p.get("d", ""))
        for p in svg.iter("path")
        if p.get("class") == "line"
        and p.get("d", "").count("M")
        and len(walked(p.get("d", ""))) > 1
    ]
    heights = [y for line in lines for _, y in line]
    assert max(heights) - min(heights) > 120


def test_the_overall_figures_are_of_entrants_with_a_gap() -> None:
    doc = doc_of(ranked(seeds=10))
    found = {f.name: f for f in overall.figures(doc["overall"], styles(doc["sections"]))}
    assert set(found) == {"gaps", "profile"}
    order = [re.sub(r" -?\d+ %$", "", part) for part in found["gaps"].panels[0].said.split("; ")]
    assert order == [row["entrant"] for row in doc["overall"]["rows"]] and order[0] == "gdnsq"


def test_forty_entrants_look_different() -> None:
    section = {
        "rows": [{"entrant": f"m{n}", "role": ""} for n in range(40)]
        + [{"entrant": "fp", "role": "reference"}, {"entrant": "rtn", "role": "control"}]
    }
    looks = styles([section])
    assert len({(s.colour, s.shape) for s in looks.values()}) == 42
    assert looks["fp"].colour == "ref" and looks["rtn"].colour == "ctl"


def test_the_longest_name_keeps_both_its_ends() -> None:
    assert short("lotion (fisher=exact, scale=hessian)", 17) == "lotion (…hessian)"
    assert short("lsq", 17) == "lsq"


# ---- losses ----


def test_a_curve_is_the_mean_of_its_seeds_and_their_extremes() -> None:
    points = [(f"k{seed}", step, 1.0 / step + seed) for seed in (0, 1, 2) for step in range(1, 301)]
    found = curves(
        pd.DataFrame(points, columns=["key", "step", "loss"]), {"k0": "c", "k1": "c", "k2": "c"}
    )["c"]
    assert (
        len(found.mean) == 32
        and found.progress == sorted(found.progress)
        and found.progress[-1] <= 1
    )
    np.testing.assert_allclose(np.array(found.high) - found.low, 2.0)
    np.testing.assert_allclose(found.mean, np.array(found.low) + 1)
    last = [step for step in range(1, 301) if step * 32 // 300 >= 31]
    assert found.low[-1] == pytest.approx(np.mean([1 / s for s in last]))


def test_what_is_not_a_number_is_left_out_of_curves() -> None:
    points = pd.DataFrame({"key": ["a", "a", "b"], "step": [1, 2, 1], "loss": [1.0, math.nan, 2.0]})
    assert list(curves(points, {"a": "c"})) == ["c"]
    assert curves(points, {"a": "c"})["c"].mean == [1.0]
    assert curves(points, {}) == {} and curves(points[:0], {"a": "c"}) == {}


# ---- names ----


@given(HOSTILE)
def test_a_name_stays_text(name: str) -> None:
    svg = tree.fromstring(el("svg", label(0, 0, name, longest=500)))
    assert [child.tag for child in svg.iter()] == ["svg", "text"]


def test_styles_carry_no_name_into_a_class() -> None:
    assert Style("<x>", 3, "c1", 2).classes == "e3 c1"
    assert Axis(0, 1, 0, 10)(2) == 10 and Axis(0, 1, 0, 10)(-1) == 0
