"""`qbench verify`: how far a bundle can be trusted, with one line for each check.

First comes everything that the bundle alone can decide (`bundle`, `file_checks`, `artefact_facts`).
Then, for methods, tasks and versions that are installed here, each artefact is loaded into its
network and evaluated (`reevaluate`), in a separate process with limits, and must reach the claimed
score. On request some runs are trained again. Each run then has one of these levels of trust:

    claimed      its files agree with one another, but nobody here has confirmed the score
    verified     the bundle has its artefact, the decoder counts in it what the result says, and it
                 reaches the claimed score here
    reproduced   it was trained again here and reached the same score, or one that differs by less
                 than the task's minimum effect
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.submissions import file_checks, sweep_files
from qbench.submissions.bundle import Bundle, open_bundle
from qbench.submissions.report import VerificationReport
from qbench.submissions.strict_json import SubmissionError
from qbench.util.text import clean_line, format_bytes, format_count

if TYPE_CHECKING:
    from qbench.submissions.reevaluate import KnownRuns

FILE_CHECKS = {
    "schema": "the JSON files have the expected shape, and all numbers are finite",
    "keys": "every key is the hash of its configuration, and every file belongs to its key",
    "results": "states, reasons, budgets and times fit together",
    "scores": "every score is a number, or the result says why not",
    "audits": "the verdict of every audit follows from its checks",
    "curves": "every curve goes forward to the end of its budget",
}
"""What the report says of each check of the runs' files that passes."""


def verify_bundle(
    path: Path,
    *,
    score: bool = True,
    rerun: int | None = 0,
    device: str = "auto",
    on_progress: Callable[[str], None] = lambda _: None,
) -> VerificationReport:
    """Return the report of all checks of a bundle.

    Args:
        path: The bundle's file.
        score: Whether to evaluate the artefacts.
        rerun: How many randomly chosen runs to train again; None means all of them.
        device: Where to train them.
        on_progress: Is called with a line of text after each evaluation and before each training.
    """
    report = VerificationReport()
    try:
        with open_bundle(path) as bundle:
            verify_open_bundle(
                bundle, report, score=score, rerun=rerun, device=device, on_progress=on_progress
            )
    except SubmissionError as error:
        report.add_check("archive", "", [str(error)])
    return report


def verify_open_bundle(
    bundle: Bundle,
    report: VerificationReport,
    *,
    score: bool = True,
    rerun: int | None = 0,
    device: str = "auto",
    on_progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Check an open bundle and add the results to the report; see `verify_bundle`."""
    from qbench.submissions import reevaluate

    report.runs, report.files = len(bundle.runs), len(bundle.archive.members)
    _report_manifest(bundle, report)
    _check_boards(bundle, report)
    known = _check_runs(bundle, report)
    known.add_to_report(report)
    # A bundle that contradicts itself is neither evaluated nor trained again.
    if score and report.passed:
        reevaluate.evaluate_artefacts(bundle, report, known.runs, on_progress)
    if rerun != 0 and report.passed:
        reevaluate.retrain_runs(bundle, report, known.runs, rerun, device, on_progress)


def _report_manifest(bundle: Bundle, report: VerificationReport) -> None:
    """Add the two checks that passed when the bundle was opened."""
    origin = bundle.manifest["made"]
    version = clean_line(origin["qbench"], 20)
    author = f" by {clean_line(origin['by'], 60)}" if origin["by"] else ""
    report.add_check("archive", f"{report.files} stored files, {format_bytes(bundle.archive.size)}")
    report.add_check(
        "manifest",
        f"{format_count(report.runs, 'run')}, made{author} with qbench {version}; "
        "every file has its hash",
    )


def _check_boards(bundle: Bundle, report: VerificationReport) -> None:
    failures = []
    for board in bundle.boards:
        try:
            sweep_files.decode_sweep_file(bundle.read_board(board), board)
        except SubmissionError as error:
            failures.append(str(error))
    if bundle.boards:
        detail = f"with the sweep file of {', '.join(bundle.boards)}"
        report.add_check("boards", detail, failures)


def _check_runs(bundle: Bundle, report: VerificationReport) -> KnownRuns:
    """Check the files of every run; return those runs that could be evaluated here."""
    from qbench.submissions import reevaluate

    failures: dict[str, list[str]] = defaultdict(list)
    artefacts, known = 0, reevaluate.KnownRuns()
    for entry in bundle.runs:
        run, problems = file_checks.check_run_files(bundle, entry)
        for check, problem in problems:
            failures[check].append(problem)
        report.trust[entry.key] = "claimed"
        artefacts += bool(run and run.facts)
        if run and not problems:
            known.add_run(run)
    for check, detail in FILE_CHECKS.items():
        report.add_check(check, detail, failures[check])
    report.add_check(
        "artefacts",
        f"{artefacts} of {format_count(report.runs, 'run')} with an artefact; "
        "bytes, bits, levels and parameters are as the results say",
        failures["artefacts"],
    )
    return known
