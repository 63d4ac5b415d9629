"""LSQ is compared with the formulas of its paper."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qbench_methods.lsq import LSQ, LearnedStep
from torch import Tensor

from qbench import Site
from qbench.checks.method_kit import Kit
from qbench.errors import UsageError
from qbench.plugins import registry
from qbench.runs.config import Recipe
from qbench.training.loop import take_step
from tests.methods.prepared_runs import COMPILERS, prepare_run_of

SHAPE = (4, 64)
INTS = [f"int{bits}" for bits in range(2, 9)]


def make_quantizer(
    fmt: str = "int4",
    granularity: str = "channel",
    shape: tuple[int, ...] = SHAPE,
    role: str = "weight",
    unsigned: bool = False,
    **params: object,
) -> LearnedStep:
    """Return the quantizer of a site that the method supports."""
    site = Site("w", role, fmt, granularity, shape, unsigned)  # type: ignore[arg-type]
    method = LSQ(**params)  # type: ignore[arg-type]
    assert method.unsupported(site) is None
    actual = method.quantizer(site)
    assert isinstance(actual, LearnedStep)
    return actual


def draw_normal(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Return normally distributed numbers, which depend on nothing but the seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compute_gradients(q: LearnedStep, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients in `x` and in the step, where `g` is the gradient at the output."""
    leaf = x.clone().requires_grad_()
    q.zero_grad()
    q.relax(leaf).backward(g)
    assert leaf.grad is not None and q.size.grad is not None
    return leaf.grad, q.size.grad


def code_range(fmt: str, unsigned: bool = False) -> tuple[int, int]:
    """Return Q_N and Q_P."""
    bits = int(fmt[3:])
    return (0, 2**bits - 1) if unsigned else (2 ** (bits - 1), 2 ** (bits - 1) - 1)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "block-32"])
@pytest.mark.parametrize("fmt", INTS)
def test_the_step_starts_at_twice_the_mean_over_the_root_of_the_last_code(
    fmt: str, granularity: str
) -> None:
    q, x = make_quantizer(fmt, granularity), draw_normal(1)
    q.calibrate(x, first=True)
    groups = {"tensor": x.view(1, -1), "channel": x, "block-32": x.view(8, 32)}[granularity]
    expected = 2 * groups.abs().mean(-1) / math.sqrt(code_range(fmt)[1])
    torch.testing.assert_close(q.size.detach().flatten(), expected.float())
    q.calibrate(7 * x, first=False)  # only the first tensor of a calibration counts
    torch.testing.assert_close(q.size.detach().flatten(), expected.float())
    q.calibrate(7 * x, first=True)
    torch.testing.assert_close(q.size.detach().flatten(), 7 * expected.float())


@given(
    st.integers(0, 10_000),
    st.sampled_from(INTS),
    st.floats(0.02, 3.0),
    st.booleans(),
    st.booleans(),
)
def test_forward_and_backward_are_the_papers(
    seed: int, fmt: str, factor: float, unsigned: bool, flipped: bool
) -> None:
    """Every element is computed by itself, by the case that it is in.

    A step that an optimizer has made negative counts as its magnitude.
    """
    q, x, g = (
        make_quantizer(fmt, unsigned=unsigned, count="none").double(),
        draw_normal(seed),
        draw_normal(seed + 1),
    )
    q.calibrate(x, first=True)
    with torch.no_grad():
        q.size.mul_(-factor if flipped else factor)
    low, high = code_range(fmt, unsigned)
    actual_x, actual_s = compute_gradients(q, x, g)
    y = q.relax(x).detach()
    for row in range(SHAPE[0]):
        s, total = abs(float(q.size.detach()[row])), 0.0
        for column in range(SHAPE[1]):
            v, out = float(x[row, column]) / s, float(g[row, column])
            code = round(min(max(v, -low), high))
            assert float(y[row, column]) == pytest.approx(s * code, rel=1e-12, abs=1e-300)
            inside = -low < v < high
            assert float(actual_x[row, column]) == (out if inside else 0.0)
            total += out * (round(v) - v if inside else -low if v <= -low else high)
        assert float(actual_s[row]) == pytest.approx(
            -total if flipped else total, rel=1e-9, abs=1e-9
        )


