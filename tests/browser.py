"""A real browser for tests of pages: the machine's Chromium, without a window.

Without a Chromium the tests that need it are skipped. With QBENCH_BROWSER=required, which `.ci/run`
sets, they fail.
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
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def find_chromium() -> str | None:
    """Return the path of a Chromium, or None."""
    if path := os.environ.get("QBENCH_CHROMIUM"):
        return path
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def require_browser() -> None:
    """Skip the test if there is no browser, or fail it if there must be one."""
    if find_chromium() is None:
        message = (
            "no Chromium on this machine: install one (apt-get install chromium), "
            "or name one in QBENCH_CHROMIUM"
        )
        if os.environ.get("QBENCH_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Start a browser that is closed at the end of the block."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    assert path, "no Chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class WatchedPage:
    """A page with everything that it has logged, thrown or requested."""

    page: Page
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def is_quiet(self) -> bool:
        """Return whether the page has logged nothing and requested nothing but itself."""
        others = [url for url in self.requests[1:] if not url.startswith("data:")]
        return not self.messages and not others


def open_page(browser: Browser, address: str | Path, **context: Any) -> WatchedPage:
    """Open an address in a fresh context and watch the page from its first byte."""
    page = browser.new_context(**context).new_page()
    watched = WatchedPage(page)
    messages = watched.messages
    page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: messages.append(f"error: {error}"))
    page.on(
        "dialog", lambda dialog: (messages.append(f"dialog: {dialog.message}"), dialog.dismiss())
    )
    page.on("request", lambda request: watched.requests.append(request.url))
    page.goto(f"file://{address}" if isinstance(address, Path) else address)
    return watched
