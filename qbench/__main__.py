"""`python -m qbench` is `qbench`."""

from __future__ import annotations

from qbench.cli import main

main()
