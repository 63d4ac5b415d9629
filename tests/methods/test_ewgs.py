"""EWGS is compared with its equations: the interval, the scaled gradient, and δ by Hutchinson."""

from __future__ import annotations

import dataclasses
import math
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qbench_methods.ewgs import (
    EWGS,
    PROBE_STEPS,
    EWGSQuantizer,
    affordable_probes,
    curvature_ratios,
    measure_delta,
)
from torch import Tensor

from qbench import Site
from qbench.checks.method_kit import Kit
from qbench.errors import UsageError
from qbench.plugins import registry
from qbench.quant.straight_through import straight_through
from qbench.runs.config import Recipe
from qbench.training.loop import take_step
from qbench.training.optimizer import set_learning_rates
from qbench.training.run import TrainingRun
from qbench.training.setup import frozen_copy
from tests.methods.prepared_runs import COMPILERS, prepare_run_of

SHAPE = (4, 64)
BITS = (1, 2, 3, 4, 8)
Delta = Any


def draw_normal(
    seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return normally distributed numbers, which depend on nothing but the seed."""
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def make_weight_quantizer(
    bits: int, delta: Delta, x: Tensor, granularity: str = "channel", shift: bool = True
) -> EWGSQuantizer:
    """Return a quantizer that is calibrated on `x`.

    With `shift` its interval and α are moved, so that it is not symmetric and clips some elements.
    """
    q = EWGS(delta=delta).quantizer(Site("w", "weight", f"int{bits}", granularity, tuple(x.shape)))
    assert isinstance(q, EWGSQuantizer)
    q.calibrate(x, first=True)
    if shift:
        with torch.no_grad():
            q.low.mul_(0.5)
            q.high.mul_(0.4)
            q.alpha.mul_(-1.3)
    return q.to(x.dtype) if x.dtype == torch.float64 else q


def compute_gradients(q: EWGSQuantizer, x: Tensor, g: Tensor) -> list[Tensor]:
    """Return the gradients in `x`, l, u and α, where `g` is the gradient at the output."""
    leaf = x.clone().requires_grad_()
    return list(torch.autograd.grad(q.relax(leaf), [leaf, q.low, q.high, q.alpha], g))


def start_run(
    method: EWGS,
    weights: str = "int4",
    activations: str | None = None,
    task: str = "toy",
    steps: int = 60,
    **options: Any,
) -> TrainingRun:
    """Return a run of the method that is ready for its first step."""
    config = Kit("ste", Path()).make_config(
        weights, "tensor" if task == "linreg" else "channel", activations=activations, steps=steps
    )
    config = dataclasses.replace(
        config,
        task=task,
        task_params=options,
        recipe=dataclasses.replace(config.recipe, weight_decay=0.1),
    )
    return prepare_run_of(method, config)


# ---- the equations ----


@given(st.integers(0, 10_000), st.sampled_from(BITS), st.sampled_from([0.0, 1e-3, 0.7, 1.9]))
def test_forward_and_gradients_are_the_papers(seed: int, bits: int, delta: float) -> None:
    """Every gradient follows from the formulas alone.

    g_n = g + δ·|g|·(x_n − x_q), and for x, l, u and α ordinary differentiation.
    """
    x, g = draw_normal(seed), draw_normal(seed + 1)
    q, most = make_weight_quantizer(bits, delta, x), 2**bits - 1
    low, high, alpha = (p.detach() for p in (q.low, q.high, q.alpha))
    position = (x - low) / (high - low)
    x_n = position.clamp(0, 1)
    x_q = (x_n * most).round() / most
    torch.testing.assert_close(
        q.relax(x).detach(), alpha.abs() * 2 * (x_q - 0.5), rtol=1e-12, atol=1e-12
    )

    at_q = g * 2 * alpha.abs()
    at_n = at_q + float(q.delta.flatten()[0]) * at_q.abs() * (x_n - x_q)
    at_n = torch.where((position >= 0) & (position <= 1), at_n, 0.0)
    width = high - low
    expected = [
        at_n / width,
        (at_n * (x - high) / width**2).sum(1, keepdim=True),
        (-at_n * (x - low) / width**2).sum(1, keepdim=True),
        (g * 2 * (x_q - 0.5)).sum(1, keepdim=True) * alpha.sign(),
    ]
    for actual, formula in zip(compute_gradients(q, x, g), expected, strict=True):
        torch.testing.assert_close(actual, formula, rtol=1e-9, atol=1e-9)
    assert (expected[0] == 0).any()  # some elements are clipped, so the test can fail


def test_an_unsigned_input_is_scaled_and_not_shifted() -> None:
    q = EWGS(delta=0.0).quantizer(Site("x", "activation", "int2", "tensor", (1, 5), unsigned=True))
    assert isinstance(q, EWGSQuantizer)
    with torch.no_grad():
        q.low.fill_(1.0)
        q.high.fill_(4.0)
        q.alpha.fill_(6.0)
    x = torch.tensor([[0.0, 1.4, 2.2, 3.7, 9.0]])
    assert q.relax(x).tolist() == q.eval()(x).tolist() == [[0.0, 0.0, 2.0, 6.0, 6.0]]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block-32"])
@pytest.mark.parametrize("delta", [0.3, "adaptive"])
def test_the_forward_pass_is_what_ships_whatever_delta(
    bits: int, granularity: str, delta: Delta
) -> None:
    x = draw_normal(1, dtype=torch.float32)
    q, plain = (
        make_weight_quantizer(bits, delta, x, granularity),
        make_weight_quantizer(bits, 0.0, x, granularity),
    )
    y = q.relax(x).detach()
    assert (
        torch.equal(y, plain.relax(x))
        and torch.equal(y, q.eval()(x))
        and torch.equal(y, q.grid(x).values(q.grid(x).codes(x)))
    )
    assert (
        len(y.view(-1, {"tensor": 256, "channel": 64, "block-32": 32}[granularity])[0].unique())
        <= 2**bits
    )


@pytest.mark.parametrize("bits", BITS)
def test_delta_zero_is_straight_through_bit_for_bit(bits: int) -> None:
    x, g = draw_normal(2, dtype=torch.float32), draw_normal(3, dtype=torch.float32)
    q = make_weight_quantizer(bits, 0.0, x)

    def straight(leaf: Tensor) -> Tensor:
        grid = q.grid(leaf)
        z = grid.encode(leaf).clamp(q.levels.low, q.levels.high)
        return straight_through(z, q.units(grid, leaf).detach()) * grid.decode_scale

    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(straight(leaf), [leaf, q.low, q.high, q.alpha], g)
    assert all(torch.equal(a, b) for a, b in zip(compute_gradients(q, x, g), expected, strict=True))


@given(st.integers(0, 10_000), st.sampled_from(BITS), st.floats(1e-3, 1.9))
def test_a_gradient_grows_where_it_moves_towards_the_level_and_never_changes_sign(
    seed: int, bits: int, delta: float
) -> None:
    x, g = draw_normal(seed, dtype=torch.float64), draw_normal(seed + 1)
    scaled, plain = (
        compute_gradients(make_weight_quantizer(bits, d, x, shift=False), x, g)[0]
        for d in (delta, 0.0)
    )
    q = make_weight_quantizer(bits, delta, x, shift=False)
    z = q.grid(x).encode(x)
    unit, moves = q.units(q.grid(x), x), plain != 0
    nearer = ((z - 1e-6 * g.sign() - unit).abs() < (z - unit).abs()) & moves
    off_level = ((z - unit).abs() > 1e-5) & moves
    assert torch.equal((scaled.abs() > plain.abs())[off_level], nearer[off_level])
    assert torch.equal(scaled.sign(), plain.sign())


@pytest.mark.parametrize(("delta", "changed"), [(1.9, 0.0), (2.1, 0.024)])
def test_above_the_limit_some_gradients_change_sign(delta: float, changed: float) -> None:
    """With one bit and uniform x, none change sign at δ = 1.9, and one in forty-two at 2.1."""
    x = torch.rand(1, 400_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    g = draw_normal(4, (1, 400_000), torch.float32)
    q = EWGSQuantizer(Site("w", "weight", "int1", "channel", (1, 400_000)), delta)
    share = (compute_gradients(q, x, g)[0].sign() != g.sign()).float().mean()
    assert float(share) == pytest.approx(changed, abs=1e-3)


def test_clipped_elements_move_neither_themselves_nor_the_interval() -> None:
    x = torch.tensor([[-3.0, -2.5, 2.5, 7.0]])
    q = EWGSQuantizer(Site("w", "weight", "int4", "channel", (1, 4)), 0.5)
    at_x, at_low, at_high, at_alpha = compute_gradients(q, x, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert (
        not at_x.any()
        and float(at_low) == float(at_high) == 0.0
        and float(at_alpha) == pytest.approx(4.0)
    )


def test_bf16_weights_do_not_swallow_a_small_delta() -> None:
    """1 + 5e-4 is 1 in bf16: with δ = 1e-3 no gradient would change at all."""
    x = draw_normal(5, dtype=torch.float32).bfloat16()
    g = draw_normal(6, dtype=torch.float32)
    small, none = (compute_gradients(make_weight_quantizer(4, d, x), x, g)[1] for d in (1e-3, 0.0))
    assert small.dtype == torch.float32 and not torch.equal(small, none)


@pytest.mark.parametrize("aligned", [False, True])
def test_the_adaptive_rule_element_by_element(aligned: bool) -> None:
    """Where `aligned`, the signs of gradients and errors agree everywhere.

    There δ·a exceeds 0.99, above which gradients could change sign.
    """
    x, g = draw_normal(7), draw_normal(8)
    q = make_weight_quantizer(4, "adaptive", x)
    if aligned:
        with torch.no_grad():
            error = q.units(q.grid(x), x) - q.grid(x).encode(x)
        g = torch.where(error.abs() > 0.3, g.abs() * error.sign(), 1e-3 * g)
    grid = q.grid(x)
    z = grid.encode(x).detach().clamp(-7.5, 7.5)
    unit = q.units(grid, x).detach()
    actual, plain = (
        compute_gradients(q, x, g)[0],
        compute_gradients(make_weight_quantizer(4, 0.0, x), x, g)[0],
    )
    for row in range(4):
        errors = [float(unit[row, i] - z[row, i]) for i in range(64)]
        against = [e * math.copysign(1, float(g[row, i])) for i, e in enumerate(errors)]
        mean = sum(errors) / 64
        delta = sum(against) / 64 / max(sum((e - mean) ** 2 for e in errors) / 64, 1e-3)
        for i in range(64):
            assert float(actual[row, i]) == pytest.approx(
                float(plain[row, i]) * (1 - min(delta * against[i], 0.99)), rel=1e-9, abs=1e-12
            )
    assert torch.equal(actual.sign(), plain.sign())
    assert aligned == bool(((actual / plain)[plain != 0] < 0.0101).any())


# ---- the start ----


def test_weights_start_at_three_deviations_and_the_least_squares_scale() -> None:
    x = draw_normal(9, (3, 4, 64), torch.float32)
    q = make_weight_quantizer(4, 0.0, x, shift=False)
    torch.testing.assert_close(q.high, 3 * x.std(-1, keepdim=True, correction=0))
    assert torch.equal(q.low, -q.high) and (q.alpha > 0).all()
    y = q.relax(x).detach()
    torch.testing.assert_close((y * x).sum(-1), (y * y).sum(-1))


def test_inputs_start_at_three_deviations_of_the_half_normal_law_averaged_over_batches() -> None:
    q = EWGS().quantizer(Site("x", "activation", "int4", "tensor", (1, 100), unsigned=True))
    assert isinstance(q, EWGSQuantizer)
    batches = [k * draw_normal(10, (1000, 100), torch.float32).abs() for k in (1, 3)]
    for _ in range(2):
        for index, batch in enumerate(batches):
            q.calibrate(batch, first=index == 0)
        assert float(q.high.detach()) == pytest.approx(3 * 2, rel=0.01) and float(
            q.low.detach()
        ) == pytest.approx(0, abs=1e-3)
    assert float(q.alpha.detach()) == pytest.approx(float(q.high.detach()), rel=0.1)


def test_only_a_run_from_scratch_calibrates_again_during_its_first_tenth() -> None:
    moved = []
    for trained in (False, True):
        run = start_run(EWGS(delta=0.0, rate=0.0), activations="int4")
        run.recipes = (Recipe(steps=60, batch=64, lr=0.05, schedule="constant", warmup=0.0),)
        run.reference = frozen_copy(run.model) if trained else None
        sizes = []
        for step in range(10):
            take_step(run, step)
            sizes.append(
                torch.cat([p.detach().flatten() for q in run.quantizers() for p in q.parameters()])
            )
        moved.append([not torch.equal(a, b) for a, b in pairwise(sizes)])
    assert moved == [[True] * 6 + [False] * 3, [False] * 9]


def test_the_learned_parameters_have_a_slow_group_without_decay() -> None:
    run = start_run(EWGS(rate=0.01), activations="int4")
    assert run.optimizer is not None
    run.recipes = (Recipe(steps=60, lr=1e-3, schedule="constant", warmup=0.0),)
    run.begin_step(30)
    run.apply_schedules()
    set_learning_rates(run)
    groups = {g["name"]: g for g in run.optimizer.param_groups}
    assert groups["interval"]["lr"] == pytest.approx(1e-5) and groups["decay"][
        "lr"
    ] == pytest.approx(1e-3)
    assert groups["interval"]["weight_decay"] == 0.0 and groups["decay"]["weight_decay"] == 0.1
    assert len(groups["interval"]["params"]) == 3 * (3 + 3) and "quantizer" not in groups


def test_the_interval_never_closes() -> None:
    run = start_run(EWGS(delta=0.0))
    q = run.weights[0].quantizer
    assert isinstance(q, EWGSQuantizer)
    width = (q.high - q.low).detach().clone()
    with torch.no_grad():
        q.high.copy_(q.low - 5)
    run.method.after_step(run)
    torch.testing.assert_close(q.high - q.low, width / 100, rtol=1e-4, atol=0)


# ---- delta ----


@pytest.mark.parametrize("factor", [1.0, 64.0])
def test_hutchinson_is_exact_on_a_diagonal_quadratic_and_independent_of_the_size_of_the_loss(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(EWGS(), task="linreg", start=1.0)
    quantizer, plain = run.weights[0].quantizer, run.problem.loss
    monkeypatch.setattr(run.problem, "loss", lambda output, batch: factor * plain(output, batch))
    diagonal = run.problem.hessian_diagonal(run.weights[0].layers[0])
    _, tensors = run.probe_loss(run.problem.batch(-1))
    assert diagonal is not None and isinstance(quantizer, EWGSQuantizer)
    leaf = tensors["line"].detach().requires_grad_()
    (g,) = torch.autograd.grad(plain(leaf, run.problem.batch(-1)), leaf)
    slope = 2 * float(quantizer.alpha.detach())
    expected = slope**2 * float(diagonal.mean()) / (3 * slope * float(g.std(correction=0)))
    (actual,) = curvature_ratios(run, run.problem.batch(-1), range(1)).values()
    assert float(actual) == pytest.approx(expected, rel=1e-4)


def test_hutchinson_finds_the_trace_of_a_full_hessian() -> None:
    """A random rotation keeps the trace of the Hessian, and many probes find it."""
    run = start_run(EWGS(), task="linreg", start=1.0, rotated=True)
    quantizer = run.weights[0].quantizer
    assert isinstance(quantizer, EWGSQuantizer)
    _, tensors = run.probe_loss(run.problem.batch(-1))
    leaf = tensors["line"].detach().requires_grad_()
    (g,) = torch.autograd.grad(run.problem.loss(leaf, run.problem.batch(-1)), leaf)
    trace = sum(i**-1.1 for i in range(1, 257)) / 256
    expected = 2 * float(quantizer.alpha.detach()) * trace / (3 * float(g.std(correction=0)))
    (actual,) = curvature_ratios(run, run.problem.batch(-1), range(400)).values()
    assert float(actual) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("sign", "expected"), [(-1, 0.0), (1, 0.99 * 2 * 15)])
def test_delta_stays_between_zero_and_where_gradients_would_change_sign(
    sign: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is concave, or its gradient nearly vanishes at the weights as they are."""
    run = start_run(EWGS(), task="linreg", start=1.0)
    plain, calls = run.problem.loss, 0
    _, tensors = run.probe_loss(run.problem.batch(-1))
    here = tensors["line"].detach().requires_grad_()
    (slope,) = torch.autograd.grad(plain(here, run.problem.batch(-1)), here)
    monkeypatch.setattr(
        run.problem,
        "loss",
        lambda output, batch: sign * (plain(output, batch) - 0.9999 * (output * slope).sum()),
    )

    def counted(*args: Any, grad: Any = torch.autograd.grad, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return grad(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    measure_delta(run, run.probe_batches(2), probes=8)
    assert float(run.weights[0].quantizer.delta) == pytest.approx(expected)  # type: ignore[arg-type]
    assert calls == 2 + 8  # a gradient for each batch and a second derivative for each probe


def test_delta_is_zero_for_a_tenth_of_the_run_and_is_then_measured_at_every_site() -> None:
    run = start_run(EWGS(), activations="int4", steps=60)
    run.recipes = (Recipe(steps=60, batch=64, lr=1e-3),)
    for step in range(8):
        take_step(run, step)
        deltas = torch.cat([q.delta.flatten() for q in run.quantizers()])  # type: ignore[union-attr, operator]
        assert (deltas > 0).sum() >= 4 if step >= 6 else not deltas.any()
        assert (deltas < 2 * 15).all() and torch.isfinite(deltas).all()
    assert (
        len(deltas) == 6
        and run.method.metrics(run)["delta"] > 0
        and all(p.grad is None or p.grad.isfinite().all() for p in run.parameters)
    )


@pytest.mark.parametrize("steps", [30, 60, 300, 400, 1000, 12_500])
def test_probing_costs_at_most_a_tenth_of_the_run(steps: int) -> None:
    updates, probes = affordable_probes(steps)
    assert (
        updates[0] == math.ceil(0.1 * steps) and probes <= 8 and len(set(updates)) == len(updates)
    )
    assert len(updates) * probes * PROBE_STEPS <= steps / 10
    assert steps < 1000 or (len(updates), probes) == (4, 8)


# ---- domains, degenerate tensors, compilation ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"delta": -1e-3}, "delta must not be negative"),
        ({"delta": math.inf}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"rate": -1.0}, "rate must not be negative"),
        ({"follow": 1.0}, "follow must be in [0, 1)"),
    ],
)
def test_values_out_of_domain_are_refused(fields: dict[str, Any], message: str) -> None:
    assert message in str(EWGS(**fields).check()) and EWGS().check() is None


