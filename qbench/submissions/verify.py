"""`qbench verify`: what of a bundle is believed, one line a check.

Everything that can be decided from the bundle alone is decided first (`zipped`, `bundle`, `checks`, `artefact`). Then, for methods, tasks and
versions that are known here, each artefact is put into its network and evaluated (`bench`), in a process of its own with limits, and must come to
the score that is claimed. `rerun` trains runs again. What is then believed of a run:

    claimed      its files agree with one another; the score is somebody's word
    verified     its artefact came along, the decoder counts in it what the result says, and it comes to the claimed score here
    reproduced   it was trained again here and came to the same, or to less than the task's minimum effect from it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qbench.submissions import boards, checks
from qbench.submissions.bundle import Bundle, opened
from qbench.submissions.refused import Refused
from qbench.text import count, plain, size

Verdict = Literal["ok", "note", "FAILED"]
Level = Literal["claimed", "verified", "reproduced"]
LEVELS: tuple[Level, ...] = ("claimed", "verified", "reproduced")
"""From the least to the most."""
MOST_FAILURES = 20
"""Told of each check."""


@dataclass(frozen=True)
class Finding:
    check: str
    verdict: Verdict
    detail: str

    def __str__(self) -> str:
        return f"{self.verdict:<6} {self.check:<10} {plain(self.detail, 400)}"


@dataclass
class Report:
    """What verification has found, and what is believed of each run, by key."""

    runs: int = 0
    files: int = 0
    findings: list[Finding] = field(default_factory=list)
    trust: dict[str, Level] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failures()

    def failures(self) -> list[str]:
        return [finding.detail for finding in self.findings if finding.verdict == "FAILED"]

    def add(self, check: str, detail: str, failures: list[str] | None = None, verdict: Verdict = "ok") -> None:
        """A line for each failure, or one that says how it went."""
        if failures:
            self.findings += [Finding(check, "FAILED", sentence) for sentence in failures[:MOST_FAILURES]]
            if len(failures) > MOST_FAILURES:
                self.findings.append(Finding(check, "FAILED", f"and {len(failures) - MOST_FAILURES} more"))
        else:
            self.findings.append(Finding(check, verdict, detail))

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "runs": self.runs, "findings": [vars(f) for f in self.findings], "trust": self.trust}


def verify(
    path: Path, *, score: bool = True, rerun: int | None = 0, device: str = "auto", say: Callable[[str], None] = lambda _: None
) -> Report:
    """All checks of a bundle. `rerun` so many of its runs, drawn by chance; None: all of them."""
    report = Report()
    try:
        with opened(path) as bundle:
            examine(bundle, report, score=score, rerun=rerun, device=device, say=say)
    except Refused as error:
        report.add("archive", "", [str(error)])
    return report


def examine(
    bundle: Bundle,
    report: Report,
    *,
    score: bool = True,
    rerun: int | None = 0,
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Look at every run of an open bundle; the report is filled in as it goes."""
    from qbench.submissions import bench

    report.runs, report.files = len(bundle.runs), len(bundle.archive.members)
    made = bundle.manifest["made"]
    who = f" by {plain(made['by'], 60)}" if made["by"] else ""
    report.add("archive", f"{report.files} stored files, {size(bundle.archive.size)}")
    report.add("manifest", f"{count(report.runs, 'run')}, made{who} with qbench {plain(made['qbench'], 20)}; every file has its hash")
    failures: dict[str, list[str]] = {}
    if bundle.boards:
        for board in bundle.boards:
            try:
                boards.checked(bundle.read_board(board), board)
            except Refused as error:
                failures.setdefault("boards", []).append(str(error))
        report.add("boards", f"with the sweep file of {', '.join(bundle.boards)}", failures.get("boards"))
    artefacts, known = 0, bench.Known()
    for run in bundle.runs:
        record, problems = checks.load(bundle, run)
        for check, sentence in problems:
            failures.setdefault(check, []).append(sentence)
        report.trust[run.key] = "claimed"
        artefacts += bool(record and record.facts)
        if record and not problems:
            known.look(record)
    report.add("schema", "specifications, environments, results and curves are of the known shape, and finite", failures.get("schema"))
    report.add("keys", "every key is the hash of its configuration, and every file belongs to it", failures.get("keys"))
    report.add("results", "states, reasons, budgets and times fit together", failures.get("results"))
    report.add("scores", "every score is a number or says why not", failures.get("scores"))
    report.add("audits", "every verdict is that of its checks", failures.get("audits"))
    report.add("curves", "every curve goes forward to the end of its budget", failures.get("curves"))
    told = f"{artefacts} of {count(report.runs, 'run')} with theirs; bytes, bits, levels and parameters are as the results say"
    report.add("artefacts", told, failures.get("artefacts"))
    known.tell(report)
    if score and report.passed:
        bench.evaluate(bundle, report, known.runs, say)
    if rerun != 0 and report.passed:
        bench.train_again(bundle, report, known.runs, rerun, device, say)
