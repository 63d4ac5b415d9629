"""Sweep files: TOML → SweepConfig. Everything that can be said about a file without importing a plugin is said here.

    board = "mine"                      # the folder in results/ and the name in the store
    version = 1                         # raise it when the rules change: it is part of every key
    title = "Scale rules at two bits"
    seeds = 3                           # 0, 1, 2; or a list
    start = "scratch"                   # or "fp:0.5": everybody goes on from a network trained for half the budget
    track = "fair"                      # or "as-published": [[method]] tables may name a preset, the recipe of its paper
    methods = ["fp", "rtn"]             # methods and tasks with nothing to say about them; the tables below add to the lists
    tasks = ["digits"]
    formats = ["int2", "int4"]          # of weights; or the table [formats]

    [formats]
    weights = ["int2", "int4"]
    granularity = "channel"             # tensor, channel, block-32 …
    activations = ["none", "int8"]      # left out: weights only

    [recipe]                            # for all tasks, over what each recommends; a list is an axis
    steps = 200
    objective = "task"                  # or "distill": everybody imitates the network that the runs start from, labels unseen

    [[task]]
    name = "linreg"
    sizes = ["xs", "s"]                 # left out: the smallest; or "all"
    alpha = 1.1                         # any other word is an option of the task
    recipe = { batch = 32 }             # for this task, over [recipe]
    formats = ["int4"]                  # for this task, instead of [formats]

    [[method]]
    name = "ste"
    scale = ["absmax", "mse"]           # any other word is a hyper-parameter; a list is an axis
    lr = [1e-3, 3e-3]                   # its learning rate, instead of the recipe's
    label = "STE"                       # what tables call it
    preset = "cifar"                    # a recipe of the method's own; only in the as-published track

    [tuning]                            # left out: nothing is tuned; with a start, all trials go on from one network, of the untuned recipe
    trials = 16                         # for every method, controls included; each on validation, at seeds that are not reported
    sampler = "sobol"                   # or "halton", or "grid", which is of lists and has as many trials as points
    seed = 0                            # of the sampler
    seeds = 1                           # for each trial, numbered from 1000 on
    lr = { low = 1e-4, high = 1e-1, log = true }    # words of the recipe, shared by all
    weight_decay = { values = [0.0, 0.1] }
    halving = { rungs = [0.25, 0.5], keep = 0.5 }   # shorter runs first: the better half goes on

    [tuning.own.lotion]                 # at most two of the knobs that a method names
    lam = { low = 10, high = 1e5, log = true }

    [engine]                            # how a run is carried out, which is part of no key
    gpus_per_run = 2                    # processes that train it together, each on a GPU, or all on the CPU with --device cpu
    fsdp = true                         # and divide its weights and what the optimizer keeps: for what one GPU cannot hold

    [downstream]
    tasks = ["grammar_recall"]          # asked of every finished run that is a language model: names, or files of lm-eval's

    [[retired]]                         # a version of a method whose rows stay on the board, with the reason, outside every comparison
    method = "pege"
    version = 1
    reason = "its pull was measured on clipped weights"

What is tuned has no other value in the file: the best trial's is the cell's. One value may stand for a list of one. An option that is called like one of ours goes into `params = { lr = 1 }`.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from qbench.errors import UsageError, unknown
from qbench.plugins import registry
from qbench.runs.config import Recipe
from qbench.sweepfile.config import NONE, OURS, RECIPE, Entry, Formats, SweepConfig
from qbench.sweepfile.engine_table import read_processes
from qbench.sweepfile.retired_table import read_retired
from qbench.sweepfile.tuning_space import Tuning
from qbench.sweepfile.tuning_table import read_tuning
from qbench.util.checked_values import coerce, line, list_of, strings, whole

__all__ = ["builtin_board", "builtin_boards", "plugin_modules", "read", "read_text"]


MOST_SEEDS, MOST_SEED = 100_000, 2**31 - 1
TOP = (
    "board",
    "version",
    "title",
    "seeds",
    "start",
    "track",
    "methods",
    "tasks",
    "formats",
    "recipe",
    "task",
    "method",
    "tuning",
    "downstream",
    "engine",
    "retired",
)
TRACKS = ("fair", "as-published")


def read(path: Path) -> SweepConfig:
    """A sweep file from disk. Whatever is wrong with it is one line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such sweep file") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not a sweep file: it is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    return read_text(text, str(path))


def builtin_boards() -> list[str]:
    return sorted(
        f.name.removesuffix(".toml")
        for f in files("qbench").joinpath("boards").iterdir()
        if f.name.endswith(".toml")
    )


def builtin_board(name: str = "quick") -> SweepConfig:
    """A board whose recipe ships with qbench."""
    if name not in builtin_boards():
        raise unknown("board", name, builtin_boards())
    return read_text(
        files("qbench").joinpath("boards", f"{name}.toml").read_text(encoding="utf-8"),
        f"{name}.toml",
    )


