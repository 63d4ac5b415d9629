"""One thread for torch in the tests, as in the workers: two processes of two threads each would fight over two cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
