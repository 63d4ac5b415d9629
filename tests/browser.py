"""A real browser for tests of pages: the Chromium of the machine, without a window.

Where there is none, tests that need it are skipped with a sentence; with QBENCH_BROWSER=required, as in `.ci/run`, they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def executable() -> str | None:
    return os.environ.get("QBENCH_CHROMIUM") or next(
        (path for name in NAMES if (path := shutil.which(name))), None
    )


@contextmanager
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    path = executable()
    assert path, "no Chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
            ],
        )
        yield started
        started.close()


def needed() -> None:
    """Skips the test where there is no browser, or fails where there must be one."""
    if executable() is None:
        told = "no Chromium on this machine: install one (apt-get install chromium), or name one in QBENCH_CHROMIUM"
        if os.environ.get("QBENCH_BROWSER") == "required":
            pytest.fail(told)
        pytest.skip(told)


@dataclass
class Watched:
    """A page, and everything that it said, asked for or threw."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def quiet(self) -> bool:
        return not self.said and not [url for url in self.asked[1:] if not url.startswith("data:")]


def watch(started: Browser, address: str | Path, **context: Any) -> Watched:
    """A fresh page at an address, listened to from its first byte."""
    page = started.new_context(**context).new_page()
    seen = Watched(page)
    page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.said.append(f"error: {error}"))
    page.on(
        "dialog", lambda dialog: (seen.said.append(f"dialog: {dialog.message}"), dialog.dismiss())
    )
    page.on("request", lambda request: seen.asked.append(request.url))
    page.goto(f"file://{address}" if isinstance(address, Path) else address)
    return seen
