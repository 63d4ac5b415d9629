"""A browser and sites for the tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from qbench.publish.site_folder import write_site_folder
from tests.browser import WatchedPage, open_page, require_browser, start_browser
from tests.publish.pages import DESKTOP
from tests.synthetic_sites import (
    make_hostile_runs,
    make_ranked_runs,
    make_site_files,
    make_varied_runs,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A Chromium for all tests of the page."""
    require_browser()
    with start_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The index.html of several sites on the disk, by name."""
    home = tmp_path_factory.mktemp("sites")
    runs = {
        "ranked": make_ranked_runs(),
        "partial": make_partly_failed_runs(),
        "varied": make_varied_runs(),
        "hostile": make_hostile_runs(),
        "retired": make_retired_runs(),
    }
    for name, rows in runs.items():
        write_site_folder(make_site_files(rows), home / name)
    return {name: home / name / "index.html" for name in runs}


@pytest.fixture
def open_site(chromium: Browser, sites: dict[str, Path]) -> Iterator[Callable[..., Page]]:
    """A function that opens a site by name.

    At the end of the test no page may have logged, thrown or requested anything.
    """
    watched_pages: list[WatchedPage] = []

    def open_(name: str, link: str = "", **context: Any) -> Page:
        address = f"file://{sites[name]}{link}"
        watched = open_page(chromium, address, **{"viewport": DESKTOP, **context})
        watched_pages.append(watched)
        if context.get("java_script_enabled", True):
            # The script replaces each noscript element when it has drawn its figures.
            watched.page.wait_for_selector("noscript", state="detached")
        return watched.page

    yield open_
    for watched in watched_pages:
        assert watched.is_quiet(), (watched.messages, watched.requests)
        watched.page.context.close()


def make_partly_failed_runs() -> pd.DataFrame:
    """Return runs where lsq diverged once, under int4."""
    rows = make_ranked_runs()
    lost = (rows["method"] == "lsq") & (rows["weights_format"] == "int4") & (rows["seed"] == 3)
    rows.loc[lost, ["state", "reason", "packed", "validation"]] = ["failed", "diverged", None, None]
    return rows


def make_retired_runs() -> pd.DataFrame:
    """Return runs where the best method has a second version, an older one that was withdrawn."""
    rows = make_ranked_runs()
    own = rows["method"] == "gdnsq"
    current = rows.assign(method_version=rows["method_version"].mask(own, 2))
    keys = [f"{n:032x}" for n in range(int(own.sum()))]
    retired = rows[own].assign(method_version=1, retired="it was wrong", key=keys)
    return pd.concat([current, retired], ignore_index=True)
