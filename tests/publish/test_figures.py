"""Figures: every cell is drawn or its absence explained, and entrants can be told apart."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as tree
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qbench.publish.document import BoardDescription, build_document
from qbench.publish.figures import overall
from qbench.publish.figures.cost import explain_missing_equal_time
from qbench.publish.figures.loss_curves import average_loss_curves
from qbench.publish.figures.panels import Figure, assign_styles, shorten_name
from qbench.publish.figures.score_axis import fit_score_axis
from qbench.publish.figures.section import draw_section_figures
from tests.publish.test_axes import decode_path
from tests.synthetic_runs import make_frame, make_runs
from tests.synthetic_sites import (
    ENV,
    MEANS,
    build_board_and_summary,
    make_losses,
    make_ranked_runs,
    make_varied_runs,
)

ESTIMATE = {"value": 0.4, "low": None, "high": None}


def make_document(rows: pd.DataFrame) -> dict[str, Any]:
    board, summary = build_board_and_summary(rows)
    return build_document(BoardDescription("made"), board, rows, summary)


def draw_figures(rows: pd.DataFrame, section: int = 0) -> dict[str, Figure]:
    """Return the figures of a section by name, with made-up losses."""
    doc = make_document(rows)
    cells = {
        key: cell["id"]
        for part in doc["sections"]
        for row in part["rows"]
        for cell in row["cells"]
        for key in cell["runs"]["key"]
    }
    curves = average_loss_curves(make_losses(rows), cells)
    styles = assign_styles(doc["sections"])
    return {f.name: f for f in draw_section_figures(doc["sections"][section], styles, curves)}


def redraw(doc: dict[str, Any]) -> dict[str, Figure]:
    """Return the figures of the first section of a document that a test has changed."""
    section = doc["sections"][0]
    figures = draw_section_figures(section, assign_styles(doc["sections"]), {})
    return {figure.name: figure for figure in figures}


def list_cells(doc: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for row in doc["sections"][0]["rows"] for cell in row["cells"]]


def parse_panels(figure: Figure) -> list[tree.Element]:
    return [tree.fromstring(panel.to_markup()) for panel in figure.panels]


def list_texts(svg: tree.Element, tag: str = "text") -> list[str]:
    return [element.text or "" for element in svg.iter(tag)]


def list_lines(svg: tree.Element) -> list[list[tuple[float, float]]]:
    paths = [p.get("d", "") for p in svg.iter("path") if p.get("class") == "line"]
    return [decode_path(data) for data in paths if "M" in data]


# ---- scores ----


def test_every_cell_with_a_score_has_a_mark_with_its_number() -> None:
    rows = make_ranked_runs(seeds=10)
    section = make_document(rows)["sections"][0]
    for i, svg in enumerate(parse_panels(draw_figures(rows)["scores"])):
        tooltips = list_texts(svg, "title")
        for row in section["rows"]:
            cell = row["cells"][0 if row["role"] == "reference" else i]
            words = f"{row['entrant']}, {cell['format']}: {cell['score']['value']:.3f}"
            assert any(tooltip.startswith(words) for tooltip in tooltips)


def test_a_failed_cell_shows_its_reason() -> None:
    panels = parse_panels(draw_figures(make_varied_runs())["scores"])
    words = " ".join(text for svg in panels for text in list_texts(svg))
    assert "oom" in words and "not asked" in words


def test_controls_do_not_press_the_others_together() -> None:
    section = make_document(make_ranked_runs(seeds=10))["sections"][0]
    cells = [row["cells"][-1] for row in section["rows"] if row["role"] != "reference"]
    score = {"value": 30.0, "low": 29.0, "high": 31.0}
    with_far_control = [{**c, "score": score} if "rtn" in c["id"] else c for c in cells]
    assert fit_score_axis(section, with_far_control, 0, 100).high < 1.0
    assert fit_score_axis(section, cells, 0, 100).high < 1.0


def test_a_control_off_the_axis_has_an_arrow_and_its_number() -> None:
    rows = make_frame(
        make_runs("fp", None, [0.1, 0.11], **ENV),
        make_runs("rtn", "int2", [9.0, 9.1], **ENV),
        make_runs("ste", "int2", [0.2, 0.21], **ENV),
        make_runs("lsq", "int2", [0.21, 0.22], **ENV),
    )
    panels = parse_panels(draw_figures(rows)["scores"])
    assert "→ 9.050" in [text for svg in panels for text in list_texts(svg)]


def test_the_filled_marks_are_the_front_of_the_summary() -> None:
    rows = make_ranked_runs(seeds=10)
    section = make_document(rows)["sections"][0]
    front = {
        (row["entrant"], cell["format"])
        for row in section["rows"]
        for cell in row["cells"]
        if cell["front"] and row["role"] != "reference"
    }
    (svg,) = parse_panels(draw_figures(rows)["front"])
    marks = [
        (group.get("class", ""), title.text or "")
        for group in svg.iter("g")
        for path in group.findall("path")
        for title in path.findall("title")
    ]
    filled = {tuple(w.split(":")[0].split(", ")) for cls, w in marks if "hollow" not in cls}
    assert filled == front and 0 < len(front) < len(marks) == 2 * len(MEANS)


# ---- costs ----


def test_costs_and_tuning_are_drawn_where_they_are_known() -> None:
    figures = draw_figures(make_ranked_runs(seeds=2))
    assert "tuning" not in figures and "time" not in figures
    assert [panel.title for panel in figures["cost"].panels] == [
        "step time over full precision",
        "training time, s",
        "peak memory, MB",
    ]
    doc = make_document(make_ranked_runs(seeds=2))
    for row in doc["sections"][0]["rows"]:
        for n, cell in enumerate(row["cells"]):
            cell["best_of"] = [0.5, 0.4, 0.3 + 0.01 * n]
            at_time = {**ESTIMATE, "value": 0.6}
            view = {"at_time": at_time, "at_steps": ESTIMATE, "progress": 0.5, "note": ""}
            cell["equal_time"] = view
    figures = redraw(doc)
    assert len(figures["tuning"].panels) == len(figures["time"].panels) == 2
    assert "losses" not in figures
    assert "lsq 0.3 after 3 trials" in figures["tuning"].panels[0].description


def test_a_sentence_explains_why_there_is_no_figure_of_equal_time() -> None:
    doc = make_document(make_ranked_runs(seeds=2))
    section, cells = doc["sections"][0], list_cells(doc)
    for cell in cells:
        note = "2 of 2 runs without a validation curve"
        cell["equal_time"] = {"at_time": None, "at_steps": None, "progress": None, "note": note}
    assert "time" not in redraw(doc)
    assert explain_missing_equal_time(section) == (
        "Scores at equal training time cannot be shown: "
        "the validation curves of these runs are missing."
    )
    cells[0]["equal_time"]["note"] = "1 of 2 runs not evaluated by then"
    assert explain_missing_equal_time(section).endswith(
        "too few runs had been evaluated by the time full precision finished training."
    )
    for cell in cells:
        view = {"at_time": ESTIMATE, "at_steps": ESTIMATE, "progress": 0.5, "note": ""}
        cell["equal_time"] = view
    assert explain_missing_equal_time(section) == ""


# ---- tuning ----


def draw_tuning(best_of: dict[str, list[float | None]], share: float = 1.0) -> Figure:
    """Return the figure of tuning for best-of-n scores by entrant; the others have none."""
    doc = make_document(make_ranked_runs(seeds=2))
    for row in doc["sections"][0]["rows"]:
        for cell in row["cells"]:
            cell["best_of"], cell["best_of_share"] = best_of.get(row["entrant"], []), share
    return redraw(doc)["tuning"]


def test_the_best_of_n_is_drawn_at_n_where_smaller_n_have_no_score() -> None:
    """Scores of lsq are known for 3 and 4 trials only: its line must begin at 3, not at 1."""
    figure = draw_tuning({"lsq": [None, None, 0.32, 0.3], "ste": [0.6, 0.55, 0.5, 0.45]})
    (svg, _) = parse_panels(figure)
    tooltips = list_texts(svg, "title")
    assert {"lsq, 4 trials: 0.3", "ste, 4 trials: 0.45", "ste, 1 trial: 0.6"} <= set(tooltips)
    assert not [words for words in tooltips if words.startswith(("lsq, 1 ", "lsq, 2 "))]
    ticks = {
        label.text: float(label.get("x", "nan"))
        for group in svg.iter("g")
        if group.get("class") == "tick k"
        for label in group
    }
    late, whole = sorted(list_lines(svg), reverse=True)[:2]
    ends = [[line[0][0], line[-1][0]] for line in (late, whole)]
    assert ends[0] == pytest.approx([ticks["3"], ticks["4"]], abs=0.11)
    assert ends[1] == pytest.approx([ticks["1"], ticks["4"]], abs=0.11)


def test_the_caption_says_that_validation_chooses_and_test_is_shown() -> None:
    figure = draw_tuning({"lsq": [0.4, 0.3]}, share=0.25)
    assert figure.caption.startswith("The expected test score")
    assert "of the trial that is best on validation" in figure.caption
    written = "".join(tree.tostring(svg, encoding="unicode") for svg in parse_panels(figure))
    assert "trials, with 25 % of the steps" in written


def test_an_entrant_without_a_finished_trial_has_no_line() -> None:
    figure = draw_tuning({"lsq": [None, None], "ste": [0.6, 0.5]})
    assert figure.panels[0].description == "ste 0.5 after 2 trials"


def test_a_control_far_off_is_named_and_does_not_flatten_the_others() -> None:
    figure = draw_tuning({"rtn": [9.0, 8.0], "ste": [0.6, 0.5], "lsq": [0.4, 0.3]})
    (svg, _) = parse_panels(figure)
    assert "↑ rtn 8" in list_texts(svg)
    heights = [y for line in list_lines(svg) if len(line) > 1 for _, y in line]
    assert max(heights) - min(heights) > 120


# ---- over all cells ----


def test_the_overall_figures_show_entrants_with_a_gap_in_order() -> None:
    doc = make_document(make_ranked_runs(seeds=10))
    styles = assign_styles(doc["sections"])
    figures = {f.name: f for f in overall.draw_overall_figures(doc["overall"], styles)}
    assert set(figures) == {"gaps", "profile"}
    description = figures["gaps"].panels[0].description
    order = [re.sub(r" -?\d+ %$", "", part) for part in description.split("; ")]
    assert order == [row["entrant"] for row in doc["overall"]["rows"]] and order[0] == "gdnsq"


# ---- how entrants look ----


def test_forty_entrants_look_different() -> None:
    rows = [{"entrant": f"m{n}", "role": ""} for n in range(40)]
    controls = [{"entrant": "fp", "role": "reference"}, {"entrant": "rtn", "role": "control"}]
    styles = assign_styles([{"rows": rows + controls}])
    assert len({(style.colour, style.shape) for style in styles.values()}) == 42
    assert styles["fp"].colour == "ref" and styles["rtn"].colour == "ctl"


def test_a_long_name_keeps_both_its_ends() -> None:
    assert shorten_name("lotion (fisher=exact, scale=hessian)", 17) == "lotion (…hessian)"
    assert shorten_name("lsq", 17) == "lsq"


# ---- losses ----


def test_a_curve_is_the_mean_of_its_seeds_with_their_extremes() -> None:
    points = [(f"k{seed}", step, 1.0 / step + seed) for seed in (0, 1, 2) for step in range(1, 301)]
    losses = pd.DataFrame(points, columns=["key", "step", "loss"])
    curve = average_loss_curves(losses, {"k0": "c", "k1": "c", "k2": "c"})["c"]
    assert len(curve.mean) == 32
    assert curve.progress == sorted(curve.progress) and curve.progress[-1] <= 1
    np.testing.assert_allclose(np.array(curve.high) - curve.low, 2.0)
    np.testing.assert_allclose(curve.mean, np.array(curve.low) + 1)
    last = [step for step in range(1, 301) if step * 32 // 300 >= 31]
    assert curve.low[-1] == pytest.approx(np.mean([1 / step for step in last]))


def test_missing_numbers_and_unknown_runs_are_left_out_of_curves() -> None:
    points = pd.DataFrame({"key": ["a", "a", "b"], "step": [1, 2, 1], "loss": [1.0, math.nan, 2.0]})
    curves = average_loss_curves(points, {"a": "c"})
    assert list(curves) == ["c"] and curves["c"].mean == [1.0]
    assert average_loss_curves(points, {}) == {}
    assert average_loss_curves(points[:0], {"a": "c"}) == {}
