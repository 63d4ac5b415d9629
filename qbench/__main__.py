"""`python -m qbench` is `qbench`."""

from qbench.cli import main

main()
