"""GDNSQ is compared with the formulas of its paper."""

from __future__ import annotations

import dataclasses
import math
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qbench_methods.gdnsq import (
    GDNSQ,
    InputNoise,
    Noise,
    WeightNoise,
    excess_bits,
    noise_quantizers,
)
from torch import Tensor

from qbench import Site
from qbench.checks.method_kit import Kit
from qbench.errors import UsageError
from qbench.plugins import registry
from qbench.runs.config import Recipe
from qbench.training.checkpoint import load_checkpoint, save_checkpoint
from qbench.training.loop import take_step
from qbench.training.run import TrainingRun
from qbench.training.setup import frozen_copy
from tests.methods.prepared_runs import COMPILERS, prepare_run_of

SHAPE = (4, 64)
INTS = [f"int{bits}" for bits in range(1, 9)]
GRANULARITIES = ["tensor", "channel", "block-32"]
THIRD = 3**-0.5


def make_site(
    fmt: str,
    granularity: str = "channel",
    shape: tuple[int, ...] = SHAPE,
    role: str = "weight",
    unsigned: bool = False,
) -> Site:
    """Return a site of a weight, or of an input."""
    return Site("w", role, fmt, granularity, shape, unsigned)  # type: ignore[arg-type]


def make_weight_quantizer(
    fmt: str = "int4",
    granularity: str = "channel",
    shape: tuple[int, ...] = SHAPE,
    **params: object,
) -> WeightNoise:
    """Return the quantizer of a weight."""
    actual = GDNSQ(**params).quantizer(make_site(fmt, granularity, shape))  # type: ignore[arg-type]
    assert isinstance(actual, WeightNoise)
    return actual


def make_input_quantizer(fmt: str = "int4", unsigned: bool = False, **params: object) -> InputNoise:
    """Return the quantizer of an input with 64 features."""
    actual = GDNSQ(**params).quantizer(make_site(fmt, "tensor", (1, 64), "activation", unsigned))  # type: ignore[arg-type]
    assert isinstance(actual, InputNoise)
    return actual


