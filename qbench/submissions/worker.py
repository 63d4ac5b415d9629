"""The process that evaluates submitted artefacts, or trains submitted runs again.

It reads a line of JSON for each question and writes a line of JSON with the answer; it shares
nothing else with the process that started it. A specification may ask for a network of any size,
so a process that evaluates limits its own memory, and its parent limits its time. Training has no
such limits, because the user asked for it. If the process dies, only the run that it worked on has
no answer.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

EXTRA_MEMORY_BYTES = 4 << 30
"""How much address space an evaluation may use in addition to that of the loaded libraries."""
DATA_FAILURE = "failed: data: "
"""How the outcome of a run begins whose data could not be loaded."""


def main() -> None:
    import torch

    # A task may print. File descriptor 1 therefore becomes stderr, and the answers go to a copy of
    # the original stdout, so that they are the only thing in that pipe.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    train = sys.argv[1:] == ["train"]
    if not train:
        torch.set_num_threads(1)
        # After the import of torch, because the limit is relative to what is in use already.
        limit_memory()
    for line in sys.stdin:
        question = json.loads(line)
        answer = answer_training(question) if train else answer_evaluation(question)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def limit_memory() -> None:
    """Limit the address space of this process, where the system says how much it uses."""
    statm = Path("/proc/self/statm")  # Linux only; elsewhere the time limit must do
    if not statm.exists():
        return
    used_pages = int(statm.read_text().split()[0])
    if not used_pages:
        return
    limit = used_pages * resource.getpagesize() + EXTRA_MEMORY_BYTES
    # An unprivileged process cannot exceed its hard limit, so that one stays as it is.
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def answer_evaluation(question: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluation of an artefact, or an error.

    The error says whether it is a misfit: whether the artefact does not fit its network.
    """
    try:
        return evaluate_artefact(question["spec"], Path(question["artefact"]))
    except MemoryError as error:
        return {"error": f"out of memory: {error}", "misfit": False}
    except Exception as error:  # noqa: BLE001 - a task may raise anything
        first_line = str(error).strip().partition("\n")[0]
        message = f"{type(error).__name__}: {first_line}"[:300]
        # PyTorch names `state_dict` in the error when names or shapes do not match.
        return {"error": message, "misfit": "state_dict" in first_line}


def answer_training(question: dict[str, Any]) -> dict[str, Any]:
    """Return what training a run again gives, or why it cannot be trained here.

    Such a reason does not speak against the run. One reason is that its data is not on this
    machine, because nothing is downloaded for a submission.
    """
    from qbench.checks.reproduce import reproduce_run
    from qbench.errors import QbenchError

    try:
        outcome = reproduce_run(Path(question["results"]), question["key"], question["device"])
    except QbenchError as error:
        return {"error": str(error)}
    recorded, found = outcome.recorded, outcome.found
    if found.startswith(DATA_FAILURE) and not recorded.startswith(DATA_FAILURE):
        reason = found.removeprefix(DATA_FAILURE)
        return {"error": f"{reason}; nothing is downloaded for a submission"}
    return {"verdict": outcome.verdict, "recorded": recorded, "found": found}


def evaluate_artefact(spec: dict[str, Any], artefact: Path) -> dict[str, Any]:
    """Return an artefact's test score in its network, its parameters and its quantized sites."""
    import torch

    from qbench.artefact.pack import load_into_model
    from qbench.runs.config import RunConfig
    from qbench.training.setup import list_sites, open_problem
    from qbench.util.json_files import replace_non_finite

    config = RunConfig.from_json(spec)
    # On the CPU: its scores differ less between machines than those of accelerators.
    task, problem = open_problem(config, torch.device("cpu"))
    if task.fingerprint() != config.data:
        return {"error": f"task {config.task} has other data here", "misfit": False}
    # The sites and parameters of the network as the task builds it, before the artefact is loaded.
    parameters = sum(parameter.numel() for parameter in problem.model.parameters())
    sites = [
        {
            "name": site.name,
            "role": site.role,
            "format": site.format,
            "granularity": site.granularity,
            "shape": list(site.shape),
        }
        for site in list_sites(problem, config)
    ]
    with torch.no_grad():
        load_into_model(artefact, problem.model)
        problem.model.eval()
        score = problem.score(problem.model, "test")[task.metric.name]
    values, kinds = replace_non_finite({"packed": score})
    return {**values, "kind": kinds.get("packed"), "parameters": parameters, "sites": sites}


if __name__ == "__main__":
    main()
