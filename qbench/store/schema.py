"""The tables of the store, as numbered migrations. A migration is never edited once a release has it; a change is a new one.

`runs` has a row for each finished attempt, `curves` one for each point of its curve and `downstream` one for each downstream task that it has
answered; these come from run folders. `boards`, `cells` and `entries` say which runs a board asks for; they come from `boards/*.json`. A number is NULL unless it is finite; `kinds` says what it was.
"""

from __future__ import annotations

from typing import NamedTuple

MIGRATIONS = (
    """
    CREATE TABLE runs (
        key VARCHAR NOT NULL, attempt INTEGER NOT NULL, state VARCHAR NOT NULL, reason VARCHAR, message VARCHAR,
        started VARCHAR, finished VARCHAR,
        board_version INTEGER, method VARCHAR, method_version INTEGER, params VARCHAR,
        task VARCHAR, task_version INTEGER, task_params VARCHAR, size VARCHAR, data VARCHAR,
        weights_format VARCHAR, weights_granularity VARCHAR, act_format VARCHAR, act_granularity VARCHAR,
        start VARCHAR, base VARCHAR, seed BIGINT, lr DOUBLE, steps BIGINT, batch BIGINT, recipe VARCHAR,
        metric VARCHAR, unit VARCHAR, better VARCHAR, floor DOUBLE, worst DOUBLE, digits INTEGER, effect DOUBLE,
        packed DOUBLE, validation DOUBLE, simulated DOUBLE, latent DOUBLE, rr_mean DOUBLE, rr_std DOUBLE, rr_count INTEGER,
        kinds VARCHAR, metrics VARCHAR, final_loss DOUBLE,
        build_s DOUBLE, train_s DOUBLE, eval_s DOUBLE, wall_s DOUBLE,
        step_s_median DOUBLE, step_s_q25 DOUBLE, step_s_q75 DOUBLE, peak_memory_bytes BIGINT,
        samples_per_s DOUBLE, tokens_per_s DOUBLE, peak_share DOUBLE,
        parameters BIGINT, quantized_parameters BIGINT, bits_per_weight DOUBLE, artefact_bytes BIGINT, levels BIGINT,
        audit_passed BOOLEAN, audit_failures VARCHAR, artefact_sha256 VARCHAR,
        qbench VARCHAR, torch VARCHAR, commit_id VARCHAR, dirty BOOLEAN, python VARCHAR, platform VARCHAR, cpu VARCHAR,
        device VARCHAR, device_name VARCHAR, threads INTEGER,
        PRIMARY KEY (key, attempt)
    );
    CREATE TABLE curves (
        key VARCHAR NOT NULL, attempt INTEGER NOT NULL, step BIGINT NOT NULL, progress DOUBLE, loss DOUBLE, lr DOUBLE, grad_norm DOUBLE,
        val DOUBLE, seconds DOUBLE, more VARCHAR
    );
    CREATE TABLE boards (board VARCHAR PRIMARY KEY, version INTEGER NOT NULL, title VARCHAR, made VARCHAR, sweep VARCHAR, defaults VARCHAR);
    CREATE TABLE cells (
        board VARCHAR NOT NULL, cell INTEGER NOT NULL, label VARCHAR, variant VARCHAR, provenance VARCHAR, refusal VARCHAR,
        board_version INTEGER, method VARCHAR, method_version INTEGER, params VARCHAR,
        task VARCHAR, task_version INTEGER, task_params VARCHAR, size VARCHAR, data VARCHAR,
        weights_format VARCHAR, weights_granularity VARCHAR, act_format VARCHAR, act_granularity VARCHAR,
        start VARCHAR, lr DOUBLE, steps BIGINT, batch BIGINT, recipe VARCHAR,
        PRIMARY KEY (board, cell)
    );
    CREATE TABLE entries (board VARCHAR NOT NULL, cell INTEGER NOT NULL, seed BIGINT NOT NULL, key VARCHAR);
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
        key VARCHAR NOT NULL, attempt INTEGER NOT NULL, task VARCHAR NOT NULL, sha256 VARCHAR NOT NULL, items BIGINT, metric VARCHAR,
        value DOUBLE, stderr DOUBLE, better VARCHAR, chance DOUBLE, ceiling DOUBLE
    )
    """,
    "ALTER TABLE runs DROP COLUMN worst",
    "ALTER TABLE runs ADD COLUMN company INTEGER",
)
ANSWERS_SINCE = 6
"""The first version that holds answers: what was answered before is taken in when a store comes to it."""


