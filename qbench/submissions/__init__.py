"""Submissions: finished runs that travel in one zip file, which is read as hostile data.

`bundle` describes the file, `submit` writes it, `verify` checks it and `merge` adds its runs to a
results folder.
"""

from __future__ import annotations
