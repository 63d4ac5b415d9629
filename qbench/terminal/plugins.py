"""Print the registered methods and tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from qbench.terminal.tables import make_label_grid
from qbench.util import text
from qbench.util.text import format_count, format_parameters

if TYPE_CHECKING:
    from qbench.terminal.tables import LabelledLine

PluginEntry = Mapping[str, Any]
"""A method or task as `plugins.describe` lists it."""
MAX_ERROR_LENGTH = 2000


def show_methods(entries: Sequence[PluginEntry], console: Console | None = None) -> None:
    """Print each method: name, version, title, summary, paper, parameters and presets."""
    _show_entries(entries, console, _describe_method)


def show_tasks(entries: Sequence[PluginEntry], console: Console | None = None) -> None:
    """Print each task: name, version, title, summary, metric, sizes with budgets, parameters."""
    _show_entries(entries, console, _describe_task)


def _show_entries(
    entries: Sequence[PluginEntry],
    console: Console | None,
    describe: Callable[[PluginEntry], Iterator[LabelledLine]],
) -> None:
    console = console or Console()
    if not entries:
        console.print(Text("None is installed."))
    for entry in entries:
        console.print(_make_title(entry))
        lines: list[LabelledLine]
        if entry.get("error"):
            error = text.clean_line(entry["error"], MAX_ERROR_LENGTH)
            lines = [("  error", Text(error, style="red"))]
        else:
            lines = [(f"  {label}", value) for label, value in describe(entry) if value]
        lines.append(("  from", f"{entry.get('distribution')} ({entry.get('target')})"))
        console.print(make_label_grid(lines))
        console.print()


def _make_title(entry: PluginEntry) -> Text:
    title = Text(text.clean_line(entry["name"]), style="bold")
    title.append(f"  {text.clean_line(entry.get('title') or '')}".rstrip(), style="not bold")
    # A plugin that cannot be imported has no version.
    if "version" in entry:
        title.append(f"  version {entry['version']}", style="not bold dim")
    return title


def _describe_method(entry: PluginEntry) -> Iterator[LabelledLine]:
    """Yield what is printed under a method's name; lines without a value are not printed."""
    yield "summary", str(entry.get("summary") or "")
    origin = "reconstructed" if entry.get("provenance") == "reconstructed" else ""
    yield "paper", ", ".join(filter(None, (entry.get("paper"), origin)))
    yield "starts from", f"a finished run of {entry['after']}" if entry.get("after") else ""
    yield "options", format_parameters(entry.get("options") or {})
    for name, preset in (entry.get("presets") or {}).items():
        values = {**preset["params"], **preset["recipe"]}
        if preset["start"]:
            values["start"] = preset["start"]
        yield "preset", f"{name}: {format_parameters(values)} ({preset['source']})"


def _describe_task(entry: PluginEntry) -> Iterator[LabelledLine]:
    """Yield what is printed under a task's name; lines without a value are not printed."""
    metric = entry.get("metric") or {}
    unit = f" ({metric['unit']})" if metric.get("unit") else ""
    yield "summary", str(entry.get("summary") or "")
    yield "metric", f"{metric.get('name')}{unit}, {metric.get('better')} is better"
    for n, size in enumerate(entry.get("sizes") or ()):
        yield "" if n else "sizes", f"{size}: {_describe_size(entry, size)}"
    yield "options", format_parameters(entry.get("options") or {})


def _describe_size(entry: PluginEntry, size: str) -> str:
    """Return the budget of a size, `300 steps, batch 64`, and the values that it stands for."""
    recipe = (entry.get("recipes") or {}).get(size) or {}
    steps = format_count(recipe.get("steps") or 0, "step")
    budget = f"{steps}, batch {recipe.get('batch')}"
    return ", ".join(filter(None, (budget, format_parameters(entry["sizes"][size]))))
