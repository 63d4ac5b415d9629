"""Every built-in task is pure, repeatable and learnable, and stacked runs equal single runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from qbench_tasks.digits import Digits
from qbench_tasks.grammar import Grammar
from qbench_tasks.linreg import LinReg
from qbench_tasks.text import Text
from qbench_tasks.twolayer import TwoLayer
from torch import Tensor, nn

from qbench.api.batch import Batch, Split
from qbench.api.problem import Problem
from qbench.api.task import Task
from qbench.runs.config import Recipe

CPU = torch.device("cpu")
TASKS: dict[str, Task] = {
    "linreg": LinReg(),
    "linreg rotated": LinReg(rotated=True, alpha=1.5),
    "linreg sampled": LinReg(exact=False, noise=0.1, start=0.5),
    "twolayer": TwoLayer(),
    "twolayer sampled": TwoLayer(exact=False, rotated=True),
    "digits mlp": Digits(),
    "digits cnn": Digits(model="cnn"),
    "grammar": Grammar(),
    "text": Text(),
}


@pytest.fixture(params=TASKS, ids=lambda name: name.replace(" ", "-"))
def task(request: Any) -> Task:
    return TASKS[request.param]


def make_problem(task: Task, seed: int = 0, batch: int = 4) -> Problem:
    return task.problem("xs", seed, batch, CPU)


def are_equal(a: Batch, b: Batch) -> bool:
    pairs = ((a.inputs, b.inputs), (a.targets, b.targets))
    return a.count == b.count and all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x is y
        for x, y in pairs
    )


def copy_state(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def train(problem: Problem, recipe: Recipe, steps: int) -> list[float]:
    """Train in a plain loop in full precision and return the losses."""
    optimizer, losses = (
        torch.optim.AdamW(problem.model.parameters(), lr=recipe.lr, weight_decay=0.0),
        [],
    )
    for index in range(steps):
        batch = problem.batch(index)
        loss = problem.loss(problem.model(batch.inputs), batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_the_description_is_complete(task: Task) -> None:
    assert task.title and task.fingerprint() and task.check() is None
    assert {"floor", "better"} <= vars(task.metric).keys()
    for size, meaning in task.sizes.items():
        recipe = task.recipe(size)
        assert meaning and recipe.find_problem() is None
    assert task.fingerprint() == task.fingerprint()


def test_start_and_data_come_from_task_and_seed(task: Task) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, other = make_problem(task), make_problem(task), make_problem(task, seed=1)
    assert all(map(torch.equal, copy_state(a.model), copy_state(b.model)))
    for index in (0, 3, -1, -2):
        assert are_equal(a.batch(index), b.batch(index))
    a.loss(a.model(a.batch(0).inputs), a.batch(0))
    assert torch.equal(before, torch.get_rng_state()), "no task uses the global generator"
    if a.batch(0).inputs is not None:
        assert not are_equal(a.batch(0), other.batch(0))
        assert not all(map(torch.equal, copy_state(a.model), copy_state(other.model)))


def test_a_batch_is_a_function_of_its_index(task: Task) -> None:
    a, b = make_problem(task), make_problem(task)
    ahead = [a.batch(i) for i in range(40)]
    for index in (39, 0, 17):
        assert are_equal(ahead[index], b.batch(index))
    if ahead[0].inputs is not None:
        outside = [b.batch(-1 - i) for i in range(3)]
        assert not any(
            are_equal(o, other) for o in outside for other in (*ahead, *outside) if o is not other
        )
        assert len(ahead[0].inputs) == ahead[0].count == 4


def test_a_stacked_batch_holds_each_seeds_own_batch(task: Task) -> None:
    """This covers batches outside the order and those that cross an epoch's end."""
    problems = [make_problem(task, seed, batch=48) for seed in (3, 1, 3)]
    for index in (0, 20, -1):  # twenty times 48 and one batch more is past a thousand images
        sampled = [problem.sample_indices(index) for problem in problems]
        indices = [rows for rows in sampled if rows is not None]
        if indices:
            together = problems[0].load(torch.stack(indices))
            assert all(
                are_equal(together.row(place), problem.batch(index))
                for place, problem in enumerate(problems)
            )
    assert bool(indices) == (task.name in ("digits", "grammar", "text"))


