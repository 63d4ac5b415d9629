"""Rows of runs as a board needs them: one attempt a run, current versions only, and every row told which section, entrant and column it
belongs to. Text is turned into small integers at once and the rest is arrays, so a hundred thousand rows take a fraction of a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qbench.boards.run_table import Array, Table, read_frame
from qbench.util.text import count, spell

if TYPE_CHECKING:
    import pandas as pd


Defaults = Mapping[str, Mapping[str, Any]]

SECTION = ("task", "task_params", "size", "data", "start", "steps", "batch", "recipe")
"""What is trained alike. The learning rate is not of it: the best on validation is shown, for everyone."""
FORMAT = ("weights_format", "weights_granularity", "act_format", "act_granularity")
SIZES = ("xs", "s", "m", "l", "xl")
NOT_RUN = ("new", "planned", "running", "lost", "skipped")


@dataclass(frozen=True)
class Entrant:
    """A method with one set of parameters."""

    method: str
    params: str
    label: str
    version: int
    reconstructed: bool
    reference: bool
    """Full precision: its runs belong to no column."""
    plain: bool
    """Every parameter at its default."""


@dataclass(frozen=True)
class Tidy:
    """`rows` are columns by name, sorted by (section, entrant, column, learning rate, seed); `section`, `entrant` and `column` (−1 for full
    precision) are numbers; text columns are numbers of `words`."""

    rows: dict[str, Array]
    words: dict[str, list[str]]
    sections: list[dict[str, Any]]
    entrants: list[Entrant]
    columns: list[str]
    notes: list[str]


def tidy(
    runs: pd.DataFrame | Table,
    planned: pd.DataFrame | Table | None = None,
    defaults: Defaults | None = None,
    own: Sequence[str] = (),
) -> Tidy:
    """`own` are words of a section that are left to each entrant. `planned` has the same identity columns, with state planned or skipped; its rows count where `runs` has none of the key."""
    table, notes = _read(runs), list[str]()
    if planned is not None and len(planned):
        extra, done = _read(planned), set(table.columns["key"])
        table = join(
            table,
            extra.take(
                np.array([not key or key not in done for key in extra.columns["key"]], dtype=bool)
            ),
        )
    table = _current(_one_attempt(table, notes), notes)
    tuned = any(table.words["stage"])
    if tuned:
        table = _alike(table)
    if own:
        table = Table(
            {**table.columns, **{name: np.zeros(len(table), dtype=np.int64) for name in own}},
            table.words,
        )
        notes.append(
            "as published: every entrant keeps the recipe of its own paper, so the differences are of recipes as much as of methods"
        )
    section, sections = _number(table, SECTION)
    # In a track of their own recipes, or where parameters are tuned, two entrants may share them: what the sweep calls them tells them apart.
    entrant, pairs = _number(
        table, ("method", "params", "label") if own or tuned else ("method", "params")
    )
    column, formats = _number(table, FORMAT)
    full = np.array([not f["weights_format"] and not f["act_format"] for f in formats], dtype=bool)
    entrants = _entrants(pairs, table, entrant, full[column], defaults or {})
    by_section = sorted(range(len(sections)), key=lambda i: _section_order(sections[i]))
    by_label = sorted(range(len(entrants)), key=lambda i: (entrants[i].label, entrants[i].params))
    shown = sorted(
        (i for i in range(len(formats)) if not full[i]), key=lambda i: _format_order(formats[i])
    )
    rows = table.columns | {
        "section": _places(by_section, len(sections))[section],
        "entrant": _places(by_label, len(entrants))[entrant],
        "column": _places(shown, len(formats))[column],
    }
    labels = [format_label(**formats[i]) for i in shown]
    return Tidy(
        _sorted(rows),
        table.words,
        [sections[i] for i in by_section],
        [entrants[i] for i in by_label],
        labels,
        notes,
    )


def format_label(
    weights_format: str, weights_granularity: str, act_format: str, act_granularity: str
) -> str:
    """As RunConfig.format_label, from columns: `int4`, `int4/block-32`, `int2 a:int4`."""
    weights = (
        weights_format
        if weights_granularity in ("", "channel")
        else f"{weights_format}/{weights_granularity}"
    )
    acts = act_format if act_granularity in ("", "tensor") else f"{act_format}/{act_granularity}"
    return (
        " ".join(([weights] if weights_format else []) + ([f"a:{acts}"] if act_format else []))
        or "fp32"
    )


def parameters(text: str) -> dict[str, Any]:
    """A JSON column's object; empty where it is none."""
    try:
        data = json.loads(text) if text else {}
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


