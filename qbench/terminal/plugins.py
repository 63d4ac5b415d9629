"""The registered methods and tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from qbench.terminal.tables import _grid
from qbench.util import text
from qbench.util.text import count, spell

if TYPE_CHECKING:
    from qbench.terminal.tables import Line


# ---- what is registered ----


def show_methods(entries: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Name, version, title and paper of each method, what it does, and its parameters with their defaults."""
    _show_entries(entries, console, _about_method)


def show_tasks(entries: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Name, version and title of each task, what it is, its metric, its sizes with their budgets, and its parameters."""
    _show_entries(entries, console, _about_task)


def _show_entries(
    entries: Sequence[Mapping[str, Any]],
    console: Console | None,
    about: Callable[[Mapping[str, Any]], Iterator[Line]],
) -> None:
    console = console or Console()
    if not entries:
        console.print(Text("None is installed."))
    for entry in entries:
        title = Text(text.plain(entry["name"]), style="bold")
        title.append(f"  {text.plain(entry.get('title') or '')}".rstrip(), style="not bold")
        title.append(
            f"  version {entry['version']}" if "version" in entry else "", style="not bold dim"
        )
        console.print(title)
        lines: list[Line] = (
            [("  error", Text(text.plain(entry["error"], 2000), style="red"))]
            if entry.get("error")
            else []
        )
        lines += (
            [(f"  {label}", words) for label, words in about(entry) if words]
            if not entry.get("error")
            else []
        )
        console.print(
            _grid([*lines, ("  from", f"{entry.get('distribution')} ({entry.get('target')})")])
        )
        console.print()


def _about_method(entry: Mapping[str, Any]) -> Iterator[Line]:
    yield "does", str(entry.get("summary") or "")
    source = "reconstructed" if entry.get("provenance") == "reconstructed" else ""
    yield "paper", ", ".join(filter(None, (entry.get("paper"), source)))
    yield "after", f"a finished run of {entry['after']}" if entry.get("after") else ""
    yield "options", spell(entry.get("options") or {})
    yield "tuned", ", ".join(entry.get("knobs") or ())
    for name, preset in (entry.get("presets") or {}).items():
        words = {
            **preset["params"],
            **preset["recipe"],
            **({"start": preset["start"]} if preset["start"] else {}),
        }
        yield "preset", f"{name}: {spell(words)} ({preset['source']})"


def _about_task(entry: Mapping[str, Any]) -> Iterator[Line]:
    metric = entry.get("metric") or {}
    unit = f" ({metric['unit']})" if metric.get("unit") else ""
    yield "is", str(entry.get("summary") or "")
    yield "metric", f"{metric.get('name')}{unit}, {metric.get('better')} is better"
    for n, size in enumerate(entry.get("sizes") or ()):
        yield "" if n else "sizes", f"{size}: {_budget(entry, size)}"
    yield "options", spell(entry.get("options") or {})
    yield (
        "tuning",
        "; ".join(
            f"{name}: {', '.join(map(str, values))}"
            for name, values in (entry.get("tuning") or {}).items()
        ),
    )


def _budget(entry: Mapping[str, Any], size: str) -> str:
    """`300 steps of 64`, and what the size means to the task."""
    recipe = (entry.get("recipes") or {}).get(size) or {}
    return ", ".join(
        filter(
            None,
            (
                f"{count(recipe.get('steps') or 0, 'step')} of {recipe.get('batch')}",
                spell(entry["sizes"][size]),
            ),
        )
    )