def draw_normal(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Return normally distributed numbers, which depend on nothing but the seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def set_bits(q: Noise, x: Tensor, bits: float) -> None:
    """Set the steps so that every group has this many bits."""
    if isinstance(q, InputNoise):
        q.log_range.copy_(q.log_step + bits)
    else:
        low, high = q.site.grouping.group(x).aminmax(dim=-1, keepdim=True)
        q.log_step.copy_((high - low).log2() - math.log2(2**bits - 1))


def compute_gradients(q: Noise, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Return the gradients of Σ g·y by name."""
    leaf = x.clone().requires_grad_()
    q.zero_grad()
    q.relax(leaf).backward(g)
    assert leaf.grad is not None
    return {"x": leaf.grad} | {
        name: p.grad for name, p in q.named_parameters() if p.grad is not None
    }


# ---- forward ----


@given(
    st.integers(0, 10_000),
    st.sampled_from(INTS),
    st.sampled_from(GRANULARITIES),
    st.floats(1.0, 12.0),
)
def test_codes_of_weights_are_the_integers_from_0_to_the_range_in_steps(
    seed: int, fmt: str, granularity: str, bits: float
) -> None:
    q, x = make_weight_quantizer(fmt, granularity).double(), draw_normal(seed)
    set_bits(q, x, bits)
    grouped = q.site.grouping.group(x)
    low, high = grouped.aminmax(dim=-1, keepdim=True)
    s = q.log_step.detach().exp2()
    codes = (q.site.grouping.group(q.relax(x).detach()) - low) / s
    assert (codes - codes.round()).abs().max() < 1e-6
    assert (codes.round().amin(-1) == 0).all()
    assert torch.equal(codes.round().amax(-1, keepdim=True), ((high - low) / s).round())
    assert ((q.relax(x).detach() - x).abs().amax() <= s.amax() / 2 * (1 + 1e-9)).all()


@given(
    st.integers(0, 10_000),
    st.sampled_from(INTS),
    st.sampled_from(GRANULARITIES),
    st.floats(0.02, 3.0),
)
def test_weights_that_fit_are_trained_as_they_ship_and_others_are_forced(
    seed: int, fmt: str, granularity: str, over: float
) -> None:
    q, x, target = make_weight_quantizer(fmt, granularity), draw_normal(seed).float(), int(fmt[3:])
    set_bits(q, x, target - 0.001)
    assert q.fits(x).all() and torch.equal(q(x), q.eval()(x))
    assert torch.equal(q.grid(x).scale, q.log_step.detach().exp2())
    set_bits(q, x, target + over + 1 / (2**target - 1))
    low, high = q.site.grouping.group(x).aminmax(dim=-1, keepdim=True)
    assert not q.fits(x).any()
    torch.testing.assert_close(q.grid(x).scale, (high - low) / (2**target - 1))
    assert int(q.grid(x).codes(x).max()) == 2**target - 1 == q.grid(x).levels.count - 1


@given(st.integers(0, 10_000), st.sampled_from(INTS), st.booleans(), st.floats(-0.5, 3.0))
def test_inputs_that_fit_are_trained_as_they_ship_and_others_are_forced(
    seed: int, fmt: str, unsigned: bool, over: float
) -> None:
    q, x, target = make_input_quantizer(fmt, unsigned), draw_normal(seed).float(), int(fmt[3:])
    q.calibrate(x, first=True)
    with torch.no_grad():
        q.log_step.copy_((x.max() * 0.8).log2() - target)  # so that something is clipped
    set_bits(q, x, target + over)
    q.confine(x)
    if over <= 0:
        assert q.fits(x).all() and torch.equal(q.train()(x), q.eval()(x))
        assert q.train()(x).unique().numel() <= 2**target
    elif not q.fits(x).all():
        forced = q.grid(x).scale
        torch.testing.assert_close(forced, (q.log_range.detach() - target).exp2())
        top = q.offset.detach() + forced * (2**target - 1)
        assert float(q.eval()(1000 * x.abs()).max()) == pytest.approx(float(top), rel=1e-6)
    assert (float(q.offset.detach()) == 0.0) == unsigned and isinstance(
        q.offset, torch.nn.Parameter
    ) != unsigned


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("start_bits", "expected"), [(0.0, 7.0), (10.0, 10.0)])
def test_the_start_of_weights(granularity: str, start_bits: float, expected: float) -> None:
    q, x = (
        make_weight_quantizer("int4", granularity, start_bits=start_bits).double(),
        draw_normal(1),
    )
    q.calibrate(x, first=True)
    torch.testing.assert_close(q.bits(x), torch.full_like(q.log_step, expected))


@pytest.mark.parametrize("unsigned", [False, True])
def test_the_start_of_inputs_is_the_range_of_the_batches(unsigned: bool) -> None:
    q, x, wider = (
        make_input_quantizer("int4", unsigned, start_bits=10.0).double(),
        draw_normal(2),
        2 * draw_normal(3),
    )
    q.calibrate(x, first=True)
    q.calibrate(wider, first=False)
    both = torch.cat([x, wider])
    low = 0.0 if unsigned else float(both.min())
    assert float(q.offset.detach()) == pytest.approx(low)
    assert float(
        q.offset.detach() + q.log_range.detach().exp2() - q.log_step.detach().exp2()
    ) == pytest.approx(float(both.max()))
    assert float(q.bits(x).detach()) == pytest.approx(10.0)
    q.calibrate(x, first=True)
    assert float(
        q.offset.detach() + q.log_range.detach().exp2() - q.log_step.detach().exp2()
    ) == pytest.approx(float(x.max()))


@given(st.floats(-6, 3), st.floats(0, 50))
def test_the_two_formulas_for_bits_agree(log_step: float, width: float) -> None:
    q = make_weight_quantizer("int4", "tensor", (1, 2)).double()
    with torch.no_grad():
        q.log_step.fill_(log_step)
    actual = float(q.bits(torch.tensor([[-1.0, width - 1.0]], dtype=torch.float64)).detach())
    assert actual == pytest.approx(
        math.log2((width - 1.0 + 1.0) / 2**log_step + 1), rel=1e-9, abs=1e-9
    )


# ---- backward ----


def test_the_gradient_of_weights_is_exact_straight_through_and_the_same_for_every_seed() -> None:
    x, g = draw_normal(4), draw_normal(5)
    for rule in ("released", "dither", "lsq"):
        q = make_weight_quantizer("int2", scale_gradient=rule).double()
        set_bits(q, x, 2.5)
        for seed in range(3):
            q.set_seed(seed, ["w"])
            assert torch.equal(compute_gradients(q, x, g)["x"], g)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_mean_gradient_of_the_step_is_lsqs_and_its_variance_is_that_of_the_coin(
    granularity: str,
) -> None:
    """ds = Σ g (e + s·r/√3) has mean Σ g e and variance s²/12 · Σ g²; `dither` 0 and 1/12 · Σ g².

    They are measured over 6000 sites that have keys of their own.
    """
    count, x, g = 6000, draw_normal(6, (1, 64)), draw_normal(7, (1, 64))
    many, grads = x.expand(count, 1, 64), g.expand(count, 1, 64)
    actual = {}
    for rule in ("released", "dither", "lsq"):
        q = make_weight_quantizer("int3", granularity, (count, 1, 64), scale_gradient=rule).double()
        set_bits(q, many, 3.3)
        q.set_seed(3, [str(index) for index in range(count)])
        actual[rule] = (
            compute_gradients(q, many, grads)["log_step"] / math.log(2) / q.log_step.detach().exp2()
        )
    group, s = q.site.grouping.group, q.log_step.detach().exp2()[0]
    v = (group(x) - group(x).amin(-1, keepdim=True)) / s
    mean, squares = (
        (group(g) * (v.round() - v)).sum(-1, keepdim=True),
        group(g).square().sum(-1, keepdim=True),
    )
    torch.testing.assert_close(actual["lsq"], mean.expand_as(actual["lsq"]), rtol=1e-10, atol=1e-10)
    for rule, centre, variance in (
        ("released", mean, s**2 * squares / 12),
        ("dither", 0 * mean, squares / 12),
    ):
        assert ((actual[rule].mean(0) - centre).abs() < 4 * (variance / count) ** 0.5).all()
        torch.testing.assert_close(actual[rule].var(0), variance, rtol=0.08, atol=0.0)


@pytest.mark.parametrize("rule", ["released", "dither", "lsq"])
def test_the_gradients_of_inputs_are_those_of_the_table(rule: str) -> None:
    """Each element's gradient is that of the table: in range, below it and above it.

    The random numbers are those that the rule has drawn.
    """
    q, x = make_input_quantizer("int4", scale_gradient=rule).double(), 2 * draw_normal(8)
    q.set_seed(1, ["w.input"])
    q.step.fill_(5)
    with torch.no_grad():
        q.offset.fill_(-0.4)
        q.log_range.fill_(1.3)
        q.log_step.fill_(-1.17)
    b, width, s = -0.4, 2**1.3, 2**-1.17
    coin = torch.where(q.random(x) < 0.5, -0.5, 0.5).double()
    cases = set()
    for row in range(2):
        for column in range(SHAPE[1]):
            one = torch.zeros_like(x)
            one[row, column] = 1.0
            value, r = float(x[row, column]), float(coin[row, column])
            where = "below" if value < b else "above" if value > b + width - s else "in"
            cases.add(where)
            v = (min(max(value, b), b + width - s) - b) / s
            e = round(v) - v
            rounding = {"released": e + s * THIRD * r, "dither": THIRD * r, "lsq": e}[rule]
            expected = {
                "x": 1.0 if where == "in" else 0.0,
                "log_step": (rounding - (where == "above")) * math.log(2) * s,
                "log_range": (where == "above") * math.log(2) * width,
                "offset": float(where != "in"),
            }
            for name, grad in compute_gradients(q, x, one).items():
                actual = float(grad[row, column]) if name == "x" else float(grad)
                assert actual == pytest.approx(expected[name], rel=1e-12, abs=1e-12), (where, name)
    assert cases == {"below", "in", "above"}


def test_the_worked_example_above_the_range() -> None:
    q, x = make_input_quantizer("int4").double(), torch.tensor([[3.9]], dtype=torch.float64)
    with torch.no_grad():
        q.offset.fill_(-0.4)
        q.log_range.fill_(1.3)
        q.log_step.fill_(-1.17)
    both = {}
    for step in range(40):
        q.step.fill_(step)
        actual = compute_gradients(q, x, torch.ones_like(x))
        assert float(actual["x"]) == 0.0 and float(actual["offset"]) == 1.0
        assert float(actual["log_range"]) / (math.log(2) * 2**1.3) == pytest.approx(1.0, rel=1e-12)
        both[float(q.random(x)) < 0.5] = float(actual["log_step"]) / (math.log(2) * 2**-1.17)
    assert (both[True] + both[False]) / 2 == pytest.approx(-0.540438, abs=5e-7)


def test_clipping_has_the_slopes_of_its_finite_differences() -> None:
    """Without rounding the range is clip(x, b, b + q − s), whose slopes in q and b are compared.

    The rule `lsq` has no noise, and its e belongs to the rounding.
    """
    q, x, g = (
        make_input_quantizer("int4", scale_gradient="lsq").double(),
        2 * draw_normal(9),
        draw_normal(10),
    )
    with torch.no_grad():
        q.offset.fill_(-0.7)
        q.log_range.fill_(1.1)
        q.log_step.fill_(-2.9)
    actual = compute_gradients(q, x, g)

    def total(b: float, log_q: float) -> float:
        return float((x.clamp(b, b + 2**log_q - 2**-2.9) * g).sum())

    h = 1e-6
    assert float(actual["offset"]) == pytest.approx(
        (total(-0.7 + h, 1.1) - total(-0.7 - h, 1.1)) / (2 * h), rel=1e-6
    )
    assert float(actual["log_range"]) == pytest.approx(
        (total(-0.7, 1.1 + h) - total(-0.7, 1.1 - h)) / (2 * h), rel=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiled_gradients_are_the_eager_ones(compiler: str) -> None:
    x, g = draw_normal(11).float(), draw_normal(12).float()
    for q in (make_weight_quantizer("int3"), make_input_quantizer("int3")):
        q.calibrate(x, first=True)
        set_bits(q, x, 3.4)
        if isinstance(q, InputNoise):
            with torch.no_grad():
                q.log_range.sub_(0.7), q.log_step.sub_(0.7)
        q.set_seed(0, ["w"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own
            compiled = torch.compile(q, backend=compiler, dynamic=False)
            for step in range(2):
                q.step.fill_(step)
                expected = compute_gradients(q, x, g)
                leaf = x.clone().requires_grad_()
                q.zero_grad()
                y = compiled(leaf)
                y.backward(g)
                torch.testing.assert_close(y, q(x), rtol=1e-5, atol=1e-6)
                actual = {"x": leaf.grad} | {name: p.grad for name, p in q.named_parameters()}
                assert actual.keys() == expected.keys()
                for name, grad in actual.items():
                    torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-4)


# ---- the penalty ----


def start_toy_run(
    weights: str = "int4", activations: str | None = None, steps: int = 40, **params: object
) -> TrainingRun:
    """Return a run on the kit's toy task, ready for its first step."""
    config = Kit("ste", Path()).make_config(weights, activations=activations)
    recipe = Recipe(steps=steps, batch=64, lr=1e-2, weight_decay=0.1)
    config = dataclasses.replace(config, recipe=recipe)
    return prepare_run_of(GDNSQ(**params), config)  # type: ignore[arg-type]


@torch.no_grad()
def set_all_bits(run: TrainingRun, bits: float, role: str | None = None) -> None:
    """Set the bits of all quantizers of a run, or of those of one role."""
    for stack in run.weights:
        if role in (None, "weight"):
            set_bits(stack.quantizer, stack.stack(), bits)  # type: ignore[arg-type]
    for q in run.inputs.values():
        if role in (None, "activation"):
            set_bits(q, torch.zeros(1), bits)  # type: ignore[arg-type]


def test_the_penalty_is_zero_exactly_where_all_bits_are_a_thousandth_below_the_target() -> None:
    run = start_toy_run("int4", "int4")
    for bits, zero in ((3.0, True), (3.9985, True), (3.9995, False), (4.5, False)):
        set_all_bits(run, bits)
        assert (float(excess_bits(run).detach()) == 0.0) == zero, bits
    set_all_bits(run, 3.9)
    stack = run.weights[0]
    with torch.no_grad():
        stack.quantizer.log_step[0, 0] -= 1.0  # one group of all  # type: ignore[operator, index]
    assert float(excess_bits(run).detach()) > 0


def test_the_penalty_is_a_mean_weighted_by_the_violated_constraints_of_each_role() -> None:
    run = start_toy_run("int4", "int4")
    groups = sum(b.quantizer.log_step.numel() for b in run.weights)  # type: ignore[union-attr, misc]
    set_all_bits(run, 6.0, "weight")
    set_all_bits(run, 5.0, "activation")
    total = groups + 3 + 1e-3
    expected = (groups + 1e-3) / total * (2.0 + 1e-3) + (3 + 1e-3) / total * (1.0 + 1e-3)
    assert float(excess_bits(run).detach()) == pytest.approx(expected, rel=1e-4)
    set_all_bits(run, 3.5, "activation")
    assert float(excess_bits(run).detach()) == pytest.approx(2.0 + 1e-3, rel=1e-4)


def test_the_penalty_falls_with_every_step_and_never_widens_a_range() -> None:
    run = start_toy_run("int4", "int4")
    run.problem.model.zero_grad()
    excess_bits(run).backward()
    quantizers = noise_quantizers(run)
    assert len(quantizers) == len(run.weights) + len(run.inputs)
    for q in quantizers:
        assert q.log_step.grad is not None and (q.log_step.grad < 0).all()
    for layer in run.problem.layers().values():
        w, grad = layer.matrix().detach(), layer.weight.grad
        assert grad is not None
        grad = grad.reshape(w.shape)
        top, bottom = w == w.amax(-1, keepdim=True), w == w.amin(-1, keepdim=True)
        assert (
            (grad[top] > 0).all() and (grad[bottom] < 0).all() and (grad[~top & ~bottom] == 0).all()
        )


def test_the_penalty_is_weighted_by_t_and_the_mean_of_earlier_losses() -> None:
    """L = D + t · D̄ · P is recomputed from what the loop logged.

    D̄ is the sum over the n earlier steps, divided by n + 1.
    """
    run = start_toy_run("int2", steps=30, pressure=5.0)
    logged = []
    for step in range(12):
        terms, _, _ = take_step(run, step)
        t = 5.0 * max(0.0, step / 30 - 0.1) / 0.5
        logged.append(float(terms["task"]))
        earlier = sum(logged[:-1]) / len(logged)
        assert run.numbers("t") == [pytest.approx(t)]
        if t == 0:
            assert float(terms["penalty"]) == 0.0
        else:
            assert (
                0
                < float(terms["penalty"])
                <= 1.001 * t * earlier * (noise_quantizers(run)[0].start - 2 + 1)
            )
    run.begin_step(12)
    run.apply_schedules()
    batch = run.problem.batch(12)
    terms = run.method.losses(run, run.model(batch.inputs), batch)
    t = 5.0 * (12 / 30 - 0.1) / 0.5
    assert float(terms["penalty"].detach()) == pytest.approx(
        t * sum(logged) / 13 * float(excess_bits(run).detach()), rel=1e-5
    )


def test_micro_batches_give_the_same_mean_loss() -> None:
    means = []
    for parts in (1, 4):
        run = start_toy_run("int4")
        run.passes.micro_batches = parts
        take_step(run, 0)
        means.append(float(run.state["seen"]))
    assert means[0] == pytest.approx(means[1], rel=1e-5) and means[0] > 0.5


@pytest.mark.parametrize("pressure", [0.0, 4.0])
def test_t_is_zero_in_the_warm_up_and_linear_after(pressure: float) -> None:
    run = start_toy_run(steps=100, pressure=pressure, warmup=0.2)
    # The published rule adds twice the rate.
    run.recipes = (Recipe(steps=100, lr=0.05, schedule="constant", warmup=0.0),)
    track: list[float] = []
    for step in range(100):
        run.begin_step(step)
        run.apply_schedules()
        track += run.numbers("t")
    assert all(t == 0 for t in track[:20])
    growth = {round(b - a, 9) for a, b in pairwise(track[20:])}
    assert growth == {0.1 if pressure == 0 else round(pressure / 40, 9)}
    if pressure:
        assert track[60] == pytest.approx(pressure)


# ---- the whole ----


def test_rates_and_decay_of_its_parameters() -> None:
    """log2 s and log2 q stay in the first step, and then go (start − target)·bits_rate a run.

    Neither of them decays.
    """
    run = start_toy_run("int4", "int4", steps=50, bits_rate=4.0)
    groups = {group["name"]: group for group in run.optimizer.param_groups}  # type: ignore[union-attr]
    assert len(groups["bits"]["params"]) == len(run.weights) + 2 * len(run.inputs)
    assert (
        groups["bits"]["weight_decay"]
        == 0.0
        == groups.get("quantizer", groups["bits"])["weight_decay"]
    )
    steps = [q.log_step for q in run.inputs.values() if isinstance(q, Noise)]
    before = [p.detach().clone() for p in steps]
    take_step(run, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, steps, strict=True))
    take_step(run, 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, steps, strict=True))
    (scale,) = run.numbers("bits")
    assert scale * run.recipe.lr * run.steps == pytest.approx(4.0 * 3.0)
    same = start_toy_run("int4", bits_rate=0.0)
    same.begin_step(1)
    same.apply_schedules()
    assert same.numbers("bits") == [1.0]
    assert same.scheduled.keys().isdisjoint({"decay", "plain", "quantizer"})


