"""Read sweep files: TOML → SweepConfig. All that needs no plugin to be loaded is checked here.

    board = "mine"                # the folder in results/ and the name in the store
    version = 1                   # raise it when the rules change: it is part of every key
    title = "Scale rules at two bits"
    seeds = 3                     # 0, 1, 2; or a list
    start = "scratch"             # or "fp:0.5": start from a network trained for half the budget
    track = "fair"                # or "as-published": a [[method]] may name a preset of its paper
    methods = ["fp", "rtn"]       # methods and tasks without options; the tables below add to them
    tasks = ["digits"]
    formats = ["int2", "int4"]    # of weights; or the table [formats]

    [formats]
    weights = ["int2", "int4"]
    granularity = "channel"       # tensor, channel, block-32 …
    activations = ["none", "int8"]    # left out: weights only

    [recipe]                      # for all tasks, over what each recommends; a list is an axis
    steps = 200
    objective = "task"            # or "distill": match the network that the runs start from

    [[task]]
    name = "linreg"
    sizes = ["xs", "s"]           # left out: the smallest; or "all"
    alpha = 1.1                   # any other key is an option of the task
    recipe = { batch = 32 }       # for this task, over [recipe]
    formats = ["int4"]            # for this task, instead of [formats]

    [[method]]
    name = "ste"
    scale = ["absmax", "mse"]     # any other key is a hyper-parameter; a list is an axis
    lr = [1e-3, 3e-3]             # its learning rate, instead of the recipe's
    label = "STE"                 # its name in tables
    preset = "cifar"              # a recipe of its paper; only in the as-published track

    [tuning]                      # left out: nothing is tuned
    trials = 16                   # for every method, controls included; compared on validation
    sampler = "sobol"             # or "grid": all combinations of lists, which set the trials
    seed = 0                      # of the sampler
    seeds = 1                     # how many for each trial, numbered from 1000 on
    lr = { low = 1e-4, high = 1e-1, log = true }    # keys of the recipe, shared by all
    weight_decay = { values = [0.0, 0.1] }
    halving = { rungs = [0.25, 0.5], keep = 0.5 }   # shorter runs first: the better half goes on

    [tuning.own.lotion]           # at most two hyper-parameters of a method
    lam = { low = 10, high = 1e5, log = true }

    [engine]                      # how a run is carried out; part of no key
    gpus_per_run = 2              # processes that train a run together, each on a GPU

    [downstream]
    tasks = ["grammar_recall"]    # for every finished language model: names, or lm-eval's files

    [[retired]]                   # a withdrawn version whose rows stay, outside every comparison
    method = "pege"
    version = 1
    reason = "its pull was measured on clipped weights"

A hyper-parameter that is tuned has no other value in the file: a cell takes that of its best trial.
With a `start`, all trials start from one network, trained with the recipe before tuning. A single
value may stand for a list of one. An option that has the name of a key above goes into
`params = { lr = 1 }`.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from qbench.errors import UsageError, unknown_name_error
from qbench.plugins import registry
from qbench.sweepfile.config import TOP_LEVEL_KEYS, TRACKS, FormatAxes, SweepConfig
from qbench.sweepfile.engine_table import read_engine_table
from qbench.sweepfile.plugin_tables import read_entries, read_formats, read_recipe
from qbench.sweepfile.retired_table import read_retired_tables
from qbench.sweepfile.tuning_space import Tuning
from qbench.sweepfile.tuning_table import read_tuning_table
from qbench.util.checked_values import check_integer, check_line, check_strings

__all__ = [
    "list_builtin_boards",
    "list_plugin_modules",
    "load_builtin_board",
    "parse_sweep",
    "read_sweep_file",
]


MAX_SEEDS, MAX_SEED = 100_000, 2**31 - 1


def read_sweep_file(path: Path) -> SweepConfig:
    """Read a sweep file from disk. Any problem with it is a UsageError of one line."""
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
    return parse_sweep(text, str(path))


def parse_sweep(text: str, file: str) -> SweepConfig:
    """Parse the text of a sweep file; `file` is its name in error messages."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: not TOML: {str(error)[0].lower()}{str(error)[1:]}") from None
    for key in data:
        if key not in TOP_LEVEL_KEYS:
            raise unknown_name_error("key", key, TOP_LEVEL_KEYS, file)
    sweep = SweepConfig(
        board=_read_board_name(data, file),
        tasks=tuple(read_entries(data, "task", file)),
        methods=tuple(read_entries(data, "method", file)),
        version=check_integer(data.get("version", 1), 1, MAX_SEED, f"{file}: version"),
        title=check_line(data.get("title", ""), f"{file}: title"),
        seeds=_read_seeds(data.get("seeds", 1), f"{file}: seeds"),
        start=_read_start(data.get("start", "scratch"), f"{file}: start"),
        track=_read_track(data.get("track", TRACKS[0]), f"{file}: track"),
        formats=_read_board_formats(data, file),
        recipe=read_recipe(data.get("recipe", {}), f"{file}: [recipe]"),
        downstream=_read_downstream(data.get("downstream", {"tasks": []}), f"{file}: [downstream]"),
        engine=read_engine_table(data.get("engine", {}), f"{file}: [engine]"),
        retired=tuple(read_retired_tables(data.get("retired", []), f"{file}: [[retired]]")),
        file=file,
        text=text,
    )
    if "tuning" in data:
        sweep = dataclasses.replace(sweep, tuning=_read_tuning(data["tuning"], sweep))
    return sweep