# ---- reading ----


def _read(runs: pd.DataFrame | Table) -> Table:
    """The columns that are used, and how each run ended."""
    table = runs if isinstance(runs, Table) else read_frame(runs)
    columns, words = dict(table.columns), dict(table.words)
    rates = np.array(
        [parameters(text).get("lr", np.nan) for text in words["recipe"]], dtype=np.float64
    )[columns["recipe"]]
    columns["lr"] = np.where(np.isnan(columns["lr"]), rates, columns["lr"])
    _rewrite(columns, words, "recipe", _without_rate)
    # How each run ended, in a word: ok, the reason of a failure, or that it has not run.
    state, reason = _strings(columns, words, "state"), _strings(columns, words, "reason")
    pair, first = _pairs(columns["state"], columns["reason"], len(words["reason"]))
    ended = [
        s if s != "failed" else r or "failed"
        for s, r in zip(state[first], reason[first], strict=True)
    ]
    columns["end"], words["end"] = pair, ended
    columns["good"] = (
        columns["state"] == (words["state"].index("ok") if "ok" in words["state"] else -1)
    ) & np.isfinite(columns["packed"])
    columns["own_steps"] = columns["steps"]
    return Table(columns, words)


def _rewrite(
    columns: dict[str, Array], words: dict[str, list[str]], name: str, change: Callable[[str], str]
) -> None:
    changed = [change(word) for word in words[name]]
    new = list(dict.fromkeys(["", *changed]))
    columns[name], words[name] = (
        np.array([new.index(word) for word in changed], dtype=np.int64)[columns[name]],
        new,
    )


def _without_rate(recipe: str) -> str:
    return _without(recipe, {"lr"})


def _without(text: str, names: set[str]) -> str:
    """A JSON column's object without some names."""
    rest = {name: value for name, value in parameters(text).items() if name not in names}
    return json.dumps(rest, sort_keys=True) if rest else ""


def _strings(columns: Mapping[str, Array], words: Mapping[str, Sequence[str]], name: str) -> Array:
    return np.array(words[name], dtype=object)[columns[name]]


def join(a: Table, b: Table) -> Table:
    columns, words = {}, {}
    for name, column in a.columns.items():
        other = b.columns[name]
        if name in a.words:
            words[name] = list(dict.fromkeys([*a.words[name], *b.words[name]]))
            place = {word: i for i, word in enumerate(words[name])}
            other = np.array([place[word] for word in b.words[name]], dtype=np.int64)[other]
            column = np.array([place[word] for word in a.words[name]], dtype=np.int64)[column]
        columns[name] = np.concatenate([column, other])
    return Table(columns, words)


# ---- which rows count ----


def _one_attempt(table: Table, notes: list[str]) -> Table:
    """Of several attempts at a key the one that counts: an outcome before a mishap, then our own before merged ones; of our own one that
    succeeded, or the last; of merged ones the one that was there first. Other numbers under one key are said."""
    key = _identity(table)
    if len(set(key)) == len(key):
        return table
    state, attempt, own = (
        table.columns["state"],
        np.nan_to_num(table.columns["attempt"]),
        table.columns["trust"] == 0,
    )
    ok, diverged = (
        state == table.code("state", "ok"),
        table.columns["reason"] == table.code("reason", "diverged"),
    )
    outcome = ok | diverged
    best: dict[str, int] = {}
    merit = list(zip(outcome, own, ok & own, np.where(own, attempt, -attempt), strict=True))
    for i, k in enumerate(key):
        if k and (k not in best or merit[i] > merit[best[k]]):
            best[k] = i
    chosen = np.array([best.get(k, i) for i, k in enumerate(key)], dtype=np.int64)
    score, effect = table.columns["packed"], table.columns["effect"]
    tolerance = np.where(
        np.isfinite(effect), effect, 10.0 ** -np.nan_to_num(table.columns["digits"], nan=3.0)
    )
    same = (np.abs(score - score[chosen]) <= tolerance) | (
        np.isnan(score) & np.isnan(score[chosen])
    )
    if other := sorted(set(key[outcome & outcome[chosen] & ~same])):
        notes.append(
            f"conflict: {count(len(other), 'run')} with another attempt of other numbers: qbench show {other[0][:12]}"
        )
    return table.take(chosen == np.arange(len(key)))


