"""Rows of runs, grouped for a board: each row gets its section, its entrant and its column.

Text is turned into integers first and everything else is array arithmetic, so that a hundred
thousand rows take a fraction of a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qbench.boards.run_table import (
    Array,
    RunTable,
    drop_old_versions,
    join_tables,
    keep_one_attempt,
    number_combinations,
    number_pairs,
    read_frame,
)
from qbench.util.text import format_parameters

if TYPE_CHECKING:
    import pandas as pd


Defaults = Mapping[str, Mapping[str, Any]]
"""The default parameters of methods and tasks, by name."""

SECTION_COLUMNS = ("task", "task_params", "size", "data", "start", "steps", "batch", "recipe")
"""Runs of a section agree in these. The learning rate is not among them: every entrant is shown
at its best one on validation."""
FORMAT_COLUMNS = ("weights_format", "weights_granularity", "act_format", "act_granularity")
SIZES = ("xs", "s", "m", "l", "xl")
UNFINISHED_STATES = ("new", "planned", "running", "lost", "skipped")


@dataclass(frozen=True)
class Entrant:
    """A method with one set of parameters."""

    method: str
    params: str
    label: str
    version: int
    provenance: str
    reference: bool
    """Whether it trains in full precision, so that its runs belong to no column."""
    plain: bool
    """Whether every parameter is at its default."""


@dataclass(frozen=True)
class GroupedRows:
    """The runs of a board, sorted by section, entrant, column, learning rate and seed."""

    rows: dict[str, Array]
    """The columns of a `RunTable`, and with them `section`, `entrant` and `column` as indices
    into the lists below. The column of full precision is −1."""
    vocabularies: dict[str, list[str]]
    sections: list[dict[str, Any]]
    entrants: list[Entrant]
    column_labels: list[str]
    notes: list[str]


def group_rows(
    runs: pd.DataFrame | RunTable,
    planned: pd.DataFrame | RunTable | None = None,
    defaults: Defaults | None = None,
    per_entrant: Sequence[str] = (),
) -> GroupedRows:
    """Group the rows of a board.

    `planned` holds runs that are planned or skipped; a row counts where `runs` has none with its
    key. `per_entrant` names columns of a section in which its entrants may differ.
    """
    notes: list[str] = []
    table = _add_planned(_prepare(runs), planned)
    table = drop_old_versions(keep_one_attempt(table, notes), notes)
    is_tuned = any(table.vocabularies["stage"])
    if is_tuned:
        table = _remove_chosen_values(table)
    if per_entrant:
        # Code 0 is '': the rows no longer differ in these columns.
        empty = {name: np.zeros(len(table), dtype=np.int64) for name in per_entrant}
        table = RunTable({**table.columns, **empty}, table.vocabularies)
        notes.append(
            "as published: every entrant keeps the recipe of its own paper, so the differences are"
            " of recipes as much as of methods"
        )
    # Where each entrant has its own recipe or tuned parameters, two entrants may have the same
    # method and parameters. Then the label from the sweep file tells them apart.
    names = ("method", "params", "label") if per_entrant or is_tuned else ("method", "params")
    return _number_groups(table, names, defaults or {}, notes)


def _number_groups(
    table: RunTable, entrant_columns: Sequence[str], defaults: Defaults, notes: list[str]
) -> GroupedRows:
    """Number sections, entrants and columns in the order in which tables show them."""
    section, sections = number_combinations(table, SECTION_COLUMNS)
    entrant, pairs = number_combinations(table, entrant_columns)
    column, formats = number_combinations(table, FORMAT_COLUMNS)
    is_full = np.array(
        [not f["weights_format"] and not f["act_format"] for f in formats], dtype=bool
    )
    entrants = _describe_entrants(pairs, table, entrant, is_full[column], defaults)
    section_order = sorted(range(len(sections)), key=lambda i: _section_sort_key(sections[i]))
    entrant_order = sorted(
        range(len(entrants)), key=lambda i: (entrants[i].label, entrants[i].params)
    )
    column_order = sorted(
        (i for i in range(len(formats)) if not is_full[i]),
        key=lambda i: _format_sort_key(formats[i]),
    )
    rows = table.columns | {
        "section": _positions(section_order, len(sections))[section],
        "entrant": _positions(entrant_order, len(entrants))[entrant],
        "column": _positions(column_order, len(formats))[column],
    }
    return GroupedRows(
        _sort_rows(rows),
        table.vocabularies,
        [sections[i] for i in section_order],
        [entrants[i] for i in entrant_order],
        [make_format_label(**formats[i]) for i in column_order],
        notes,
    )


def make_format_label(
    weights_format: str, weights_granularity: str, act_format: str, act_granularity: str
) -> str:
    """Return `int4`, `int4/block-32` or `int2 a:int4`, as `RunConfig.format_label` does."""
    parts = []
    if weights_format:
        is_usual = weights_granularity in ("", "channel")
        parts.append(weights_format if is_usual else f"{weights_format}/{weights_granularity}")
    if act_format:
        is_usual = act_granularity in ("", "tensor")
        parts.append(f"a:{act_format if is_usual else f'{act_format}/{act_granularity}'}")
    return " ".join(parts) or "fp32"


def parse_parameters(text: str) -> dict[str, Any]:
    """Return the object in a JSON column, or an empty one if the text holds none."""
    try:
        data = json.loads(text) if text else {}
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def non_default_parameters(
    own: Mapping[str, Any], usual: Mapping[str, Any] | None, peers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the parameters that are not at their defaults (`usual`).

    Where the defaults are unknown, return those in which `own` differs from one of its peers.
    """
    if usual is not None:
        return {k: v for k, v in own.items() if k not in usual or usual[k] != v}
    return {k: v for k, v in own.items() if any(k not in peer or peer[k] != v for peer in peers)}


