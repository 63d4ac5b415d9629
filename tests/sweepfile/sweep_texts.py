"""Sweep files for tests, with the methods and the task of `tests.stage`."""

from __future__ import annotations

from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.cells import Plan
from qbench.sweeps.plan import make_plan

SMALL = """
board = "small"
methods = ["plain", "after"]
tasks = ["stage"]
formats = ["int2", "int4"]
seeds = 2
"""
RICH = """
board = "rich"
version = 3
title = "Everything that can be said"
seeds = [4, 1]
start = "plain:0.5"
methods = ["after"]
[formats]
weights = ["int1", "int4"]
granularity = ["channel", "block-32"]
[recipe]
steps = 10
lr = [0.01, 0.1]
[[task]]
name = "stage"
sizes = "all"
tilt = [1, 2]
recipe = { batch = 4, lr = 0.5 }
[[task]]
name = "stage"
tilt = 3
formats = "int8"
[[method]]
name = "actor"
role = ["good", "nan"]
[[method]]
name = "actor"
label = "Fast actor"
lr = [1.0, 2.0]
steps_seen = [1, 2]
"""
PUBLISHED = (
    SMALL + 'track = "as-published"\n[[method]]\nname = "actor"\npreset = "debut"\nrole = "quiet"\n'
)


def plan_text(text: str) -> Plan:
    """Return the plan of a sweep file that is called s.toml."""
    return make_plan(parse_sweep(text, "s.toml"))