def test_the_gradient_of_the_step_is_that_of_the_smooth_part() -> None:
    """The gradient in s agrees with finite differences of ŵ, with the rounding error held fixed."""
    q, x, g = make_quantizer("int3", count="none").double(), draw_normal(3), draw_normal(4)
    q.calibrate(x, first=True)
    with torch.no_grad():
        q.size.mul_(0.5)
    _, actual = compute_gradients(q, x, g)
    low, high = code_range("int3")
    s = q.size.detach()
    error = (x / s).round() - x / s

    # Outside of the range the smooth part is s·bound. Inside it is s·(x/s + error) = x + s·error.
    def smooth(step: Tensor) -> Tensor:
        inside = ((x / s) > -low) & ((x / s) < high)
        return torch.where(inside, x + step * error, step * (x / s).clamp(-low, high))

    h = 1e-6
    expected = ((smooth(s + h) - smooth(s - h)) / (2 * h) * g).sum(-1, keepdim=True)
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("granularity", "group"), [("tensor", 256), ("channel", 64), ("block-32", 32)]
)
def test_the_gradient_of_the_step_is_scaled_by_what_shares_it(granularity: str, group: int) -> None:
    x, g, actual = draw_normal(5), draw_normal(6), {}
    for count in ("none", "group", "tensor"):
        q = make_quantizer("int4", granularity, count=count).double()
        q.calibrate(x, first=True)
        actual[count] = compute_gradients(q, x, g)
    for count, elements in (("group", group), ("tensor", 256)):
        torch.testing.assert_close(
            actual[count][1], actual["none"][1] / math.sqrt(elements * 7), rtol=1e-12, atol=0.0
        )
        assert torch.equal(actual[count][0], actual["none"][0])


def test_inputs_count_the_features_of_one_sample() -> None:
    actual = {}
    for count in ("none", "group", "tensor"):
        q = make_quantizer(
            "int4", "tensor", (1, 64), "activation", unsigned=True, count=count
        ).double()
        x = draw_normal(7, (10, 64)).abs()
        q.calibrate(x, first=True)
        assert float(q.size.detach()) == pytest.approx(
            2 * float(x.mean()) / math.sqrt(15), rel=1e-6
        )
        actual[count] = float(compute_gradients(q, x, draw_normal(8, (10, 64)))[1])
    assert actual["group"] == pytest.approx(actual["none"] / math.sqrt(64 * 15), rel=1e-12)
    assert actual["tensor"] == pytest.approx(actual["none"] / math.sqrt(640 * 15), rel=1e-12)


@given(
    st.integers(0, 10_000),
    st.sampled_from(INTS),
    st.sampled_from(["tensor", "channel", "block-32"]),
)
def test_what_is_trained_is_what_ships(seed: int, fmt: str, granularity: str) -> None:
    q, x = make_quantizer(fmt, granularity), draw_normal(seed).float()
    q.calibrate(x, first=True)
    assert torch.equal(q(x), q.eval()(x))
    assert q.grid(x).levels.count == 2 ** int(fmt[3:])
    assert torch.equal(q.grid(x).snap(q(x)), q(x))


def test_stacked_sites_get_the_bits_that_they_get_alone() -> None:
    x, g = draw_normal(9, (3, *SHAPE)).float(), draw_normal(10, (3, *SHAPE)).float()
    stacked = make_quantizer("int3", shape=(3, *SHAPE))
    stacked.calibrate(x, first=True)
    grad_x, grad_s = compute_gradients(stacked, x, g)
    for index in range(3):
        alone = make_quantizer("int3")
        alone.calibrate(x[index], first=True)
        assert torch.equal(stacked.relax(x)[index], alone.relax(x[index]))
        for a, b in zip(
            compute_gradients(alone, x[index], g[index]),
            (grad_x[index], grad_s[index]),
            strict=True,
        ):
            assert torch.equal(a, b)


def test_a_site_without_a_rule_is_refused_in_one_sentence() -> None:
    def refusal(
        fmt: str, role: str = "weight", granularity: str = "channel", unsigned: bool = False
    ) -> str | None:
        return LSQ().unsupported(Site("w", role, fmt, granularity, SHAPE, unsigned))  # type: ignore[arg-type]

    assert "not equally spaced" in str(refusal("fp4")) and "Q_P = 0" in str(refusal("int1"))
    assert (
        "Q_P = 0" in str(refusal("int1", "activation", "tensor"))
        and refusal("int1", "activation", "tensor", unsigned=True) is None
    )
    assert "one step for a layer's input" in str(refusal("int4", "activation", "channel"))
    assert refusal("int2") is None and refusal("int8", granularity="block-32") is None


