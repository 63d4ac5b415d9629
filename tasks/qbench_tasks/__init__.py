"""The built-in tasks, one file each. For qbench they are plugins like any other."""

from __future__ import annotations