def list_builtin_boards() -> list[str]:
    """Return the names of the boards whose sweep files ship with qbench."""
    names = [entry.name for entry in files("qbench").joinpath("boards").iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_builtin_board(name: str = "quick") -> SweepConfig:
    """Return the sweep of a board whose file ships with qbench."""
    if name not in list_builtin_boards():
        raise unknown_name_error("board", name, list_builtin_boards())
    file = files("qbench").joinpath("boards", f"{name}.toml")
    return parse_sweep(file.read_text(encoding="utf-8"), f"{name}.toml")


def list_plugin_modules(config: SweepConfig) -> list[str]:
    """Return the modules of the sweep's methods and tasks, for workers to import once."""
    chosen = [
        *(("methods", entry.name) for entry in config.methods),
        *(("tasks", entry.name) for entry in config.tasks),
    ]
    modules = [registry.plugins(kind)[name].entry.module for kind, name in chosen]
    if config.downstream or any(entry.downstream for entry in config.tasks):
        modules.append("qbench.downstream.lm_eval_evaluation")
    return list(dict.fromkeys(modules))


# ---- values of the sweep ----


def _read_board_name(data: Mapping[str, Any], file: str) -> str:
    if "board" not in data:
        example = re.sub(r"[^A-Za-z0-9._-]", "-", Path(file).stem)
        raise UsageError(f'{file}: board is missing: write board = "{example}"')
    name = check_line(data["board"], f"{file}: board")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise UsageError(
            f"{file}: board: it names a folder, so up to 64 letters, digits and . _ -, not {name!r}"
        )
    return name


def _read_seeds(value: Any, where: str) -> tuple[int, ...]:
    """Return the seeds, given as a list or as a number of them."""
    if not isinstance(value, list):
        return tuple(range(check_integer(value, 1, MAX_SEEDS, where)))
    seeds = tuple(check_integer(seed, 0, MAX_SEED, where) for seed in value)
    if not seeds or len(seeds) > MAX_SEEDS:
        raise UsageError(f"{where}: from 1 to {MAX_SEEDS} of them, not {len(seeds)}")
    if len(set(seeds)) < len(seeds):
        repeated = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise UsageError(f"{where}: {repeated} occurs twice")
    return seeds


def _read_start(value: Any, where: str) -> str:
    """Return `scratch`, or `<method>:<share of the budget>` with the share in one spelling."""
    text = check_line(value, where)
    method, _, share = text.partition(":")
    if text == "scratch":
        return text
    if not re.fullmatch(r"0?\.\d{1,6}", share) or not float(share):
        raise UsageError(
            f'{where}: "scratch", or "fp:0.5" for a network trained for that share of the budget '
            f"(between 0 and 1), not {text!r}"
        )
    if method not in registry.plugins("methods"):
        raise unknown_name_error("method", method, registry.plugins("methods"), where)
    # The start is part of every key, so .5 and 0.50 must become the same text.
    return f"{method}:{float(share)}"


def _read_track(value: Any, where: str) -> str:
    if check_line(value, where) not in TRACKS:
        raise unknown_name_error("track", value, TRACKS, where)
    return str(value)


def _read_board_formats(data: Mapping[str, Any], file: str) -> FormatAxes:
    if "formats" not in data:
        return FormatAxes()
    name = "[formats]" if isinstance(data["formats"], dict) else "formats"
    return read_formats(data["formats"], f"{file}: {name}")


def _read_downstream(table: Any, where: str) -> tuple[str, ...]:
    if not isinstance(table, dict) or set(table) != {"tasks"}:
        raise UsageError(f'{where}: write tasks = ["name"] in it, and nothing else')
    return check_strings(table["tasks"], f"{where}: tasks", empty=True)


# ---- tuning ----


def _read_tuning(table: Any, sweep: SweepConfig) -> Tuning:
    """Return the contents of the table [tuning], which the rest of the file must not contradict."""
    where = f"{sweep.file}: [tuning]"
    tuning = read_tuning_table(table, [entry.name for entry in sweep.methods], sweep.seeds, where)
    if sweep.track != TRACKS[0]:
        raise UsageError(
            f"{where}: in the track {sweep.track} every recipe is its paper's, and nothing is tuned"
        )
    if sweep.retired:
        raise UsageError(
            f"{sweep.file}: [[retired]]: cannot be combined with [tuning], because the values that "
            "the retired version was tuned to are not known any more"
        )
    _refuse_second_values(tuning, sweep)
    return tuning


def _refuse_second_values(tuning: Tuning, sweep: SweepConfig) -> None:
    """Raise a UsageError if the file sets a hyper-parameter that is tuned."""
    recipes = [(sweep.recipe, f"{sweep.file}: [recipe]")]
    recipes += [(entry.recipe, entry.where) for entry in (*sweep.tasks, *sweep.methods)]
    for recipe, place in recipes:
        for key, values in recipe.items():
            if key in tuning.axes:
                raise UsageError(f"{place}: {key} is tuned: take it out here or in [tuning]")
            # Several rates would give a method more trials than the others.
            if key == "lr" and len(values) > 1:
                raise UsageError(
                    f"{place}: several learning rates cannot be combined with [tuning]: "
                    "write lr = { values = [...] } in [tuning]"
                )
    for entry in sweep.methods:
        for name in tuning.own.get(entry.name, ()):
            if name in entry.params:
                raise UsageError(
                    f"{entry.where}: {name} is tuned: "
                    f"take it out here or in [tuning.own.{entry.name}]"
                )
