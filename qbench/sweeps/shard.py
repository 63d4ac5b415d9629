"""A part of a sweep for a machine of its own: `--shard 3/8`, counted from 0. The parts are disjoint and together they are the sweep.

A run belongs to a part by its key, not by its place in the plan, so that it stays there whatever is added to the file. One that goes on from
another belongs where that one does: no part waits for another's network. Only a choice of tuned values has to: it needs all trials,
so after a merge the same command goes on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.errors import UsageError

if TYPE_CHECKING:
    from qbench.sweeps.cells import Plan


@dataclass(frozen=True)
class Shard:
    """The part `index` of `parts`."""

    index: int
    parts: int

    @classmethod
    def read(cls, words: str) -> Shard:
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", words, re.ASCII)
        if not found:
            raise UsageError(f"--shard {words}: write i/n, such as 0/8")
        index, parts = int(found[1]), int(found[2])
        if index >= parts:
            many = (
                f"0/{parts} to {parts - 1}/{parts}, as in sbatch --array=0-{parts - 1}"
                if parts
                else "0/1 is the whole"
            )
            raise UsageError(f"--shard {words}: parts are counted from 0: {many}")
        return cls(index, parts)

    def has(self, plan: Plan, key: str) -> bool:
        """By the first half of the key of the run that its chain of bases begins with."""
        while (run := plan.runs.get(key)) and run.base:
            key = run.base
        return int(key[:16], 16) % self.parts == self.index


WHOLE = Shard(0, 1)