# ---- reading ----


def _prepare(runs: pd.DataFrame | RunTable) -> RunTable:
    """Add the columns `end`, `good` and `own_steps`, and move the learning rate to `lr`."""
    table = runs if isinstance(runs, RunTable) else read_frame(runs)
    lr_in_recipe = np.array(
        [parse_parameters(text).get("lr", np.nan) for text in table.vocabularies["recipe"]],
        dtype=np.float64,
    )[table.columns["recipe"]]
    lr = np.where(np.isnan(table.columns["lr"]), lr_in_recipe, table.columns["lr"])
    table = table.map_text("recipe", lambda recipe: _remove_parameters(recipe, {"lr"}))
    # `end` says how each run ended: ok, the reason of a failure, or the state of an unfinished
    # run. Each different pair of state and reason is spelled once.
    columns, vocabularies = table.columns, table.vocabularies
    end, first = number_pairs(columns["state"], columns["reason"], len(vocabularies["reason"]))
    states, reasons = table.get_texts("state")[first], table.get_texts("reason")[first]
    endings = [
        state if state != "failed" else reason or "failed"
        for state, reason in zip(states, reasons, strict=True)
    ]
    # `good` rows have a score. `own_steps` keeps the steps that the run itself was trained for.
    is_ok = columns["state"] == table.get_code("state", "ok")
    added = {
        "lr": lr,
        "end": end,
        "good": is_ok & np.isfinite(columns["packed"]),
        "own_steps": columns["steps"],
    }
    return RunTable({**columns, **added}, {**vocabularies, "end": endings})


def _add_planned(table: RunTable, planned: pd.DataFrame | RunTable | None) -> RunTable:
    if planned is None or not len(planned):
        return table
    extra, finished = _prepare(planned), set(table.columns["key"])
    # A skipped cell has no key and always counts.
    is_missing = [not key or key not in finished for key in extra.columns["key"]]
    return join_tables(table, extra.take(np.array(is_missing, dtype=bool)))


def _remove_chosen_values(table: RunTable) -> RunTable:
    """Remove the hyper-parameters that tuning chose from recipes and parameters.

    Then all cells of a tuned board meet in one section, and trials, which differ in these values,
    belong to the entrant that they tune.
    """
    columns, vocabularies = dict(table.columns), dict(table.vocabularies)
    chosen = [set(parse_parameters(text)) for text in vocabularies["chosen"]]
    chosen_by_method = [set[str]() for _ in vocabularies["method"]]
    for method, code in {*zip(columns["method"].tolist(), columns["chosen"].tolist(), strict=True)}:
        chosen_by_method[method] |= chosen[code]
    # Under successive halving a run has a share of the steps; its section is that of the budget.
    columns["steps"] = np.where(np.isnan(columns["budget"]), columns["steps"], columns["budget"])
    in_recipe = {*set().union(*chosen), "steps"}
    table = RunTable(columns, vocabularies).map_text(
        "recipe", lambda recipe: _remove_parameters(recipe, in_recipe)
    )
    # Parameters are stripped by method, because a name may be tuned in one and fixed in another.
    count = len(vocabularies["params"])
    pair, first = number_pairs(columns["method"], columns["params"], count)
    stripped = [
        _remove_parameters(vocabularies["params"][params], chosen_by_method[method])
        for method, params in zip(columns["method"][first], columns["params"][first], strict=True)
    ]
    vocabulary = list(dict.fromkeys(["", *stripped]))
    codes = np.array([vocabulary.index(text) for text in stripped], dtype=np.int64)[pair]
    return RunTable(
        {**table.columns, "params": codes}, {**table.vocabularies, "params": vocabulary}
    )


def _remove_parameters(text: str, names: Collection[str]) -> str:
    """Return a JSON object without some names; '' where nothing is left."""
    rest = {name: value for name, value in parse_parameters(text).items() if name not in names}
    return json.dumps(rest, sort_keys=True) if rest else ""


