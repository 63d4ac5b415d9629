"""Imported by the fork server before it forks the first worker: whatever every worker would otherwise do again.

torch's first optimizer imports its compiler (0.9 s); asking git for the commit takes two processes, and the answer belongs to the
code that was loaded here, as do the hashes of the source of methods and tasks. A plugin that cannot be imported is the planner's to report.
"""

from __future__ import annotations

import importlib
import os
from contextlib import suppress

from qbench.engines.worker_process import PRELOAD

for name in ("torch", "torch._dynamo", *os.environ.get(PRELOAD, "").split(",")):
    with suppress(Exception):
        importlib.import_module(name)

with suppress(Exception):
    from qbench.plugins.source_hash import remember
    from qbench.runs.environment import collect_environment

    collect_environment()
    remember(os.environ.get(PRELOAD, "").split(","))
