"""The tables of the store, as numbered migrations.

A migration is never changed once a release contains it: a change of the tables is a new migration.

`runs` has a row for each finished attempt, `curves` one for each point of its curve, `downstream`
one for each downstream task that it has answered; these come from run folders. `boards`, `cells`
and `entries` say which runs a board asks for; these come from `boards/*.json`. A number that is not
finite is stored as NULL, and `kinds` says what it was.
"""

from __future__ import annotations

from typing import NamedTuple

MIGRATIONS = (
    """
    CREATE TABLE runs (
        key VARCHAR NOT NULL, attempt INTEGER NOT NULL,
        state VARCHAR NOT NULL, reason VARCHAR, message VARCHAR,
        started VARCHAR, finished VARCHAR,
        board_version INTEGER, method VARCHAR, method_version INTEGER, params VARCHAR,
        task VARCHAR, task_version INTEGER, task_params VARCHAR, size VARCHAR, data VARCHAR,
        weights_format VARCHAR, weights_granularity VARCHAR,
        act_format VARCHAR, act_granularity VARCHAR,
        start VARCHAR, base VARCHAR, seed BIGINT,
        lr DOUBLE, steps BIGINT, batch BIGINT, recipe VARCHAR,
        metric VARCHAR, unit VARCHAR, better VARCHAR,
        floor DOUBLE, worst DOUBLE, digits INTEGER, effect DOUBLE,
        packed DOUBLE, validation DOUBLE, simulated DOUBLE, latent DOUBLE,
        rr_mean DOUBLE, rr_std DOUBLE, rr_count INTEGER,
        kinds VARCHAR, metrics VARCHAR, final_loss DOUBLE,
        build_s DOUBLE, train_s DOUBLE, eval_s DOUBLE, wall_s DOUBLE,
        step_s_median DOUBLE, step_s_q25 DOUBLE, step_s_q75 DOUBLE, peak_memory_bytes BIGINT,
        samples_per_s DOUBLE, tokens_per_s DOUBLE, peak_share DOUBLE,
        parameters BIGINT, quantized_parameters BIGINT, bits_per_weight DOUBLE,
        artefact_bytes BIGINT, levels BIGINT,
        audit_passed BOOLEAN, audit_failures VARCHAR, artefact_sha256 VARCHAR,
        qbench VARCHAR, torch VARCHAR, commit_id VARCHAR, dirty BOOLEAN,
        python VARCHAR, platform VARCHAR, cpu VARCHAR,
        device VARCHAR, device_name VARCHAR, threads INTEGER,
        PRIMARY KEY (key, attempt)
    );
    CREATE TABLE curves (
        key VARCHAR NOT NULL, attempt INTEGER NOT NULL, step BIGINT NOT NULL,
        progress DOUBLE, loss DOUBLE, lr DOUBLE, grad_norm DOUBLE,
        val DOUBLE, seconds DOUBLE, more VARCHAR
    );
    CREATE TABLE boards (
        board VARCHAR PRIMARY KEY, version INTEGER NOT NULL, title VARCHAR, made VARCHAR,
        sweep VARCHAR, defaults VARCHAR
    );
    CREATE TABLE cells (
        board VARCHAR NOT NULL, cell INTEGER NOT NULL,
        label VARCHAR, variant VARCHAR, provenance VARCHAR, refusal VARCHAR,
        board_version INTEGER, method VARCHAR, method_version INTEGER, params VARCHAR,
        task VARCHAR, task_version INTEGER, task_params VARCHAR, size VARCHAR, data VARCHAR,
        weights_format VARCHAR, weights_granularity VARCHAR,
        act_format VARCHAR, act_granularity VARCHAR,
        start VARCHAR, lr DOUBLE, steps BIGINT, batch BIGINT, recipe VARCHAR,
        PRIMARY KEY (board, cell)
    );
    CREATE TABLE entries (
        board VARCHAR NOT NULL, cell INTEGER NOT NULL, seed BIGINT NOT NULL, key VARCHAR
    );
    """,
    "ALTER TABLE boards ADD COLUMN track VARCHAR DEFAULT 'fair'",
    """
    ALTER TABLE boards ADD COLUMN tuning VARCHAR;
    ALTER TABLE cells ADD COLUMN stage VARCHAR;
    ALTER TABLE cells ADD COLUMN rung INTEGER;
    ALTER TABLE cells ADD COLUMN trial INTEGER;
    ALTER TABLE cells ADD COLUMN chosen VARCHAR;
    ALTER TABLE cells ADD COLUMN failure VARCHAR;
    """,
    "ALTER TABLE runs ADD COLUMN trust VARCHAR",
    "ALTER TABLE cells ADD COLUMN retired VARCHAR",
    """
    CREATE TABLE downstream (
        key VARCHAR NOT NULL, attempt INTEGER NOT NULL, task VARCHAR NOT NULL,
        sha256 VARCHAR NOT NULL, items BIGINT, metric VARCHAR,
        value DOUBLE, stderr DOUBLE, better VARCHAR, chance DOUBLE, ceiling DOUBLE
    )
    """,
    "ALTER TABLE runs DROP COLUMN worst",
    "ALTER TABLE runs ADD COLUMN company INTEGER",
)
FIRST_VERSION_WITH_ANSWERS = 6
"""The first version with the table `downstream`. A store that is migrated to it ingests the answers
that runs already have."""


