"""A few finished runs to evaluate: language models that were trained for seconds.

One of them has quantized inputs, and one run is no language model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from qbench.api.problem import Problem
from qbench.artefact.pack import ARTEFACT, load_into_model
from qbench.engines.dispatch import run_one
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.attempts import create_attempt
from qbench.runs.config import RunConfig
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.plan import make_plan
from qbench.training.setup import open_problem

SWEEP = """
board = "language"
methods = ["fp", "rtn"]
formats = { weights = ["int4"], activations = ["none", "int8"] }
[[task]]
name = "grammar"
recipe = { steps = 80 }
[[task]]
name = "digits"
formats = ["int4"]
recipe = { steps = 4 }
"""


@dataclass(frozen=True)
class LanguageRuns:
    """The results folder, and the keys of its runs: full precision, formats, no language model."""

    results: Path
    fp: str
    int4: str
    int4_int8: str
    digits: str

    def folder(self, key: str) -> Path:
        return self.results / "runs" / key[:2] / key / "1"


@pytest.fixture(scope="session")
def language_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageRuns]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results, keys = tmp_path_factory.mktemp("language"), {}
    folders: dict[str, Path] = {}
    for key, run in make_plan(parse_sweep(SWEEP, "language.toml")).runs.items():
        if name := field_of_run(run.config):
            folders[key] = create_attempt(results, key).folder
            base = folders[run.base] if run.base else None
            assignment = Assignment(run.config, folders[key], base=base)
            assert run_one(assignment, Execution(device="cpu"))["state"] == "ok"
            keys[name] = key
    yield LanguageRuns(results, **keys)
    torch.set_num_threads(threads)


def field_of_run(config: RunConfig) -> str:
    """Return the field of `LanguageRuns` for a run; empty if it is not needed."""
    if config.task == "digits":
        return "digits" if config.method == "fp" else ""
    return "_".join(q.format for q in (config.weights, config.activations) if q) or config.method


def load_problem(runs: LanguageRuns, key: str) -> Problem:
    """Return a run's problem with the weights of its artefact."""
    spec = json.loads((runs.folder(key) / "spec.json").read_text())
    problem = open_problem(RunConfig.from_json(spec), torch.device("cpu"))[1]
    load_into_model(runs.folder(key) / "export" / ARTEFACT, problem.model)
    problem.model.eval()
    return problem


class CountingModel(nn.Module):
    """A network that counts its forward passes and the tokens in them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.passes, self.tokens = network, 0, 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        self.tokens += tokens.numel()
        return self.network(tokens)  # type: ignore[no-any-return]