class Column(NamedTuple):
    """A column and where in the files of an attempt its value is found."""

    name: str
    kind: type
    path: tuple[str, ...]


def _columns(kind: type, file: str, section: str, *names: str) -> list[Column]:
    return [Column(name, kind, (file, *filter(None, (section,)), name)) for name in names]


IDENTITY = (
    *_columns(int, "spec", "", "board_version"),
    *_columns(str, "spec", "", "method"),
    *_columns(int, "spec", "", "method_version"),
    Column("params", dict, ("spec", "method_params")),
    *_columns(str, "spec", "", "task"),
    *_columns(int, "spec", "", "task_version"),
    *_columns(dict, "spec", "", "task_params"),
    *_columns(str, "spec", "", "size", "data"),
    Column("weights_format", str, ("spec", "weights", "format")),
    Column("weights_granularity", str, ("spec", "weights", "granularity")),
    Column("act_format", str, ("spec", "activations", "format")),
    Column("act_granularity", str, ("spec", "activations", "granularity")),
    *_columns(str, "spec", "", "start"),
    *_columns(float, "spec", "recipe", "lr"),
    *_columns(int, "spec", "recipe", "steps", "batch"),
    *_columns(dict, "spec", "", "recipe"),
)
"""What a run and a cell have in common."""

RUN = (
    *_columns(str, "result", "", "state", "reason", "message", "started", "finished"),
    *IDENTITY,
    *_columns(str, "spec", "", "base"),
    *_columns(int, "spec", "", "seed"),
    Column("metric", str, ("result", "metric", "name")),
    *_columns(str, "result", "metric", "unit", "better"),
    *_columns(float, "result", "metric", "floor"),
    *_columns(int, "result", "metric", "digits"),
    *_columns(float, "result", "metric", "effect"),
    *_columns(
        float,
        "result",
        "scores",
        "packed",
        "validation",
        "simulated",
        "latent",
        "rr_mean",
        "rr_std",
    ),
    *_columns(int, "result", "scores", "rr_count"),
    *_columns(dict, "result", "", "kinds", "metrics"),
    *_columns(float, "result", "train", "final_loss"),
    *_columns(
        float,
        "result",
        "cost",
        "build_s",
        "train_s",
        "eval_s",
        "wall_s",
        "step_s_median",
        "step_s_q25",
        "step_s_q75",
    ),
    *_columns(int, "result", "cost", "peak_memory_bytes", "company"),
    *_columns(float, "result", "cost", "samples_per_s", "tokens_per_s", "peak_share"),
    *_columns(int, "result", "size", "parameters", "quantized_parameters"),
    *_columns(float, "result", "size", "bits_per_weight"),
    *_columns(int, "result", "size", "artefact_bytes", "levels"),
    Column("audit_passed", bool, ("result", "audit", "passed")),
    *_columns(str, "result", "", "artefact_sha256"),
    *_columns(str, "env", "", "qbench", "torch"),
    Column("commit_id", str, ("env", "commit")),
    *_columns(bool, "env", "", "dirty"),
    *_columns(str, "env", "", "python", "platform", "cpu", "device", "device_name"),
    *_columns(int, "env", "", "threads"),
    Column("trust", str, ("trust", "level")),
)
ANSWER = (
    *_columns(str, "task", "", "sha256"),
    *_columns(int, "task", "", "items"),
    *_columns(str, "task", "", "metric"),
    *_columns(float, "number", "", "value", "stderr"),
    *_columns(str, "number", "", "better"),
    *_columns(float, "task", "", "chance", "ceiling"),
)
"""Of a task in downstream.json, and of its first metric there."""
CURVE = ("step", "progress", "loss", "lr", "grad_norm", "val", "seconds")