class StoreColumn(NamedTuple):
    """A column, its type, and the path of its value in the files of an attempt."""

    name: str
    kind: type
    path: tuple[str, ...]


def _make_columns(kind: type, file: str, section: str, *names: str) -> list[StoreColumn]:
    """Return columns that are called like the keys that hold their values."""
    return [StoreColumn(name, kind, (file, *filter(None, (section,)), name)) for name in names]


SHARED_COLUMNS = (
    *_make_columns(int, "spec", "", "board_version"),
    *_make_columns(str, "spec", "", "method"),
    *_make_columns(int, "spec", "", "method_version"),
    StoreColumn("params", dict, ("spec", "method_params")),
    *_make_columns(str, "spec", "", "task"),
    *_make_columns(int, "spec", "", "task_version"),
    *_make_columns(dict, "spec", "", "task_params"),
    *_make_columns(str, "spec", "", "size", "data"),
    StoreColumn("weights_format", str, ("spec", "weights", "format")),
    StoreColumn("weights_granularity", str, ("spec", "weights", "granularity")),
    StoreColumn("act_format", str, ("spec", "activations", "format")),
    StoreColumn("act_granularity", str, ("spec", "activations", "granularity")),
    *_make_columns(str, "spec", "", "start"),
    *_make_columns(float, "spec", "recipe", "lr"),
    *_make_columns(int, "spec", "recipe", "steps", "batch"),
    *_make_columns(dict, "spec", "", "recipe"),
)
"""The columns of both runs and cells."""

RUN_COLUMNS = (
    *_make_columns(str, "result", "", "state", "reason", "message", "started", "finished"),
    *SHARED_COLUMNS,
    *_make_columns(str, "spec", "", "base"),
    *_make_columns(int, "spec", "", "seed"),
    StoreColumn("metric", str, ("result", "metric", "name")),
    *_make_columns(str, "result", "metric", "unit", "better"),
    *_make_columns(float, "result", "metric", "floor"),
    *_make_columns(int, "result", "metric", "digits"),
    *_make_columns(float, "result", "metric", "effect"),
    *_make_columns(float, "result", "scores", "packed", "validation", "simulated", "latent"),
    *_make_columns(float, "result", "scores", "rr_mean", "rr_std"),
    *_make_columns(int, "result", "scores", "rr_count"),
    *_make_columns(dict, "result", "", "kinds", "metrics"),
    *_make_columns(float, "result", "train", "final_loss"),
    *_make_columns(float, "result", "cost", "build_s", "train_s", "eval_s", "wall_s"),
    *_make_columns(float, "result", "cost", "step_s_median", "step_s_q25", "step_s_q75"),
    *_make_columns(int, "result", "cost", "peak_memory_bytes", "company"),
    *_make_columns(float, "result", "cost", "samples_per_s", "tokens_per_s", "peak_share"),
    *_make_columns(int, "result", "size", "parameters", "quantized_parameters"),
    *_make_columns(float, "result", "size", "bits_per_weight"),
    *_make_columns(int, "result", "size", "artefact_bytes", "levels"),
    StoreColumn("audit_passed", bool, ("result", "audit", "passed")),
    *_make_columns(str, "result", "", "artefact_sha256"),
    *_make_columns(str, "env", "", "qbench", "torch"),
    StoreColumn("commit_id", str, ("env", "commit")),
    *_make_columns(bool, "env", "", "dirty"),
    *_make_columns(str, "env", "", "python", "platform", "cpu", "device", "device_name"),
    *_make_columns(int, "env", "", "threads"),
    StoreColumn("trust", str, ("trust", "level")),
)
"""The columns of `runs`, except those that `make_run_row` adds."""
ANSWER_COLUMNS = (
    *_make_columns(str, "task", "", "sha256"),
    *_make_columns(int, "task", "", "items"),
    *_make_columns(str, "task", "", "metric"),
    *_make_columns(float, "number", "", "value", "stderr"),
    *_make_columns(str, "number", "", "better"),
    *_make_columns(float, "task", "", "chance", "ceiling"),
)
"""The columns of an answer: a task in downstream.json, and its main metric there."""
CURVE_COLUMNS = ("step", "progress", "loss", "lr", "grad_norm", "val", "seconds")