def read_text(text: str, file: str) -> SweepConfig:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: not TOML: {str(error)[0].lower()}{str(error)[1:]}") from None
    for key in data:
        if key not in TOP:
            raise unknown("key", key, TOP, file)
    sweep = SweepConfig(
        board=_board(data, file),
        tasks=tuple(_entries(data, "task", file)),
        methods=tuple(_entries(data, "method", file)),
        version=whole(data.get("version", 1), 1, MOST_SEED, f"{file}: version"),
        title=line(data.get("title", ""), f"{file}: title"),
        seeds=_seeds(data.get("seeds", 1), f"{file}: seeds"),
        start=_start(data.get("start", "scratch"), f"{file}: start"),
        track=_track(data.get("track", TRACKS[0]), f"{file}: track"),
        formats=_formats(
            data["formats"],
            f"{file}: {'[formats]' if isinstance(data['formats'], dict) else 'formats'}",
        )
        if "formats" in data
        else Formats(),
        recipe=_recipe(data.get("recipe", {}), f"{file}: [recipe]"),
        downstream=_downstream(data.get("downstream", {"tasks": []}), f"{file}: [downstream]"),
        engine=read_processes(data.get("engine", {}), f"{file}: [engine]"),
        retired=tuple(read_retired(data.get("retired", []), f"{file}: [[retired]]")),
        file=file,
        text=text,
    )
    return (
        dataclasses.replace(sweep, tuning=_tuning(data["tuning"], sweep))
        if "tuning" in data
        else sweep
    )


def plugin_modules(config: SweepConfig) -> list[str]:
    """The modules that the sweep's methods and tasks live in, for workers to import once."""
    chosen = [("methods", e.name) for e in config.methods] + [
        ("tasks", e.name) for e in config.tasks
    ]
    asks = (
        ["qbench.downstream.lm_eval_tasks"]
        if config.downstream or any(entry.downstream for entry in config.tasks)
        else []
    )
    return list(
        dict.fromkeys(
            [*(registry.plugins(kind)[name].entry.module for kind, name in chosen), *asks]
        )
    )


def unknown_key(key: str, known: Iterable[str], where: str) -> UsageError:
    """A word that a table does not know; perhaps one that TOML has given to the table above it."""
    if key in TOP:
        return UsageError(
            f"{where}: {key} belongs to the sweep: move it above the first table of the file"
        )
    return unknown("key", key, known, where)


# ---- tables ----