def test_delta_is_a_number_or_one_of_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda *_: EWGS)
    assert [
        registry.build("methods", "ewgs", {"delta": d}).delta
        for d in (0, 1e-3, "adaptive", "hessian")
    ] == [
        0.0,
        1e-3,
        "adaptive",
        "hessian",
    ]
    with pytest.raises(UsageError, match="did you mean hessian"):
        registry.build("methods", "ewgs", {"delta": "hesian"})


def test_formats_without_a_rule_are_refused() -> None:
    def refusal(delta: Delta, fmt: str) -> str | None:
        return EWGS(delta=delta).unsupported(Site("w", "weight", fmt, "channel", SHAPE))

    assert refusal(0.0, "fp4") == "fp4 is a codebook, and the levels of EWGS are uniform"
    assert refusal(2.0, "int1") == "delta = 2.0 turns gradients round: int1 needs less than 2"
    assert (
        refusal(1.99, "int1") is refusal(5.99, "int2") is refusal("hessian", "int1") is None
        and refusal(6.0, "int2") is not None
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block-32"])
@pytest.mark.parametrize("delta", [0.5, "adaptive"])
def test_degenerate_weights_give_finite_numbers(bits: int, granularity: str, delta: Delta) -> None:
    x = draw_normal(11, dtype=torch.float32)
    outlier = x.clone()
    outlier[:, 3] = 1e6
    for tensor in (torch.zeros(SHAPE), torch.full(SHAPE, -0.3), outlier, x.half(), 1e-15 * x):
        q = make_weight_quantizer(bits, delta, tensor, granularity, shift=False)
        y = q.relax(tensor)
        grads = compute_gradients(q, tensor, torch.ones(SHAPE))
        assert (
            y.dtype == torch.float32
            and torch.isfinite(y).all()
            and all(torch.isfinite(g).all() for g in grads)
        )
    constant = make_weight_quantizer(bits, delta, torch.full(SHAPE, -0.3), granularity, shift=False)
    assert compute_gradients(constant, torch.full(SHAPE, -0.3), torch.ones(SHAPE))[0].all()


@pytest.mark.parametrize("unsigned", [False, True])
def test_degenerate_inputs_give_finite_numbers(unsigned: bool) -> None:
    for x in (
        torch.zeros(8, 4),
        torch.full((8, 4), 2.0),
        draw_normal(12, (8, 4), torch.float32).abs().half(),
    ):
        q = EWGS(delta=0.5).quantizer(
            Site("x", "activation", "int4", "tensor", (1, 4), unsigned=unsigned)
        )
        assert isinstance(q, EWGSQuantizer)
        q.calibrate(x, first=True)
        assert torch.isfinite(q.relax(x)).all() and all(
            torch.isfinite(g).all() for g in compute_gradients(q, x, torch.ones(8, 4))
        )
        assert float(q.high.detach()) > float(q.low.detach())


def test_stacked_sites_get_the_bits_that_they_get_alone() -> None:
    x, g = draw_normal(13, (3, *SHAPE), torch.float32), draw_normal(14, (3, *SHAPE), torch.float32)
    for delta in (0.5, "adaptive"):
        stacked = compute_gradients(make_weight_quantizer(4, delta, x), x, g)
        for index in range(3):
            alone = compute_gradients(make_weight_quantizer(4, delta, x[index]), x[index], g[index])
            assert all(torch.equal(a[index], b) for a, b in zip(stacked, alone, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("delta", [1.5, "adaptive"])
def test_the_compiled_gradient_is_the_eager_one(delta: Delta, compiler: str) -> None:
    x, g = draw_normal(15, dtype=torch.float32), draw_normal(16, dtype=torch.float32)
    q, plain = (
        make_weight_quantizer(4, delta, x),
        compute_gradients(make_weight_quantizer(4, 0.0, x), x, g)[0],
    )
    leaf = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own
        y = torch.compile(q, backend=compiler, dynamic=False)(leaf)
        actual = torch.autograd.grad(y, [leaf, q.low, q.high, q.alpha], g)
    torch.testing.assert_close(y, q(x), rtol=1e-6, atol=1e-6)
    for a, b in zip(actual, compute_gradients(q, x, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(actual[0], plain, atol=1e-2)
