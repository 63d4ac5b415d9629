"""The task grammar: the score is what a model loses over the text's own entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qbench_tasks import grammar_text as text
from qbench_tasks.grammar import SHAPES, VOCAB_SIZE, WINDOWS, Grammar, GrammarProblem
from qbench_tasks.grammar_rules import next_logprobs
from torch import Tensor, nn

CPU = torch.device("cpu")


def problem(size: str = "xs", seed: int = 0, batch: int = 4) -> GrammarProblem:
    return Grammar().problem(size, seed, batch, CPU)


class TrueModel(nn.Module):
    """The grammar itself as a model."""

    def forward(self, tokens: Tensor) -> Tensor:
        rows = [[next_logprobs(row[: i + 1]) for i in range(len(row))] for row in tokens.tolist()]
        return torch.from_numpy(np.array(rows))


class UniformModel(nn.Module):
    """A model that finds all words equally likely."""

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, VOCAB_SIZE)


def test_the_grammar_itself_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WINDOWS, "test", 4)
    monkeypatch.setattr("qbench_tasks.grammar.SCORED_AT_ONCE", 2)
    assert problem().score(TrueModel(), "test")["excess"] == pytest.approx(0, abs=1e-6)


def test_a_model_that_knows_nothing_scores_the_vocabulary() -> None:
    scores = problem().score(UniformModel(), "test")
    assert scores["loss"] == pytest.approx(np.log(VOCAB_SIZE), rel=1e-6)
    assert scores["bits"] == pytest.approx(np.log2(VOCAB_SIZE), rel=1e-6)
    _, logp = text.generate_windows(0, 0, WINDOWS["test"], 64, "test")
    assert scores["loss"] - scores["excess"] == pytest.approx(
        -logp[:, 1:].mean(dtype=np.float64), abs=1e-6
    )


def test_batches_are_consecutive_windows() -> None:
    p = problem(seed=5)
    tokens, _ = text.generate_windows(5, 8, 4, 64, "train")
    batch = p.batch(2)
    assert batch.inputs is not None and batch.targets is not None
    assert (
        batch.inputs.tolist() == tokens[:, :-1].tolist()
        and batch.targets.tolist() == tokens[:, 1:].tolist()
    )
    assert p.work.labels == p.work.labels == 4 * 64


def test_scored_windows_are_not_trained_on() -> None:
    p = problem(seed=0, batch=256)

    def windows(batch: object) -> set[tuple[int, ...]]:
        return set(map(tuple, batch.inputs.tolist()))  # type: ignore[attr-defined]

    parts = [
        windows(p.batch(0)),
        windows(p.batch(-1)),
        *(set().union(*map(windows, p.batches(split))) for split in ("val", "test")),
    ]
    assert [len(part) for part in parts] == [256, 256, WINDOWS["val"], WINDOWS["test"]]
    assert len(set().union(*parts)) == sum(map(len, parts))


def test_sizes_have_the_stated_parameters() -> None:
    parameters = {size: shape.parameters for size, shape in SHAPES.items()}
    assert (
        parameters["xs"] < 0.1e6
        and 0.25e6 < parameters["s"] < 0.4e6
        and 0.8e6 < parameters["m"] < 0.95e6
        and 4.5e6 < parameters["l"] < 5.5e6
    )
    for size, shape in SHAPES.items():
        assert (
            Grammar.sizes[size]["parameters"] == shape.parameters
            and Grammar.sizes[size]["width"] == shape.width
        )
        assert {
            layer.weight.shape for layer in problem("xs").layers().values()
        } and shape.width % 32 == shape.mlp % 32 == 0, "blocks fit"


def test_flops_follow_the_batch() -> None:
    assert problem(batch=8).work.flops == 2 * problem(batch=4).work.flops > 0