def _entries(data: Mapping[str, Any], kind: str, file: str) -> Iterable[Entry]:
    plural, known = f"{kind}s", registry.plugins(f"{kind}s")
    names = strings(data.get(plural, []), f"{file}: {plural}", empty=True)
    tables = data.get(kind, [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise UsageError(
            f'{file}: {kind} is a list of tables: write [[{kind}]], or {plural} = ["name"]'
        )
    written = [({"name": n}, f"{file}: {plural}") for n in names] + [
        (t, f"{file}: [[{kind}]] {i}") for i, t in enumerate(tables, 1)
    ]
    if not written:
        raise UsageError(
            f'{file}: no {plural}: write {plural} = ["name"] or [[{kind}]] tables; known: {", ".join(sorted(known)) or "none"}'
        )
    seen: dict[str, str] = {}
    for table, where in written:
        entry = _entry(table, kind, where)
        if entry.name not in known:
            raise unknown(kind, entry.name, known, where)
        if (twin := seen.setdefault(repr(sorted(table.items())), where)) != where:
            raise UsageError(
                f"{where}: {kind} {entry.name!r} is already there, word for word ({twin.removeprefix(file + ': ')}); remove one"
            )
        if entry.preset and data.get("track") != "as-published":
            raise UsageError(
                f'{where}: preset {entry.preset!r} is a recipe of its own: it needs track = "as-published" at the top'
            )
        yield entry


def _entry(table: Mapping[str, Any], kind: str, where: str) -> Entry:
    if "name" not in table:
        near = next((k for k in table if k in ("id", kind, "nmae")), None)
        raise UsageError(f"{where}: name is missing" + (f" (instead of {near!r}?)" if near else ""))
    extra = table.get("params", {})
    if not isinstance(extra, dict):
        raise UsageError(f"{where}: params is a table of options, not {extra!r}")
    params = {k: v for k, v in table.items() if k not in OURS[kind]} | extra
    for key, value in params.items():
        if value == []:
            raise UsageError(f"{where}: {key} is an empty list, so there is nothing to run")
    recipe = (
        table.get("recipe", {}) if kind == "task" else {k: table[k] for k in ("lr",) if k in table}
    )
    return Entry(
        name=line(table["name"], f"{where}: name"),
        where=where,
        label=line(table.get("label", ""), f"{where}: label"),
        params=params,
        recipe=_recipe(recipe, f"{where}: recipe" if kind == "task" else where),
        sizes=strings(table["sizes"], f"{where}: sizes") if "sizes" in table else (),
        formats=_formats(table["formats"], f"{where}: formats") if "formats" in table else None,
        preset=line(table["preset"], f"{where}: preset")
        if kind == "method" and "preset" in table
        else "",
        downstream=strings(table["downstream"], f"{where}: downstream", empty=True)
        if kind == "task" and "downstream" in table
        else None,
    )


def _downstream(table: Any, where: str) -> tuple[str, ...]:
    if not isinstance(table, dict) or set(table) != {"tasks"}:
        raise UsageError(f'{where}: write tasks = ["name"] in it, and nothing else')
    return strings(table["tasks"], f"{where}: tasks", empty=True)


def _formats(value: Any, where: str) -> Formats:
    table = value if isinstance(value, dict) else {"weights": value}
    axes = [f.name for f in dataclasses.fields(Formats)]
    for key in table:
        if key not in axes:
            raise unknown_key(key, axes, where)
    found = {
        k: strings(
            v, f"{where}: {k}" if isinstance(value, dict) else where, empty=k == "activations"
        )
        for k, v in table.items()
    }
    return Formats(**{k: v or (NONE,) for k, v in found.items()})


def _recipe(table: Any, where: str) -> dict[str, tuple[Any, ...]]:
    """Every word of a recipe as an axis, each value checked alone: their domains do not depend on one another."""
    if not isinstance(table, dict):
        raise UsageError(f"{where}: a recipe is a table such as {{ steps = 100 }}, not {table!r}")
    axes = {}
    for key, value in table.items():
        if key not in RECIPE:
            raise unknown_key(key, RECIPE, where)
        axes[key] = tuple(
            coerce(v, RECIPE[key], f"{where}: {key}") for v in list_of(value, f"{where}: {key}")
        )
        for item in axes[key]:
            if problem := dataclasses.replace(Recipe(), **{key: item}).problem():
                raise UsageError(f"{where}: {problem}")
    return axes


def _tuning(table: Any, sweep: SweepConfig) -> Tuning:
    """The table [tuning], and nothing beside it that would give what it tunes another value."""
    where = f"{sweep.file}: [tuning]"
    tuning = read_tuning(table, [entry.name for entry in sweep.methods], sweep.seeds, where)
    if sweep.track != TRACKS[0]:
        raise UsageError(
            f"{where}: in the track {sweep.track} every recipe is its paper's, and nothing is tuned"
        )
    if sweep.retired:
        raise UsageError(
            f"{sweep.file}: [[retired]]: what a version had chosen for it is not known any more; not beside [tuning]"
        )
    for recipe, place in (
        (sweep.recipe, f"{sweep.file}: [recipe]"),
        *((entry.recipe, entry.where) for entry in (*sweep.tasks, *sweep.methods)),
    ):
        for word, values in recipe.items():
            if word in tuning.axes:
                raise UsageError(f"{place}: {word} is tuned: take it out here or in [tuning]")
            if word == "lr" and len(values) > 1:
                raise UsageError(
                    f"{place}: several rates are trials of their own: write lr = {{ values = [...] }} in [tuning]"
                )
    for entry in sweep.methods:
        for knob in tuning.own.get(entry.name, ()):
            if knob in entry.params:
                raise UsageError(
                    f"{entry.where}: {knob} is tuned: take it out here or in [tuning.own.{entry.name}]"
                )
    return tuning


# ---- values ----


def _board(data: Mapping[str, Any], file: str) -> str:
    if "board" not in data:
        raise UsageError(
            f'{file}: board is missing: write board = "{re.sub(r"[^A-Za-z0-9._-]", "-", Path(file).stem)}"'
        )
    name = line(data["board"], f"{file}: board")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise UsageError(
            f"{file}: board: it names a folder, so up to 64 letters, digits and . _ -, not {name!r}"
        )
    return name


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        return tuple(range(whole(value, 1, MOST_SEEDS, where)))
    seeds = tuple(whole(v, 0, MOST_SEED, where) for v in value)
    if not seeds or len(seeds) > MOST_SEEDS:
        raise UsageError(f"{where}: from 1 to {MOST_SEEDS} of them, not {len(seeds)}")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"{where}: {next(s for s in seeds if seeds.count(s) > 1)} is there twice")
    return seeds


def _track(value: Any, where: str) -> str:
    if line(value, where) not in TRACKS:
        raise unknown("track", value, TRACKS, where)
    return str(value)


def _start(value: Any, where: str) -> str:
    """`scratch`, or `<method>:<share of the budget>` in one spelling."""
    text = line(value, where)
    method, _, share = text.partition(":")
    if text == "scratch":
        return text
    if not re.fullmatch(r"0?\.\d{1,6}", share) or not float(share):
        raise UsageError(
            f'{where}: "scratch", or "fp:0.5" for a network trained for that share of the budget (between 0 and 1), not {text!r}'
        )
    if method not in registry.plugins("methods"):
        raise unknown("method", method, registry.plugins("methods"), where)
    return f"{method}:{float(share)}"
