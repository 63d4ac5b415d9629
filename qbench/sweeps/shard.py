"""Shard: the part of a sweep that one machine trains, such as `--shard 3/8`, counted from 0.

Shards are disjoint, and together they are the whole sweep. A run belongs to a shard by its key and
not by its place in the plan, so it stays there when the file grows. A run that starts from another
belongs to the shard of that one, so no shard waits for another's network. Only the choice of tuned
values needs the trials of all shards: merge them, and then give the same command again.
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
    """Shard `index` of `count` shards."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that an option such as `3/8` names."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        if not match:
            raise UsageError(f"--shard {text}: write i/n, such as 0/8")
        index, count = int(match[1]), int(match[2])
        if index >= count:
            last = count - 1
            valid = (
                f"0/{count} to {last}/{count}, as in sbatch --array=0-{last}"
                if count
                else "0/1 is the whole sweep"
            )
            raise UsageError(f"--shard {text}: shards are counted from 0: {valid}")
        return cls(index, count)

    def contains(self, plan: Plan, key: str) -> bool:
        """Return whether a run is trained by this shard."""
        # The run at the root of a chain of bases decides for all runs of the chain.
        while (run := plan.runs.get(key)) and run.base:
            key = run.base
        # A key is a hash, so the first half of its digits is a uniform number.
        return int(key[:16], 16) % self.count == self.index


WHOLE_SWEEP = Shard(0, 1)