# ---- entrants ----


def _describe_entrants(
    pairs: Sequence[Mapping[str, str]],
    table: RunTable,
    code: Array,
    is_full: Array,
    defaults: Defaults,
) -> list[Entrant]:
    """Describe each entrant; `code` and `is_full` tell the entrant and precision of each row."""
    count = len(pairs)
    is_reference = np.bincount(code[is_full], minlength=count) > 0
    version = np.zeros(count)
    np.maximum.at(version, code, np.nan_to_num(table.columns["method_version"], nan=1.0))
    provenance = _read_provenance(table, code, count)
    parameters = [parse_parameters(pair["params"]) for pair in pairs]
    given_labels = _read_given_labels(table, code, count)
    entrants = []
    for i, (pair, own) in enumerate(zip(pairs, parameters, strict=True)):
        method = pair["method"]
        peers = [p for p, other in zip(parameters, pairs, strict=True) if other["method"] == method]
        changed = non_default_parameters(own, defaults.get(method), peers)
        label = given_labels[i] or (
            f"{method} ({format_parameters(changed)})" if changed else method
        )
        entrants.append(
            Entrant(
                method,
                pair["params"],
                label,
                int(version[i]),
                provenance[i],
                bool(is_reference[i]),
                # Without known defaults, an entrant is plain if it is called by its method's name.
                plain=not changed if method in defaults else label == method,
            )
        )
    return entrants


def _read_provenance(table: RunTable, code: Array, count: int) -> list[str]:
    """Return the provenance of each entrant; a run that states none is of a paper's method."""
    provenance = ["paper"] * count
    # A reconstruction must not hide behind other runs, so it is written last.
    for word in ("own", "reconstructed"):
        flagged = table.columns["provenance"] == table.get_code("provenance", word)
        for i in np.unique(code[flagged]):
            provenance[i] = word
    return provenance


def _read_given_labels(table: RunTable, code: Array, count: int) -> list[str]:
    """Return the label that the sweep file gives each entrant, or '' for none.

    Where an entrant has several labels, the first in alphabetical order counts.
    """
    vocabulary, labels = table.vocabularies["label"], [""] * count
    _, first = number_pairs(code, table.columns["label"], len(vocabulary))
    pairs = [(int(code[row]), vocabulary[table.columns["label"][row]]) for row in first]
    # In reverse, so that the first label is set last.
    for i, label in sorted(pairs, reverse=True):
        labels[i] = label or labels[i]
    return labels


# ---- order ----


def _positions(order: Sequence[int], count: int) -> Array:
    """Return the position of each of `count` numbers in an order; −1 for one that is not in it."""
    positions = np.full(count, -1, dtype=np.int64)
    positions[list(order)] = np.arange(len(order))
    return positions


def _sort_rows(rows: dict[str, Array]) -> dict[str, Array]:
    """Sort by section, entrant, column, learning rate and seed, and then by key."""
    # All five are packed into one integer, because one sort of integers is much faster than a
    # sort by five arrays.
    rank = np.zeros(len(rows["key"]), dtype=np.int64)
    for name in ("section", "entrant", "column", "lr", "seed"):
        values = np.nan_to_num(rows[name], nan=-1.0)
        is_float = values.dtype.kind == "f"
        part = (
            np.unique(values, return_inverse=True)[1]
            if is_float
            else values - values.min(initial=0)
        )
        rank = rank * (int(part.max(initial=0)) + 1) + part
    order = np.argsort(rank, kind="stable")
    if (rank[order][1:] == rank[order][:-1]).any():
        # Keys are compared only where two rows agree in all five, because that is slow.
        order = np.lexsort([np.unique(rows["key"].astype(str), return_inverse=True)[1], rank])
    return {name: column[order] for name, column in rows.items()}


def _section_sort_key(section: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sort by task and its parameters, by size from small to large, by start and by budget."""
    name = section["size"]
    size = SIZES.index(name) if name in SIZES else len(SIZES)
    # NaN, an unknown budget, cannot be compared.
    budget = (-1.0 if np.isnan(section[k]) else section[k] for k in ("steps", "batch"))
    task, params, start = (section[k] for k in ("task", "task_params", "start"))
    return task, params, size, name, start, *budget, section["recipe"], section["data"]


def _format_sort_key(columns: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sort by the bits of the weights, then those of the inputs (none first), then granularity.

    At equal bits integer formats come first, and `channel` comes before other granularities.
    """
    weights, granularity, act, act_granularity = (columns[name] for name in FORMAT_COLUMNS)
    return (
        *(_first_number(weights), not weights.startswith("int"), weights),
        *(bool(act), _first_number(act), act),
        *(granularity != "channel", _first_number(granularity), granularity),
        act_granularity,
    )


def _first_number(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found.group()) if found else 0
