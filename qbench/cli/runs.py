"""Finished runs: made again."""

from __future__ import annotations

from pathlib import Path

import click

from qbench.cli.options import cli, json_option, print_json, results_option


@cli.command()
@click.argument("what")
@click.option("--board", help="The board whose cell is meant, where several have one of the name.")
@click.option("--seeds", type=click.IntRange(min=1), help="So many runs of a cell; all by default.")
@results_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@json_option
def reproduce(
    what: str, board: str | None, seeds: int | None, results: Path, device: str, as_json: bool
) -> int:
    """Train a run or a cell again from its record and compare; exit code 5 if it comes to something else.

    WHAT is a run's key, or the beginning of one, or a cell as sweeps call it: "ste int4 grammar/xs".
    """
    from qbench.checks.reproduce import reproduce_runs
    from qbench.submissions.merge import mark_reproduced

    found = []
    for one in reproduce_runs(results, what, device, board, seeds):
        found.append(one)
        mark_reproduced(results, one.key, one.verdict)
        if not as_json:
            click.echo(str(one))
    verdicts = [one.verdict for one in found]
    if as_json:
        print_json([vars(one) for one in found])
    elif len(found) > 1:
        counts = (f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        click.echo(f"{what}: {len(found)} runs: {', '.join(counts)}")
    return 5 if "different" in verdicts else 0


@cli.command("eval")
@click.argument("run")
@click.option(
    "--tasks",
    required=True,
    help="Names, separated by commas: a task's own, files or folders of lm-eval's, or names that lm-eval knows.",
)
@results_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--force", is_flag=True, help="Ask again what is answered already.")
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
def evaluate(
    run: str, tasks: str, results: Path, device: str, force: bool, quiet: bool, as_json: bool
) -> int:
    """Ask the artefact of RUN downstream tasks and keep every answer. RUN is a key, the beginning of one, or a folder of transformers'."""
    from qbench.downstream.evaluate import evaluate_folder, evaluate_run
    from qbench.downstream.hf_folder import is_transformers_folder
    from qbench.runs.downstream_answers import format_answers

    names = [name.strip() for name in tasks.split(",") if name.strip()]

    def report(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    if is_transformers_folder(Path(run)):
        found = evaluate_folder(Path(run), names, device, force, report)
    else:
        found = evaluate_run(results, run, names, device, force, report)
    print_json(found) if as_json else click.echo(format_answers(found))
    return 0


@cli.command("export")
@click.argument("run")
@click.option(
    "--to",
    type=click.Choice(("packed", "hf")),
    default="packed",
    show_default=True,
    help="The artefact with a decoder of its own, or a folder for Hugging Face's transformers.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder that is new or empty.",
)
@results_option
@json_option
def export(run: str, to: str, out: Path, results: Path, as_json: bool) -> int:
    """Write the artefact of RUN into a folder, for others to use. RUN is a key, or the beginning of one."""
    from qbench.artefact.export_folder import export_run

    files = export_run(results, run, to, out)
    print_json([str(file) for file in files]) if as_json else click.echo("\n".join(map(str, files)))
    return 0