def test_parameters_out_of_their_domain_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda kind, name, where="": LSQ)
    for params, message in (
        ({"rate": -1.0}, "lsq: rate must not be negative, not -1.0"),
        ({"count": "grup"}, "did you mean group"),
        ({"rte": 1.0}, "did you mean rate"),
        ({"rate": "fast"}, "expected float"),
    ):
        with pytest.raises(UsageError) as error:
            registry.build("methods", "lsq", params)
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("fmt", ["int2", "int4", "int8"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block-32"])
def test_degenerate_weights_give_finite_numbers(fmt: str, granularity: str) -> None:
    x = draw_normal(11).float()
    cases = [torch.zeros(SHAPE), torch.full(SHAPE, 0.3), x * 1e-9, x.clone(), x.half()]
    cases[3][0, 0] = 1e6
    cases[0][1, 1] = 1.0
    for case in cases:
        q = make_quantizer(fmt, granularity)
        q.calibrate(case.float(), first=True)
        leaf = case.float().requires_grad_()
        y = q(leaf)
        y.backward(x)
        assert leaf.grad is not None and q.size.grad is not None and (q.size > 0).all()
        assert all(bool(torch.isfinite(t).all()) for t in (y, leaf.grad, q.size.grad))
        assert torch.equal(y.detach(), q.eval()(case))
    with torch.no_grad():
        q.size.zero_()  # where an optimizer could leave it
    assert torch.isfinite(q(x)).all() and (q.grid(x).scale > 0).all()


def test_a_group_of_zeros_lets_gradients_pass_to_its_weights() -> None:
    q, x = make_quantizer("int4"), torch.zeros(SHAPE)
    q.calibrate(x, first=True)
    assert (q.size == 1).all()
    grad_x, grad_s = compute_gradients(q, x, torch.ones(SHAPE))
    assert (grad_x == 1).all() and (grad_s == 0).all()


@pytest.mark.parametrize("fmt", ["int2", "int3", "int4"])
def test_the_step_finds_nearly_the_least_squared_error(fmt: str) -> None:
    """Descent on ‖ŵ − w‖² by the learned rule comes near the best of 400 steps.

    The start is worse.
    """
    x = draw_normal(12, (1, 4096)).float()
    q = make_quantizer(fmt, "tensor", (1, 4096), count="none")
    q.calibrate(x, first=True)

    def error(size: Tensor) -> float:
        with torch.no_grad():
            q.size.copy_(size.view(1, 1))
            return float((q.relax(x) - x).square().sum())

    start = q.size.detach().clone()
    best = min(error(start * f) for f in torch.linspace(0.2, 3.0, 400))
    worse = error(start)
    sgd = torch.optim.SGD([q.size], lr=0.5 / 4096)
    for _ in range(300):
        sgd.zero_grad()
        (q.relax(x) - x).square().sum().backward()
        sgd.step()
    assert error(q.size.detach().clone()) <= 1.02 * best < worse


def test_training_moves_the_steps_at_a_rate_of_their_own() -> None:
    """Steps of weights and inputs never decay, and train at `rate` times the learning rate."""
    kit = Kit("ste", Path())
    config = dataclasses.replace(
        kit.make_config("int4", activations="int4"),
        recipe=Recipe(steps=20, weight_decay=0.1, lr=1e-2),
    )
    moved = {}
    for rate in (0.0, 1.0):
        run = prepare_run_of(LSQ(rate=rate), config)
        assert run.optimizer is not None
        groups = {group["name"]: group["weight_decay"] for group in run.optimizer.param_groups}
        assert groups["quantizer"] == 0.0
        before = [p.detach().clone() for q in run.quantizers() for p in q.parameters()]
        for step in range(20):
            take_step(run, step)
        moved[rate] = [
            not torch.equal(p, b)
            for p, b in zip(
                [p for q in run.quantizers() for p in q.parameters()], before, strict=True
            )
        ]
    assert (
        all(moved[1.0])
        and not any(moved[0.0])
        and len(moved[1.0]) == len(run.weights) + len(run.inputs)
    )


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiled_gradients_are_the_eager_ones(compiler: str) -> None:
    x, g = draw_normal(13).float(), draw_normal(14).float()
    q = make_quantizer("int3")
    q.calibrate(x, first=True)
    with torch.no_grad():
        q.size.mul_(0.5)
    wanted_x, wanted_s = compute_gradients(q, x, g)
    leaf = x.clone().requires_grad_()
    q.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own
        y = torch.compile(q, backend=compiler, dynamic=False)(leaf)
        y.backward(g)
    torch.testing.assert_close(y, q(x), rtol=1e-6, atol=1e-6)
    assert leaf.grad is not None and q.size.grad is not None
    assert torch.equal(leaf.grad, wanted_x) and 0 < int((leaf.grad == 0).sum()) < x.numel()
    torch.testing.assert_close(q.size.grad, wanted_s, rtol=1e-5, atol=1e-5)