def _identity(table: Table) -> Array:
    """The key; of trials at one point, which are one run and count each, the trial's number too."""
    key = table.columns["key"]
    if not any(table.words["stage"]):
        return key
    places = zip(
        key, table.columns["stage"], table.columns["rung"], table.columns["trial"], strict=True
    )
    return np.array(
        [f"{k} {stage} {rung:g} {trial:g}" if k else "" for k, stage, rung, trial in places],
        dtype=object,
    )


def _current(table: Table, notes: list[str]) -> Table:
    """The newest version of the board and of each task and method; older ones are left out, and that is said."""
    for version, of in (
        ("board_version", ""),
        ("task_version", "task"),
        ("method_version", "method"),
    ):
        number = np.nan_to_num(table.columns[version])
        group = table.columns[of] if of else np.zeros(len(table), dtype=np.int64)
        names = table.words[of] if of else ["board"]
        newest = np.zeros(len(names))
        np.maximum.at(newest, group, number)
        old = number < newest[group]
        if old.any():
            which = sorted(
                {(names[g], int(n)) for g, n in zip(group[old], number[old], strict=True)}
            )
            listed = ", ".join(f"{name} version {n}" for name, n in which)
            notes.append(f"left out: {count(int(old.sum()), 'run')} of older versions: {listed}")
            table = table.take(~old)
    return table


# ---- tuned boards ----


def _alike(table: Table) -> Table:
    """Rows of a tuned board without what its cells chose, so that they meet in one section and trials stand with the entrant that they are of."""
    columns, words = dict(table.columns), dict(table.words)
    chosen = [set(parameters(text)) for text in words["chosen"]]
    everyone = set().union(*chosen)
    of = [set[str]() for _ in words["method"]]
    for method, values in {
        *zip(columns["method"].tolist(), columns["chosen"].tolist(), strict=True)
    }:
        of[method] |= chosen[values]
    # A rung's run has a share of the steps; its cell has the budget of the section.
    columns["steps"] = np.where(np.isnan(columns["budget"]), columns["steps"], columns["budget"])
    _rewrite(columns, words, "recipe", lambda text: _without(text, {*everyone, "steps"}))
    pair, first = _pairs(columns["method"], columns["params"], len(words["params"]))
    method, params = (
        columns["method"][first],
        _strings({"params": columns["params"][first]}, words, "params"),
    )
    stripped = [_without(text, of[m]) for m, text in zip(method, params, strict=True)]
    words["params"] = list(dict.fromkeys(["", *stripped]))
    columns["params"] = np.array(
        [words["params"].index(text) for text in stripped], dtype=np.int64
    )[pair]
    return Table(columns, words)


# ---- who is who ----


def _pairs(a: Array, b: Array, count: int) -> tuple[Array, Array]:
    """A number for each pair that occurs, and where it first does."""
    _, first, codes = np.unique(a * max(count, 1) + b, return_index=True, return_inverse=True)
    return codes.astype(np.int64), first


def _number(table: Table, names: Sequence[str]) -> tuple[Array, list[dict[str, Any]]]:
    """A number for each distinct combination of some columns, and the combinations."""
    code, first = np.zeros(len(table), dtype=np.int64), np.zeros(min(len(table), 1), dtype=np.int64)
    for name in names:
        column = table.columns[name]
        part = column if name in table.words else np.unique(column, return_inverse=True)[1]
        if len(part) and part.min() != part.max():
            code, first = _pairs(code, part, int(part.max()) + 1)
    rows = {name: table.columns[name][first] for name in names}
    return code, [
        {n: table.words[n][v[i]] if n in table.words else float(v[i]) for n, v in rows.items()}
        for i in range(len(first))
    ]


