"""The loss of a probe can be differentiated twice with respect to the quantized tensors."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qbench.api.problem import Problem
from qbench.checks.method_kit import Kit
from qbench.plugins import registry
from qbench.training.calibration import calibrate
from qbench.training.run import TrainingRun
from qbench.training.setup import make_run, open_problem


def make_calibrated_run(weights: str, activations: str | None = None) -> TrainingRun:
    run = Kit("ste", Path()).attach(
        Kit("ste", Path()).make_config(weights, activations=activations)
    )
    calibrate(run)
    return run


def test_a_probe_returns_every_quantized_tensor_and_restores_the_layers() -> None:
    run = make_calibrated_run("int4", "int4")
    loss, tensors = run.probe_loss(run.problem.batch(-1))
    assert set(tensors) == set(run.network.declared)
    for name, layer, grid in run.network.grids():
        assert torch.equal(tensors[name], grid.snap(layer.matrix())) and layer.used is None
    assert all(
        layer.input_quantizer is run.inputs[name] for name, layer in run.problem.layers().items()
    )
    assert loss.requires_grad and all(p.grad is None for p in run.model.parameters())


@pytest.mark.parametrize("which", ["weights", "inputs"])
def test_the_second_derivative_of_a_probe_agrees_with_finite_differences_of_the_first(
    which: str,
) -> None:
    run = make_calibrated_run("int4", "int8")
    for (
        layer
    ) in run.problem.layers().values():  # sums of codes are zero too often, where ReLU has its kink
        torch.nn.init.normal_(layer.bias, std=0.1, generator=torch.Generator().manual_seed(1))
    batch = run.problem.batch(-1)
    site = "narrow" if which == "weights" else "narrow.input"
    loss, tensors = run.probe_loss(batch)
    x = tensors[site]
    direction = torch.sign(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    gradient = torch.autograd.grad(loss, x, create_graph=True)[0]
    second_derivative = torch.autograd.grad((gradient * direction).sum(), x)[0].double()

    weight, inputs = tensors["narrow"].detach().double(), tensors["narrow.input"].detach().double()
    narrow, last = (copy.deepcopy(layer).double() for layer in (run.model.narrow, run.model.last))

    def first(step: float) -> Tensor:
        at = [weight, inputs]
        here = 0 if which == "weights" else 1
        at[here] = (at[here] + step * direction).requires_grad_()
        return torch.autograd.grad(
            run.problem.loss(last(F.relu(F.linear(at[1], at[0], narrow.bias))), batch), at[here]
        )[0]

    h = 1e-6
    expected = (first(h) - first(-h)) / (2 * h)
    torch.testing.assert_close(second_derivative, expected, rtol=1e-3, atol=1e-5)


def test_attention_can_be_probed_twice() -> None:
    config = dataclasses.replace(Kit("ste", Path()).make_config("int4"), task="grammar")
    _, problem = open_problem(config, torch.device("cpu"))
    run = make_run(problem, registry.build("methods", "ste", {}), config)
    loss, tensors = run.probe_loss(problem.batch(-1))
    gradients = torch.autograd.grad(loss, list(tensors.values()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), list(tensors.values()))  # type: ignore[arg-type]
    assert isinstance(problem, Problem) and all(bool(torch.isfinite(s).all()) for s in second)


@pytest.mark.parametrize("task", ["toy", "digits", "grammar"])
def test_random_draws_of_inputs_do_not_depend_on_micro_batches(task: str) -> None:
    """The batch has three uneven parts. A sample is a row for each of its tokens in `grammar`, an
    image in the `cnn` of digits."""
    draws_by_parts: dict[int, dict[str, Tensor]] = {}
    config = dataclasses.replace(
        Kit("ste", Path()).make_config("int4", activations="int4"), task=task
    )
    if task == "digits":
        config = dataclasses.replace(config, task_params={"model": "cnn"})
    for parts in (1, 3):
        _, problem = open_problem(
            dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, batch=8)),
            torch.device("cpu"),
        )
        run = make_run(problem, registry.build("methods", "ste", {}), config)
        calibrate(run)
        run.passes.micro_batches = parts
        drawn: dict[str, list[Tensor]] = {name: [] for name in run.inputs}
        for name, quantizer in run.inputs.items():
            quantizer.relax = lambda x, q=quantizer, to=drawn[name]: to.append(q.random(x)) or x  # type: ignore[assignment, misc]
        run.begin_step(4)
        run.backward(run.problem.batch(4))
        assert all(len(of) == parts for of in drawn.values())
        draws_by_parts[parts] = {name: torch.cat(of, -2) for name, of in drawn.items()}
        assert run.network.batch_slice[0] == 0
    assert draws_by_parts[1] and all(
        torch.equal(whole, draws_by_parts[3][name]) for name, whole in draws_by_parts[1].items()
    )
