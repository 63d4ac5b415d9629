"""The cost of the harness as Markdown tables: `make bench`.

One part is measured with, for example, `make bench ARGS=store`. The parts are:

start       `qbench --help` against an import of click alone, and `qbench show`
harness     the quick board end to end, and the harness's own share of it
steps       a quantized training step against full precision and other libraries
methods     each method's training against full precision
groups      stacked runs against single runs
store       a store of a hundred thousand runs
publish     the site of ten thousand runs, and a page of a thousand cells in a browser
text        the task `text`: a step against plain PyTorch, loading, and tokenising
statistics  intervals, tests, ranks and bootstraps of a large board
engines     what a run costs on each engine: local and Ray
scale       planning 10⁶ runs and keeping 10⁵
downstream  an evaluation against the bare forward passes of its tokens
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module

PARTS = (
    "start",
    "harness",
    "steps",
    "methods",
    "groups",
    "store",
    "publish",
    "text",
    "statistics",
    "engines",
    "scale",
    "downstream",
)


def main(words: list[str]) -> int:
    if wrong := [word for word in words if word not in PARTS]:
        print(f"unknown part {wrong[0]!r}; known: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    from qbench.engines.worker_process import WORKER_ENVIRONMENT
    from qbench.runs.environment import collect_environment

    if lacking := {
        name: value for name, value in WORKER_ENVIRONMENT.items() if name not in os.environ
    }:
        # Restart with a worker's environment: memory that a step frees is kept for the next one.
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.bench", *words], {**os.environ, **lacking}
        )
    env = collect_environment()
    code = env["commit"] and f"commit {env['commit'][:12]}{' with changes' if env['dirty'] else ''}"
    print(
        f"{time.strftime('%Y-%m-%d')}, {env['cpu']}, {env['cores']} cores, Python {env['python']}, torch {env['torch']}, {code or 'no commit'}\n"
    )
    for part in words or PARTS:
        lines: Callable[..., Iterator[str]] = import_module(f"tests.bench.{part}").table
        print(f"### {part}\n")
        for line in lines():
            print(line, flush=True)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