@pytest.mark.parametrize(
    ("weights", "activations"), [("int2", None), ("int4", "int4"), ("int1", None)]
)
def test_a_run_converges_by_sixty_percent_and_is_not_forced(
    weights: str, activations: str | None
) -> None:
    run = start_toy_run(weights, activations, steps=100)
    run.model.train()
    forced, losses = [], []
    for step in range(100):
        terms, _, _ = take_step(run, step)
        losses.append(float(terms["task"]))
        forced.append(run.method.metrics(run)["forced"])
    assert forced[0] == 1.0 and forced[-1] == 0.0 and 0.0 in forced[: int(0.6 * 100)]
    assert sum(losses[-10:]) / 10 < 0.7 * losses[0]
    batch = run.problem.batch(-1)
    for stack in run.weights:
        x = stack.stack().detach()
        assert torch.equal(stack.quantizer.train()(x), stack.quantizer.eval()(x))
    assert math.isfinite(float(run.problem.loss(run.model(batch.inputs), batch).detach()))


def test_bits_stay_between_the_start_and_what_ships() -> None:
    """Weights never have more than start_bits, whatever their range does.

    Inputs use all codes of the format.
    """
    run = start_toy_run("int4", "int4")
    take_step(run, 0)
    with torch.no_grad():
        for layer in run.problem.layers().values():
            layer.weight.mul_(100.0)
        for q in run.inputs.values():
            q.log_range.copy_(q.log_step + 1.0)  # type: ignore[operator, union-attr]
    take_step(run, 1)
    for stack in run.weights:
        assert float(stack.quantizer.bits(stack.stack()).detach().max()) <= 7.0001  # type: ignore[operator]
    for q in run.inputs.values():
        assert 3.99 < float(q.bits(torch.zeros(1)).detach()) < 4.0  # type: ignore[operator]


