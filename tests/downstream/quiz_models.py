"""Models with known answers, and downstream tasks to ask them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qbench_tasks import grammar_items
from qbench_tasks.grammar import GrammarTokenizer
from qbench_tasks.grammar_rules import VOCAB, next_logprobs
from torch import Tensor, nn

from qbench.api.language_model import Quiz
from qbench.downstream import lm_eval_tasks
from qbench.downstream.lm_eval_evaluation import evaluate_task

QUIZZES = grammar_items.make_quizzes()
TASK_FILE = """
task: pets
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "the {{noun}} {{prep}} lupi"
doc_to_choice: "{{answers}}"
doc_to_target: "{{right}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 3}
"""


class PerfectModel(nn.Module):
    """A model that knows the grammar: its logits are the grammar's log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        # The device of a model is that of its first parameter.
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        rows = [[next_logprobs(row[: n + 1]) for n in range(len(row))] for row in tokens.tolist()]
        return torch.from_numpy(np.array(rows)).clamp(min=-50).float()


class UniformModel(PerfectModel):
    """A model that finds all tokens equally likely."""

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, len(VOCAB))


def ask_items(items: Sequence[Any], model: nn.Module) -> tuple[dict[str, Any], list[Any]]:
    """Ask a model a quiz of these items, and return the summary and the lines."""
    quiz = Quiz("Mine", lambda: items)
    tasks = lm_eval_tasks.load_tasks(["mine"], {"mine": quiz})
    return evaluate_task(tasks[0], model, GrammarTokenizer(64))


def write_task_file(folder: Path, nouns: Sequence[str] = ("gatta", "orsi", "cervo")) -> Path:
    """Write a task file of lm-eval's format and its data, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = ["nata soon", "nati soon", "nato soon"]
    documents = [
        {"noun": noun, "prep": "near", "answers": answers, "right": n % 3}
        for n, noun in enumerate(nouns)
    ]
    (folder / "pets.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (folder / "pets.yaml").write_text(TASK_FILE % (folder / "pets.jsonl"))
    return folder / "pets.yaml"


@pytest.fixture(autouse=True)
def own_dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the data sets of a test out of the user's cache, and apart from other tests."""
    monkeypatch.setattr(lm_eval_tasks.datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
