"""Commands for finished runs: reproduce, evaluate downstream, and export."""

from __future__ import annotations

from pathlib import Path

import click

from qbench.cli.options import cli, device_option, json_option, print_json, results_option


@cli.command()
@click.argument("what")
@click.option(
    "--board", help="The board whose cell is meant, if several boards have a cell of that name."
)
@click.option(
    "--seeds", type=click.IntRange(min=1), help="How many runs of a cell to train; all by default."
)
@results_option
@device_option
@json_option
def reproduce(
    what: str, board: str | None, seeds: int | None, results: Path, device: str, as_json: bool
) -> int:
    """Train a run or a cell again from its record, and compare.

    WHAT is a run's key, the beginning of one, or a cell as sweeps name it: "ste int4 grammar/xs".
    The exit code is 5 if a result is different.
    """
    from qbench.checks.reproduce import reproduce_runs
    from qbench.submissions.merge import mark_reproduced

    reproductions = []
    for reproduction in reproduce_runs(results, what, device, board, seeds):
        reproductions.append(reproduction)
        # A merged run whose reproduction agrees is believed more from now on.
        mark_reproduced(results, reproduction.key, reproduction.verdict)
        if not as_json:
            click.echo(str(reproduction))
    verdicts = [reproduction.verdict for reproduction in reproductions]
    if as_json:
        print_json([vars(reproduction) for reproduction in reproductions])
    elif len(reproductions) > 1:
        counts = (f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        click.echo(f"{what}: {len(reproductions)} runs: {', '.join(counts)}")
    return 5 if "different" in verdicts else 0


@cli.command("eval")
@click.argument("run")
@click.option(
    "--tasks",
    required=True,
    help="Tasks, separated by commas: a task's own, lm-eval files or folders, or lm-eval names.",
)
@results_option
@device_option
@click.option("--force", is_flag=True, help="Evaluate again what is answered already.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
@json_option
def evaluate(
    run: str, tasks: str, results: Path, device: str, force: bool, quiet: bool, as_json: bool
) -> int:
    """Evaluate the artefact of RUN on downstream tasks, and keep every answer.

    RUN is a key, the beginning of one, or a folder of Hugging Face's transformers.
    """
    from qbench.downstream.evaluate import evaluate_folder, evaluate_run
    from qbench.downstream.hf_folder import is_transformers_folder
    from qbench.runs.downstream_answers import format_answers

    names = [name.strip() for name in tasks.split(",") if name.strip()]

    def print_progress(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    if is_transformers_folder(Path(run)):
        answers = evaluate_folder(Path(run), names, device, force, print_progress)
    else:
        answers = evaluate_run(results, run, names, device, force, print_progress)
    print_json(answers) if as_json else click.echo(format_answers(answers))
    return 0


@cli.command("export")
@click.argument("run")
@click.option(
    "--to",
    type=click.Choice(("packed", "hf")),
    default="packed",
    show_default=True,
    help="The artefact with its own decoder, or a folder for Hugging Face's transformers.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write; it must be new or empty.",
)
@results_option
@json_option
def export(run: str, to: str, out: Path, results: Path, as_json: bool) -> int:
    """Write the artefact of RUN into a folder, for others to use.

    RUN is a key, or the beginning of one.
    """
    from qbench.artefact.export_folder import export_run

    files = export_run(results, run, to, out)
    print_json([str(file) for file in files]) if as_json else click.echo("\n".join(map(str, files)))
    return 0