def test_a_problem_without_batches_names_the_missing_methods() -> None:
    class Unfinished(Problem):
        def batches(self, split: Split) -> list[Batch]:
            return []

        def loss(self, output: Any, batch: Batch) -> Tensor:
            return torch.zeros(())

    with pytest.raises(
        NotImplementedError, match="Unfinished has neither batch nor sample_indices and load"
    ):
        Unfinished().batch(0)
    with pytest.raises(NotImplementedError, match="Unfinished has sample_indices and no load"):
        Unfinished().load(torch.zeros(1))


def test_splits_are_fixed_and_scored_alike(task: Task) -> None:
    a, b = make_problem(task), make_problem(task, seed=1)
    for split in ("val", "test"):
        batches = list(a.batches(split))
        assert batches and all(map(are_equal, batches, a.batches(split)))
        if batches[0].inputs is not None:
            assert all(map(are_equal, batches, b.batches(split))), "the same for every seed"
        with torch.no_grad():
            scores = a.score(a.model, split)
        assert next(iter(scores)) == task.metric.name and all(
            isinstance(value, float) for value in scores.values()
        )


def test_layers_are_modules_of_the_model_by_name(task: Task) -> None:
    problem = make_problem(task)
    layers = problem.layers()
    assert layers and all(
        problem.model.get_submodule(name) is layer for name, layer in layers.items()
    )
    assert {f"{name}.weight" for name in layers} <= problem.model.state_dict().keys()
    assert problem.model.state_dict().keys() == dict(problem.model.named_parameters()).keys(), (
        "no data travels in the state"
    )


def test_planning_lists_layers_without_memory(task: Task) -> None:
    problem = task.problem("xs", 0, 1, torch.device("meta"))
    assert all(tensor.is_meta for tensor in problem.model.parameters())
    assert (problem.batch(0).inputs is None) == (make_problem(task).batch(0).inputs is None)
    shapes = {name: layer.matrix().shape for name, layer in problem.layers().items()}
    assert shapes == {
        name: layer.matrix().shape for name, layer in make_problem(task).layers().items()
    }


def test_a_plain_loop_learns(task: Task) -> None:
    recipe = task.recipe("xs")
    problem = make_problem(task, batch=recipe.batch)
    losses = train(problem, recipe, 60)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def stack_models(models: list[nn.Module]) -> nn.Module:
    """Return one model whose parameters have an axis of runs in front."""
    one = copy.deepcopy(models[0])
    for name, parameter in one.named_parameters():
        parameter.data = torch.stack([model.get_parameter(name).data for model in models])
    return one


def test_stacked_runs_equal_single_runs(task: Task) -> None:
    problem, models = make_problem(task), [make_problem(task, seed).model for seed in range(3)]
    for model in models:  # the weights of linreg start at zero
        with torch.no_grad():
            for index, parameter in enumerate(model.parameters()):
                parameter.add_(
                    0.1
                    * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
                )
    batches = [problem.batch(index) for index in range(3)]
    inputs = (
        None
        if batches[0].inputs is None
        else torch.stack([b.inputs for b in batches if b.inputs is not None])
    )
    targets = (
        None
        if batches[0].targets is None
        else torch.stack([b.targets for b in batches if b.targets is not None])
    )
    together, batch = stack_models(models), Batch(inputs, targets, batches[0].count)

    losses = problem.loss(together(inputs), batch)
    assert losses.shape == (3,)
    losses.sum().backward()
    for index, (model, single) in enumerate(zip(models, batches, strict=True)):
        loss = problem.loss(model(single.inputs), single)
        assert loss.shape == ()
        loss.backward()
        torch.testing.assert_close(losses[index], loss, rtol=1e-5, atol=1e-6)
        for name, parameter in model.named_parameters():
            gradient = together.get_parameter(name).grad
            assert gradient is not None and parameter.grad is not None
            torch.testing.assert_close(gradient[index], parameter.grad, rtol=1e-3, atol=1e-5)


def test_stacked_runs_may_share_targets(task: Task) -> None:
    problem = make_problem(task)
    batch, together = (
        problem.batch(0),
        stack_models([make_problem(task, seed).model for seed in range(3)]),
    )
    inputs = None if batch.inputs is None else batch.inputs.expand(3, *batch.inputs.shape)
    assert problem.loss(together(inputs), batch).shape == (3,)


def test_micro_batches_add_up_to_the_whole_batch(task: Task) -> None:
    problem = make_problem(task)
    batch = problem.batch(0)
    parts = batch.split(2)
    with torch.no_grad():
        whole = problem.loss(problem.model(batch.inputs), batch)
        mean = sum(problem.loss(problem.model(p.inputs), p) * p.count for p in parts) / batch.count
    torch.testing.assert_close(whole, mean, rtol=1e-5, atol=1e-6)
