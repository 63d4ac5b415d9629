"""What tests of the page read from it in a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 740}


def read_column(page: Page, section: int, column: int) -> list[str]:
    """Return the words of a table's column in the rows that are shown."""
    script = """([section, column]) =>
        [...document.querySelectorAll(`#s${section} table.scores tbody tr`)]
            .filter(row => !row.hidden)
            .map(row => column ? row.cells[column] : row.cells[0].querySelector('bdi'))
            .map(element => element.textContent.trim())
    """
    return list(page.evaluate(script, [section, column]))


def read_ranks(page: Page, section: int) -> dict[str, str]:
    """Return the rank of each entrant that is shown."""
    names, ranks = read_column(page, section, 0), read_column(page, section, 1)
    return dict(zip(names, ranks, strict=True))


def find_head(page: Page, section: int, name: str) -> Locator:
    """Return the button in the head of a table's column."""
    return page.locator(f"#s{section} thead").get_by_role("button", name=name)


def find_filter(page: Page, name: str) -> Locator:
    """Return the button in the filter bar that hides a method or a format."""
    return page.locator("#filters").get_by_role("button", name=name, exact=True)
