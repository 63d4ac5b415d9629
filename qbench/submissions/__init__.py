"""Submissions: finished runs in a file that travels, read as hostile data. `bundle` says what is in one, `verify` what is believed of it."""

from __future__ import annotations
