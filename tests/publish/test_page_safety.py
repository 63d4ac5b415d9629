"""The page in a real browser runs nothing but its own script, and loads nothing."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.browser import open_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_hostile_names_do_nothing(open_site: Any) -> None:
    page = open_site("hostile")
    for link in page.locator("td a").all()[:24]:
        link.click()
        page.get_by_role("dialog").wait_for()
        page.keyboard.press("Escape")
    page.get_by_label("Search").fill("<img")
    script = """[
        document.images.length,
        document.querySelectorAll('script').length,
        document.querySelectorAll('svg svg').length,
    ]"""
    assert page.evaluate(script) == [0, 2, 0]


def test_the_policy_stops_markup_and_scripts_that_are_added(
    chromium: Browser, sites: dict[str, Path]
) -> None:
    """If a name became markup in spite of all care, it still could not act."""
    watched = open_page(chromium, sites["ranked"])
    page = watched.page
    page.evaluate(
        """() => document.body.insertAdjacentHTML('beforeend',
            '<img src=x onerror="window.hit = 1"><p style="color:red">x</p>')"""
    )
    page.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = 'window.hit = 2';
            document.body.append(script);
        }"""
    )
    page.evaluate("fetch('https://example.org/').catch(() => 0)")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit") is None
    violations = [line for line in watched.messages if "Content Security Policy" in line]
    assert len(violations) >= 4
    assert not [url for url in watched.requests if url.startswith("http")]


def test_a_server_is_asked_for_one_file(chromium: Browser, sites: dict[str, Path]) -> None:
    paths: list[str] = []

    class RecordingHandler(SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            paths.append(self.path)

    handler = functools.partial(RecordingHandler, directory=str(sites["ranked"].parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        watched = open_page(chromium, f"http://127.0.0.1:{server.server_port}/index.html")
        watched.page.wait_for_timeout(300)
        server.shutdown()
    assert paths == ["/index.html"] and not watched.messages
