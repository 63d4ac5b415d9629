"""The tests of qbench.

There is one file per module, plus conformance, layering, packaging and golden results.
"""

from __future__ import annotations

import os

SOAK = bool(os.environ.get("QBENCH_SOAK"))
"""Whether the tests run at length, as `make soak` does."""
