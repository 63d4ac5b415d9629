"""What is printed of the registered methods and tasks."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from qbench.plugins.describe import list_methods, list_tasks
from qbench.terminal.plugins import show_methods, show_tasks
from tests.hostile_text import has_only_visible_characters
from tests.terminal.printing import print_to_text


def unfold(printed: str) -> str:
    """Return the text with the lines of folded values joined."""
    return re.sub(r"\s*\n {10,}(?=\S)", " ", printed)


def test_every_method_is_printed_with_its_summary_and_options() -> None:
    printed = unfold(print_to_text(show_methods, list_methods()))
    for entry in (m for m in list_methods() if m["error"] is None):
        assert f"{entry['name']}  {entry['title']}" in printed and entry["summary"] in printed
    assert "grid=symmetric, scale=absmax" in printed


def test_every_task_is_printed_with_its_metric_and_budgets() -> None:
    printed = unfold(print_to_text(show_tasks, list_tasks()))
    for entry in (t for t in list_tasks() if t["error"] is None):
        assert f"{entry['name']}  {entry['title']}" in printed
        assert f"{entry['metric']['better']} is better" in printed
    assert "xs: 300 steps, batch 64" in printed
    assert print_to_text(show_tasks, []) == "None is installed.\n"


def test_a_broken_plugin_is_printed_with_its_error() -> None:
    broken = {
        "name": "odd",
        "distribution": "odd 1.0",
        "target": "odd:Odd",
        "error": "odd cannot be imported:\x1b[2J no module",
    }
    printed = print_to_text(show_methods, [broken])
    assert printed.startswith("odd\n")
    assert "odd cannot be imported: no module" in printed and "odd 1.0 (odd:Odd)" in printed
    assert has_only_visible_characters(printed)


@given(st.integers(20, 200))
def test_a_list_of_plugins_fits_any_width(width: int) -> None:
    entry = {"name": "m" * 50, "error": "e" * 90}
    printed = print_to_text(show_methods, [entry], width=width)
    assert all(cell_len(line) <= width for line in printed.splitlines())
