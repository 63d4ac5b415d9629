"""The built-in methods, one file each; to qbench they are plugins like anybody's."""

from __future__ import annotations