def _places(order: Sequence[int], count: int) -> Array:
    """Where each of `count` numbers stands in an order; −1 for one that does not."""
    place = np.full(count, -1, dtype=np.int64)
    place[list(order)] = np.arange(len(order))
    return place


def _sorted(rows: dict[str, Array]) -> dict[str, Array]:
    place = np.zeros(len(rows["key"]), dtype=np.int64)
    for name in ("section", "entrant", "column", "lr", "seed"):
        values = np.nan_to_num(rows[name], nan=-1.0)
        part = (
            np.unique(values, return_inverse=True)[1]
            if values.dtype.kind == "f"
            else values - values.min(initial=0)
        )
        place = place * (int(part.max(initial=0)) + 1) + part
    order = np.argsort(place, kind="stable")
    if (place[order][1:] == place[order][:-1]).any():  # twins: by key
        order = np.lexsort([np.unique(rows["key"].astype(str), return_inverse=True)[1], place])
    return {name: column[order] for name, column in rows.items()}


def _entrants(
    pairs: Sequence[Mapping[str, str]], table: Table, code: Array, full: Array, defaults: Defaults
) -> list[Entrant]:
    count = len(pairs)
    reference = np.bincount(code[full], minlength=count) > 0
    version = np.zeros(count)
    np.maximum.at(version, code, np.nan_to_num(table.columns["method_version"], nan=1.0))
    flagged = (
        np.bincount(
            code[table.columns["provenance"] == table.code("provenance", "reconstructed")],
            minlength=count,
        )
        > 0
    )
    values = [parameters(pair["params"]) for pair in pairs]
    given = _given_labels(table, code, count)
    found = []
    for i, (pair, own) in enumerate(zip(pairs, values, strict=True)):
        method = pair["method"]
        peers = [v for p, v in zip(pairs, values, strict=True) if p["method"] == method]
        other = unusual(own, defaults.get(method), peers)
        label = given[i] or (f"{method} ({spell(other)})" if other else method)
        plain = not other if method in defaults else label == method
        found.append(
            Entrant(
                method,
                pair["params"],
                label,
                int(version[i]),
                bool(flagged[i]),
                bool(reference[i]),
                plain,
            )
        )
    return found


def unusual(
    own: Mapping[str, Any], usual: Mapping[str, Any] | None, peers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The parameters that are not at their defaults; where nobody told those, the ones that tell `own` from its peers."""
    if usual is not None:
        return {k: v for k, v in own.items() if k not in usual or usual[k] != v}
    return {k: v for k, v in own.items() if any(k not in peer or peer[k] != v for peer in peers)}


def _given_labels(table: Table, code: Array, count: int) -> list[str]:
    """The label that a sweep file gave to each entrant, the first by the alphabet where there are several; '' for none."""
    words, found = table.words["label"], [""] * count
    _, first = _pairs(code, table.columns["label"], len(words))
    for i, label in sorted(
        ((int(code[f]), words[table.columns["label"][f]]) for f in first), reverse=True
    ):
        found[i] = label or found[i]
    return found


def _digits(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found.group()) if found else 0


def _format_order(f: Mapping[str, Any]) -> tuple[Any, ...]:
    """By bits of the weights, then of the activations (none first), then by granularity, channel first."""
    w, g, a = f["weights_format"], f["weights_granularity"], f["act_format"]
    return (
        _digits(w),
        not w.startswith("int"),
        w,
        bool(a),
        _digits(a),
        a,
        g != "channel",
        _digits(g),
        g,
        f["act_granularity"],
    )


def _section_order(s: Mapping[str, Any]) -> tuple[Any, ...]:
    size = SIZES.index(s["size"]) if s["size"] in SIZES else len(SIZES)
    budget = (-1.0 if np.isnan(s[name]) else s[name] for name in ("steps", "batch"))
    return (
        s["task"],
        s["task_params"],
        size,
        s["size"],
        s["start"],
        *budget,
        s["recipe"],
        s["data"],
    )