def test_a_run_that_does_not_converge_reports_that_it_is_forced() -> None:
    run = start_toy_run("int2", "int2", steps=10, bits_rate=0.0, start_bits=10.0)
    for step in range(10):
        take_step(run, step)
    actual = run.method.metrics(run)
    assert actual["forced"] == 1.0 and actual["bits_weight"] > 9 and actual["bits_activation"] > 9
    for _, layer, grid in run.network.grids():
        assert int(grid.codes(layer.matrix()).max()) == 3


def test_rho_cools_every_rate_while_all_codes_fit() -> None:
    run = start_toy_run("int4", rho=0.5, bits_rate=0.0)
    assert run.optimizer is not None
    groups = [group["name"] for group in run.optimizer.param_groups]
    take_step(run, 0)
    set_all_bits(run, 3.0)
    for step, share in ((1, 1.0), (2, 0.5), (3, 0.25)):
        run.begin_step(step)
        run.apply_schedules()
        assert all(run.numbers(name) == [share] for name in groups)


@pytest.mark.parametrize("activations", [None, "int4"])
def test_on_a_distilling_board_its_loss_is_the_distance_from_a_fixed_reference(
    activations: str | None,
) -> None:
    run = start_toy_run("int4", activations)
    run.reference, run.distills = frozen_copy(run.model), True
    batch = run.problem.batch(3)
    assert batch.targets is not None
    before = run.reference(batch.inputs)
    for step in range(5):
        terms, _, _ = take_step(run, step)
        assert set(terms) == {"task", "penalty"}
    assert torch.equal(run.reference(batch.inputs), before)
    assert not torch.equal(run.model(batch.inputs), before)
    # The labels do not matter: those of other samples give the same loss.
    permuted = dataclasses.replace(batch, targets=batch.targets.flip(0))
    output = run.model(batch.inputs)
    a, b = (run.method.losses(run, output, x)["task"] for x in (batch, permuted))
    expected = run.problem.distances(output, before, batch).mean()
    assert torch.equal(a, expected) and float(expected.detach()) > 0
    assert torch.equal(a, b) and not torch.equal(
        run.problem.loss(output, batch), run.problem.loss(output, permuted)
    )


