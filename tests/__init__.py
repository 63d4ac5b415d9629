"""The tests of qbench: one file a module, plus conformance, layering, packaging and golden results."""

from __future__ import annotations

import os

SOAK = bool(os.environ.get("QBENCH_SOAK"))
"""Whether everything is tried, however long it takes: `make soak`."""
