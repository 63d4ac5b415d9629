"""What all tests share: one thread for torch, as in the workers (two processes of two threads each would fight over two cores), and no
deadline for a test that draws examples (machines differ)."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("qbench", deadline=None)
settings.load_profile("qbench")
