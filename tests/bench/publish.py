"""What publishing a site costs.

The site of ten thousand runs is timed from the store to the folder. A page of a thousand cells is
timed in a browser until its first sort is done.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from qbench.analysis.results import Results
from qbench.publish import site_folder
from qbench.publish.site import publish_site
from tests.bench.store import make, seconds
from tests.browser import find_chromium, open_page, start_browser
from tests.synthetic_sites import MEANS, make_ranked_runs, make_site_files

SORT = """() => {
    document.querySelector('#s0 thead button').click();
    return [performance.now(), performance.getEntriesByType('navigation')[0].domInteractive, document.querySelectorAll('[id^="cell="]').length];
}"""


def table(runs: int = 10_000, points: int = 100) -> Iterator[str]:
    """Yield the lines of the report."""
    folder = Path(tempfile.mkdtemp(prefix="qbench-publish-"))
    try:
        results = folder / "results"
        make(results, runs, points)
        seconds("qbench", "db", "rebuild", "--results", str(results))
        whole = seconds(
            "qbench", "publish", "large", "--out", str(folder / "site"), "--results", str(results)
        )
        began = time.perf_counter()
        site = publish_site(Results(results), "large", folder / "site")
        inside = time.perf_counter() - began
        yield "| what | measured | target |"
        yield "| --- | --- | --- |"
        yield f"| `qbench publish`, {site.runs:,} runs of {points} points, the process | {whole:.1f} s | 20 s |"
        yield f"| the same, within a process that has imported all | {inside:.1f} s | |"
        yield f"| its index.html | {site.sizes['index.html'] / 1e6:.2f} MB | |"
        yield from _pages(folder)
    finally:
        shutil.rmtree(folder)


def _pages(folder: Path) -> Iterator[str]:
    """Yield the size of a page of about a thousand runs and the time of one of a thousand cells."""
    small = make_site_files(make_ranked_runs(seeds=10, tasks=[f"task{n}" for n in range(7)]))[
        "index.html"
    ]
    yield f"| index.html of 1,050 runs in 105 cells | {len(small) / 1000:.0f} kB | 300 kB |"
    if find_chromium() is None:
        yield "| a page in a browser | no Chromium here | |"
        return
    cells = 1 + 2 * len(MEANS)
    site_folder.write_site_folder(
        make_site_files(
            make_ranked_runs(seeds=10, tasks=[f"task{n:02}" for n in range(-(-1000 // cells))])
        ),
        folder / "thousand",
    )
    with start_browser() as started:
        found = []
        for _ in range(5):
            seen = open_page(
                started, folder / "thousand" / "index.html", viewport={"width": 1280, "height": 900}
            )
            found.append(seen.page.evaluate(SORT))
            seen.page.context.close()
    sorted_at, ready_at, count = (statistics.median(column) for column in zip(*found, strict=True))
    yield f"| navigation to first sort done, {count:.0f} cells, 10 seeds each, median of 5 | {sorted_at:.0f} ms | 500 ms |"
    yield f"| of it until the page is parsed and its script has run | {ready_at:.0f} ms | |"
