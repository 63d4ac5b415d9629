"""Randomised rounding as a way to train is tested for its law, its gradient, and what it lacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qbench_methods.rr import RR
from torch import Tensor

from qbench import Quantizer, Site
from qbench.checks.method_kit import Kit
from qbench.errors import UsageError
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.prepare import prepare_run
from qbench.plugins.registry import build
from qbench.quant.formats import FORMATS
from qbench.quant.input_quantizer import InputQuantizer
from qbench.runs.attempts import Attempt
from qbench.training.loop import take_step
from qbench.training.setup import open_problem
from tests.methods.prepared_runs import COMPILERS

SHAPE = (4, 16)
UNCLIPPED = [f for f in FORMATS if f != "int1"]


def make_quantizer(
    fmt: str,
    granularity: str = "channel",
    shape: tuple[int, ...] = SHAPE,
    names: tuple[str, ...] = ("w",),
    **params: object,
) -> Quantizer:
    """Return the quantizer of a weight, keyed by the names of its sites."""
    actual = build("methods", "rr", params).quantizer(
        Site(",".join(names), "weight", fmt, granularity, shape)
    )
    assert isinstance(actual, Quantizer)
    actual.set_seed(0, list(names))
    return actual


def draw_normal(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Return normally distributed numbers, which depend on nothing but the seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def round_repeatedly(q: Quantizer, x: Tensor, steps: int) -> Tensor:
    """Return what training would compute with at each of the first `steps` steps."""
    rounded = []
    for step in range(steps):
        q.step.fill_(step)
        rounded.append(q.relax(x))
    return torch.stack(rounded)


@given(
    st.integers(0, 10_000),
    st.sampled_from(FORMATS),
    st.sampled_from(["absmax", "mse"]),
    st.sampled_from(["tensor", "channel", "block-4"]),
)
def test_every_weight_becomes_one_of_its_two_neighbouring_levels(
    seed: int, fmt: str, scale: str, granularity: str
) -> None:
    q, x = make_quantizer(fmt, granularity, scale=scale), draw_normal(seed)
    low, high = q.grid(x).neighbours(x)
    rounded = q.relax(x)
    assert ((rounded == low) | (rounded == high)).all()
    assert torch.allclose(rounded, q.grid(x).snap(rounded), rtol=1e-12, atol=0)
    if fmt != "int8":
        assert not torch.equal(rounded, q.grid(x).snap(x))


@pytest.mark.parametrize("fmt", ["int2", "int4", "fp4"])
def test_the_mean_over_steps_is_the_weight(fmt: str) -> None:
    q, x, steps = make_quantizer(fmt), draw_normal(1), 2000
    rounded = round_repeatedly(q, x, steps)
    low, high = q.grid(x).neighbours(x)
    variance, gap = ((x - low) * (high - x)).clamp(min=0), high - low
    assert (
        (rounded.mean(0) - x).abs() <= 4.5 * (variance / steps).sqrt() + gap / steps + 1e-9
    ).all()
    assert (
        (rounded.var(0) - variance).abs() <= 4.5 * gap * (variance / steps).sqrt() + gap**2 / steps
    ).all()


def test_random_numbers_are_a_function_of_seed_site_and_step() -> None:
    q, x = make_quantizer("int2"), draw_normal(2)
    before = torch.get_rng_state()
    first, second = round_repeatedly(q, x, 2)
    assert not torch.equal(first, second) and torch.equal(first, round_repeatedly(q, x, 1)[0])
    other, reseeded = make_quantizer("int2", names=("v",)), make_quantizer("int2")
    reseeded.set_seed(1, ["w"])
    assert not torch.equal(first, round_repeatedly(other, x, 1)[0]) and not torch.equal(
        first, round_repeatedly(reseeded, x, 1)[0]
    )
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("fmt", UNCLIPPED)
def test_a_weight_on_its_level_stays_there(fmt: str) -> None:
    q = make_quantizer(fmt)
    x = q.grid(draw_normal(3)).snap(draw_normal(3))
    torch.testing.assert_close(round_repeatedly(q, x, 50), x.expand(50, *SHAPE), rtol=1e-12, atol=0)


@given(
    st.integers(0, 10_000),
    st.sampled_from([f"int{b}" for b in range(1, 9)]),
    st.sampled_from(["absmax", "mse"]),
)
def test_the_gradient_is_the_identity_except_where_rounding_to_nearest_clips(
    seed: int, fmt: str, scale: str
) -> None:
    q, x, g = (
        make_quantizer(fmt, scale=scale),
        draw_normal(seed).requires_grad_(),
        draw_normal(seed + 1),
    )
    q.relax(x).backward(g)
    z = x.detach() / q.grid(x.detach()).scale
    fits = (
        (torch.round(z - 0.5) + 0.5).abs() <= 0.5
        if fmt == "int1"
        else torch.round(z).abs() <= 2 ** (int(fmt[3:]) - 1) - 1
    )
    assert x.grad is not None and torch.equal(x.grad, g * fits)
    assert fits.all() or (scale, fmt) != ("absmax", "int4")
    if scale == "mse" and fmt == "int2":
        assert not fits.all()  # the searched scale clips, so the test can fail


def test_the_expected_gradient_on_a_quadratic_is_that_of_full_precision() -> None:
    # Many sites with keys of their own draw at once what one site would draw in many steps.
    count, w = 4000, draw_normal(4, (1, 6))
    names = tuple(str(index) for index in range(count))
    q = make_quantizer("int2", shape=(count, 1, 6), names=names)
    root, goal = draw_normal(5, (6, 6)), draw_normal(6, (1, 6))
    hessian = root @ root.T
    leaves = w.repeat(count, 1, 1).requires_grad_()
    error = q.relax(leaves) - goal
    (0.5 * (error @ hessian) * error).sum().backward()
    actual = leaves.grad
    assert actual is not None
    allowed = 4.5 * actual.std(0) / count**0.5 + 1e-9
    assert ((actual.mean(0) - (w - goal) @ hessian).abs() <= allowed).all()
    assert (actual.std(0) > 0.1).all()  # a single step's gradient is far from it


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("scale", ["absmax", "mse"])
def test_degenerate_groups_give_finite_numbers(fmt: str, scale: str) -> None:
    rows = torch.stack([torch.zeros(16), torch.full((16,), 0.3), torch.randn(16), torch.randn(16)])
    rows[2, 3] = 1e6
    for x in (rows.clone().requires_grad_(), rows.clamp(-6e4, 6e4).half().requires_grad_()):
        rounded = make_quantizer(fmt, scale=scale).train()(x)
        rounded.sum().backward()
        assert (
            rounded.dtype == torch.float32
            and rounded.isfinite().all()
            and x.grad is not None
            and x.grad.isfinite().all()
        )
        assert (rounded[0].abs() <= 0.5).all() if fmt == "int1" else (rounded[0] == 0).all()


def test_stacked_sites_get_the_bits_that_they_get_alone() -> None:
    x = draw_normal(7, (2, *SHAPE)).float()
    stacked = make_quantizer("int4", shape=(2, *SHAPE), names=("a", "b")).relax(x)
    for index, name in enumerate("ab"):
        assert torch.equal(stacked[index], make_quantizer("int4", names=(name,)).relax(x[index]))


def test_a_step_trains_on_one_draw_and_ships_on_the_nearest_levels(tmp_path: Path) -> None:
    kit = Kit("rr", tmp_path)
    config = kit.make_config("int4", activations="int8")
    _, problem = open_problem(config, torch.device("cpu"))
    run = prepare_run(
        Assignment(config, tmp_path / "1"), Execution(accumulate=2), problem, torch.device("cpu")
    )
    roundings = []
    relax = run.weights[0].quantizer.relax
    run.weights[0].quantizer.relax = lambda x: roundings.append(relax(x)) or roundings[-1]  # type: ignore[method-assign, func-returns-value]
    take_step(run, 0)
    take_step(run, 1)
    assert len(roundings) == 2
    with run.network.as_shipped():
        for _, layer, grid in run.network.grids():
            assert torch.equal(layer.quantized_weight, grid.snap(layer.matrix()))


def test_the_curve_and_the_roundings_are_recorded(tmp_path: Path) -> None:
    kit = Kit("rr", tmp_path)
    result, folder = kit.run(kit.make_config("int4"))
    assert (
        result["state"] == "ok" and result["audit"]["passed"] and result["scores"]["rr_count"] == 5
    )
    assert result["scores"]["rr_std"] > 0 and result["scores"]["packed"] < 1.0
    losses = [json.loads(line)["loss"] for line in Attempt(folder).curve.read_text().splitlines()]
    assert losses[-1] < losses[0] / 2


def test_inputs_are_quantized_by_the_common_rule_and_wrong_parameters_refused() -> None:
    assert isinstance(
        RR().quantizer(Site("w.input", "activation", "int4", "tensor", (1, 16))), InputQuantizer
    )
    with pytest.raises(UsageError, match="unknown value 'msee'; did you mean mse"):
        build("methods", "rr", {"scale": "msee"})


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("fmt", ["int4", "int1"])
def test_compiled_equals_eager(fmt: str, compiler: str) -> None:
    q, x, g = make_quantizer(fmt), draw_normal(8).float(), draw_normal(9).float()
    torch._dynamo.reset()  # each format on its own
    compiled = torch.compile(q, backend=compiler, dynamic=False)
    for step in range(3):
        q.step.fill_(step)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        eager_output, compiled_output = q(a), compiled(b)
        (eager_output * g).sum().backward()
        (compiled_output * g).sum().backward()
        torch.testing.assert_close(compiled_output, eager_output, rtol=1e-6, atol=1e-7)
        assert (
            a.grad is not None
            and b.grad is not None
            and torch.equal(a.grad, b.grad)
            and b.grad.abs().sum() > 0
        )
