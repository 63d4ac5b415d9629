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
from pathlib import Path

from qbench.submissions import file_checks, sweep_files
from qbench.submissions.bundle import Bundle, opened
from qbench.submissions.report import Report
from qbench.submissions.strict_json import Refused
from qbench.util.text import count, plain, size


def verify(
    path: Path,
    *,
    score: bool = True,
    rerun: int | None = 0,
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
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
    from qbench.submissions import reevaluate

    report.runs, report.files = len(bundle.runs), len(bundle.archive.members)
    made = bundle.manifest["made"]
    who = f" by {plain(made['by'], 60)}" if made["by"] else ""
    report.add("archive", f"{report.files} stored files, {size(bundle.archive.size)}")
    report.add(
        "manifest",
        f"{count(report.runs, 'run')}, made{who} with qbench {plain(made['qbench'], 20)}; every file has its hash",
    )
    failures: dict[str, list[str]] = {}
    if bundle.boards:
        for board in bundle.boards:
            try:
                sweep_files.checked(bundle.read_board(board), board)
            except Refused as error:
                failures.setdefault("boards", []).append(str(error))
        report.add(
            "boards", f"with the sweep file of {', '.join(bundle.boards)}", failures.get("boards")
        )
    artefacts, known = 0, reevaluate.Known()
    for run in bundle.runs:
        record, problems = file_checks.load(bundle, run)
        for check, sentence in problems:
            failures.setdefault(check, []).append(sentence)
        report.trust[run.key] = "claimed"
        artefacts += bool(record and record.facts)
        if record and not problems:
            known.look(record)
    report.add(
        "schema",
        "specifications, environments, results and curves are of the known shape, and finite",
        failures.get("schema"),
    )
    report.add(
        "keys",
        "every key is the hash of its configuration, and every file belongs to it",
        failures.get("keys"),
    )
    report.add(
        "results", "states, reasons, budgets and times fit together", failures.get("results")
    )
    report.add("scores", "every score is a number or says why not", failures.get("scores"))
    report.add("audits", "every verdict is that of its checks", failures.get("audits"))
    report.add(
        "curves", "every curve goes forward to the end of its budget", failures.get("curves")
    )
    told = f"{artefacts} of {count(report.runs, 'run')} with theirs; bytes, bits, levels and parameters are as the results say"
    report.add("artefacts", told, failures.get("artefacts"))
    known.tell(report)
    if score and report.passed:
        reevaluate.evaluate(bundle, report, known.runs, say)
    if rerun != 0 and report.passed:
        reevaluate.train_again(bundle, report, known.runs, rerun, device, say)
