"""The process that puts submitted artefacts into networks, or trains submitted runs again: a line of JSON in, a line of JSON out, nothing else
shared with whoever started it.

A specification may ask for a network of any size, so a process that evaluates limits its own memory, and its parent its time; whoever asks for
training has asked for what that takes. If the process dies, only the run that it was at goes without an answer.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

ROOM = 4 << 30
"""Bytes of address space beyond what the libraries take."""
NO_DATA = "failed: data: "


def main() -> None:
    import torch

    # Whatever a task prints goes to stderr; the answers have stdout for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    train = sys.argv[1:] == ["train"]
    if not train:
        torch.set_num_threads(1)
        limit_memory()
    for line in sys.stdin:
        question = json.loads(line)
        answers.write(json.dumps(train_again(question) if train else answer(question)) + "\n")
        answers.flush()


def limit_memory() -> None:
    pages = (
        int(Path("/proc/self/statm").read_text().split()[0])
        if Path("/proc/self/statm").exists()
        else 0
    )
    if pages:
        most = pages * resource.getpagesize() + ROOM
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(
            resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
        )


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The score of an artefact in its network, the network's parameters and the sites that the board quantizes; or what went wrong."""
    try:
        return evaluate(question["spec"], Path(question["artefact"]))
    except MemoryError as error:
        return {"error": f"out of memory: {error}", "misfit": False}
    except Exception as error:  # noqa: BLE001 - a task's, whatever it is
        first = str(error).strip().partition("\n")[0]
        return {"error": f"{type(error).__name__}: {first}"[:300], "misfit": "state_dict" in first}


def train_again(question: dict[str, Any]) -> dict[str, Any]:
    """How a run comes out here; or why it cannot be trained, which says nothing against it. Data that is not here and must not be fetched is such
    a reason."""
    from qbench.checks.reproduce import reproduce
    from qbench.errors import QbenchError

    try:
        found = reproduce(Path(question["results"]), question["key"], question["device"])
    except QbenchError as error:
        return {"error": str(error)}
    if found.found.startswith(NO_DATA) and not found.recorded.startswith(NO_DATA):
        return {
            "error": f"{found.found.removeprefix(NO_DATA)}; nothing is fetched for a submission"
        }
    return vars(found)


def evaluate(spec: dict[str, Any], artefact: Path) -> dict[str, Any]:
    import torch

    from qbench.artefact.pack import restore
    from qbench.runs.config import RunConfig
    from qbench.training.setup import open_problem, sites
    from qbench.util.json_files import finite

    config = RunConfig.from_json(spec)
    task, problem = open_problem(config, torch.device("cpu"))
    if task.fingerprint() != config.data:
        return {"error": f"task {config.task} has other data here", "misfit": False}
    parameters = sum(p.numel() for p in problem.model.parameters())
    listed = [
        {
            "name": s.name,
            "role": s.role,
            "format": s.format,
            "granularity": s.granularity,
            "shape": list(s.shape),
        }
        for s in sites(problem, config)
    ]
    with torch.no_grad():
        restore(artefact, problem.model)
        problem.model.eval()
        score = problem.score(problem.model, "test")[task.metric.name]
    values, kinds = finite({"packed": score})
    return {**values, "kind": kinds.get("packed"), "parameters": parameters, "sites": listed}


if __name__ == "__main__":
    main()