def test_a_run_goes_on_from_its_checkpoint_with_the_state_of_the_method(tmp_path: Path) -> None:
    """This includes t and the cooling, which the published method follows from step to step."""
    run, other = (start_toy_run("int4", steps=20, pressure=0.0, rho=0.9) for _ in range(2))
    for step in range(8):
        take_step(run, step)
    save_checkpoint(run, 8, 1.0, tmp_path / "state")
    assert load_checkpoint(other, tmp_path / "state") == (8, 1.0)
    assert set(run.state) == {"seen", "now", "t", "cooling"} and float(run.state["seen"]) > 1
    for step in range(8, 10):
        take_step(run, step)
        take_step(other, step)
    for name, tensor in run.state.items():
        assert torch.equal(tensor, other.state[name]), name
    for mine, others in zip(run.parameters, other.parameters, strict=True):
        assert torch.equal(mine, others)


@pytest.mark.parametrize("fmt", ["int1", "int2", "int8"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_degenerate_weights_give_finite_numbers(fmt: str, granularity: str) -> None:
    g = draw_normal(30).float()
    outlier = draw_normal(31).float()
    outlier[0, 0] = 1e6
    spike = torch.zeros(SHAPE)
    spike[1, 1] = 1.0
    for case in (
        torch.zeros(SHAPE),
        torch.full(SHAPE, 0.3),
        spike,
        outlier,
        outlier / 1e12,
        draw_normal(32).half(),
    ):
        q = make_weight_quantizer(fmt, granularity)
        q.calibrate(case.float(), first=True)
        leaf = case.float().requires_grad_()
        y = q(leaf)
        (y * g).sum().backward()
        (q.bits(leaf) - 1).relu().mean().backward()
        q.confine(case.float())
        for t in (
            y,
            leaf.grad,
            q.log_step,
            q.log_step.grad,
            q.eval()(case),
            q.grid(case.float()).scale,
        ):
            assert t is not None and torch.isfinite(t).all()
        assert (q.grid(case.float()).scale > 0).all()
        if case.float().std() == 0:
            assert torch.equal(q(case), case.float())


def test_a_group_that_starts_at_zero_takes_its_step_when_it_has_a_range() -> None:
    q = make_weight_quantizer("int4", "tensor", (1, 64)).double()
    q.calibrate(torch.zeros(1, 64, dtype=torch.float64), first=True)
    x = 100 * draw_normal(33, (1, 64))
    assert float(q.bits(x).detach()) > 10
    q.confine(x)
    assert float(q.bits(x).detach()) == pytest.approx(7.0)
    q.confine(x / 1000)
    assert float(q.bits(x).detach()) == pytest.approx(7.0)  # never finer again


def test_stacked_sites_get_the_bits_that_they_get_alone() -> None:
    x, g = draw_normal(34, (3, *SHAPE)).float(), draw_normal(35, (3, *SHAPE)).float()
    stacked = make_weight_quantizer("int3", shape=(3, *SHAPE))
    stacked.set_seed(0, ["a", "b", "c"])
    stacked.calibrate(x, first=True)
    actual = compute_gradients(stacked, x, g)
    for index, name in enumerate("abc"):
        alone = make_weight_quantizer("int3")
        alone.set_seed(0, [name])
        alone.calibrate(x[index], first=True)
        assert torch.equal(stacked.relax(x)[index], alone.relax(x[index]))
        for key, grad in compute_gradients(alone, x[index], g[index]).items():
            assert torch.equal(grad, actual[key][index]), key


def test_parameters_out_of_their_domain_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda kind, name, where="": GDNSQ)
    for params, message in (
        ({"pressure": -1.0}, "pressure must not be negative, not -1.0"),
        ({"bits_rate": -0.5}, "bits_rate must not be negative, not -0.5"),
        ({"start_bits": 40}, "start_bits must be 0 or from 1 to 24"),
        ({"warmup": 0.6}, "warmup must be in [0, 0.6), not 0.6"),
        ({"rho": 0.0}, "rho must be in (0, 1], not 0.0"),
        ({"scale_gradient": "relased"}, "did you mean released"),
        ({"presure": 1.0}, "did you mean pressure"),
    ):
        with pytest.raises(UsageError) as error:
            registry.build("methods", "gdnsq", params)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_a_site_without_a_rule_is_refused_in_one_sentence() -> None:
    assert "not equally spaced" in str(GDNSQ().unsupported(make_site("fp4")))
    assert "one range for a layer's input" in str(
        GDNSQ().unsupported(make_site("int4", "channel", role="activation"))
    )
    for fmt in INTS:
        assert (
            GDNSQ().unsupported(make_site(fmt)) is None
            and GDNSQ().unsupported(make_site(fmt, "tensor", role="activation")) is None
        )
