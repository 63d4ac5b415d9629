"""Imports that the fork server makes once, so that no worker has to make them again.

The fork server imports this module before it forks the first worker. torch's first optimizer
imports torch's compiler, which takes 0.9 s. The commit takes two git processes, and like the hashes
of the source of methods and tasks it belongs to the code that was loaded here: a file that is
edited during a sweep must not change what later workers report.
"""

from __future__ import annotations

import importlib
import os
from contextlib import suppress

from qbench.engines.worker_process import PRELOAD

# A plugin that cannot be imported is not an error here: the planner reports it.
for name in ("torch", "torch._dynamo", *os.environ.get(PRELOAD, "").split(",")):
    with suppress(Exception):
        importlib.import_module(name)

with suppress(Exception):
    from qbench.plugins.source_hash import remember_sources
    from qbench.runs.environment import collect_environment

    # What these two compute is cached, and a forked worker inherits the caches.
    collect_environment()
    remember_sources(os.environ.get(PRELOAD, "").split(","))
