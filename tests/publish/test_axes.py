"""Axes and SVG paths: numbers land where they should, labels keep apart, names stay text."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as tree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench.publish.figures.axes import PlotAxis, fit_axis, format_tick
from qbench.publish.figures.score_axis import build_interval_path
from qbench.publish.figures.svg import (
    TOLERANCE,
    EntrantStyle,
    draw_label,
    encode_path,
    make_element,
    simplify_path,
    spread_labels,
)
from qbench.publish.figures.tuning import list_trial_ticks
from tests.hostile_text import HOSTILE

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
POINTS = st.tuples(st.floats(-500, 500), st.floats(-500, 500))


def decode_path(data: str) -> list[tuple[float, float]]:
    """Return the places that a path of ours comes to, as SVG reads it."""
    places: list[tuple[float, float]] = []
    for command, words in re.findall(r"([Mlhv])([^a-zA-Z]*)", data):
        numbers = list(map(float, re.findall(r"-?(?:\d+\.?\d*|\.\d+)", words)))
        if command == "h":
            steps = [(n, 0.0) for n in numbers]
        elif command == "v":
            steps = [(0.0, n) for n in numbers]
        else:
            steps = list(zip(numbers[::2], numbers[1::2], strict=True))
        for dx, dy in steps:
            px, py = places[-1] if places and command != "M" else (0.0, 0.0)
            places.append((px + dx, py + dy))
    return places


# ---- axes ----


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.booleans())
def test_an_axis_holds_the_values_it_is_fitted_to(values: list[float], zero: bool) -> None:
    axis = fit_axis(values, 10, 300, zero=zero)
    assert all(10 <= axis(v) <= 300 for v in values)
    assert [axis(v) for v in sorted(values)] == sorted(axis(v) for v in values)


@given(st.floats(1e-9, 1e9), st.floats(1.0001, 1e12))
def test_ticks_are_few_sorted_and_within_the_axis(low: float, factor: float) -> None:
    axis = fit_axis([low, low * factor], 0, 1)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 9 and ticks == sorted(set(ticks))
    assert all(axis.low * (1 - 1e-9) <= t <= axis.high * (1 + 1e-9) for t in ticks)


def test_an_axis_is_logarithmic_if_positive_numbers_span_far() -> None:
    assert not fit_axis([0.1, 1.9], 0, 1).log
    assert fit_axis([0.1, 2.0], 0, 1).log
    assert not fit_axis([-0.1, 20], 0, 1).log
    assert fit_axis([1e-3, 10], 0, 100)(0.1) == pytest.approx(50)


def test_numbers_beyond_an_axis_are_placed_at_its_end() -> None:
    axis = PlotAxis(0, 1, 0, 10)
    assert axis(2) == 10 and axis(-1) == 0


def test_an_interval_that_leaves_the_axis_ends_in_an_arrowhead() -> None:
    axis = PlotAxis(0.0, 1.0, 100, 200)
    cells = [
        {"score": {"value": 0.5, "low": low, "high": high}}
        for low, high in ((0.2, 0.8), (-1, 0.8), (0.2, 3), (2, 3))
    ]
    inside, left, right, outside = (build_interval_path(cell, axis, 10) for cell in cells)
    assert inside.count("M") == 1 and outside == ""
    assert "M104 7l-4 3 4 3" in left and "M196 7l4 3-4 3" in right


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 16, 20, 32, 64, 100, 512])
def test_ticks_of_numbers_of_trials_keep_apart(most: int) -> None:
    ticks = list_trial_ticks(most)
    assert ticks[0] == 1 and len(ticks) <= 9 and ticks == sorted(set(ticks)) and ticks[-1] <= most
    assert all((b - a) * 280 / max(most - 1, 1) >= 14 for a, b in itertools.pairwise(ticks))


@pytest.mark.parametrize(
    ("x", "written"),
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
def test_ticks_are_written_in_a_short_form(x: float, written: str) -> None:
    assert format_tick(x) == written


@given(st.lists(st.floats(0, 300), min_size=1, max_size=20))
def test_labels_keep_apart_and_in_order(places: list[float]) -> None:
    moved = spread_labels(places, 12, 0, 300)
    ordered = sorted(moved)
    assert all(b - a >= 12 - 1e-6 for a, b in itertools.pairwise(ordered))
    assert [moved[i] for i in sorted(range(len(places)), key=lambda i: places[i])] == ordered


# ---- paths ----


@given(st.lists(POINTS, min_size=1, max_size=30), st.sampled_from([1, 10]))
def test_an_encoded_path_leads_through_its_points(
    points: list[tuple[float, float]], unit: int
) -> None:
    """Steps are relative, but rounding errors do not add up."""
    path = decode_path(encode_path(points, unit=unit))
    np.testing.assert_allclose(path, points, atol=0.0501 * unit)


@given(st.lists(st.floats(0, 200), min_size=2, max_size=40))
def test_a_simplified_curve_stays_within_the_tolerance(heights: list[float]) -> None:
    points = [(8.0 * n, y) for n, y in enumerate(heights)]
    kept = simplify_path(points)
    assert kept[0] == points[0] and kept[-1] == points[-1] and set(kept) <= set(points)
    places = [x for x, _ in points]
    between = np.interp(places, [x for x, _ in kept], [y for _, y in kept])
    # A point's distance from the line is its vertical distance times the cosine of the slope.
    x, y = np.array(kept).T
    slopes = np.abs(np.diff(y) / np.diff(x))[np.searchsorted(x[1:-1], places, side="right")]
    errors = np.where(np.isin(places, x), 0, np.abs(between - heights))
    assert np.all(errors <= TOLERANCE * np.hypot(1, slopes) + 1e-9)


def test_a_smooth_curve_needs_few_points() -> None:
    points = [(10.0 * n, 60 * 0.9**n) for n in range(32)]
    assert len(simplify_path(points)) < len(points) / 3
    assert simplify_path([(float(n), 3.0) for n in range(50)]) == [(0.0, 3.0), (49.0, 3.0)]


# ---- names ----


@given(HOSTILE)
def test_a_name_in_a_figure_stays_text(name: str) -> None:
    svg = tree.fromstring(make_element("svg", draw_label(0, 0, name, longest=500)))
    assert [child.tag for child in svg.iter()] == ["svg", "text"]


def test_classes_of_marks_do_not_contain_the_name() -> None:
    assert EntrantStyle("<x>", 3, "c1", 2).classes == "e3 c1"
