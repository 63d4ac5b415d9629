"""PEGE is compared with its equations: the schedule, the mix, its masks, and the gradient."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qbench_methods.ewgs import EWGS
from qbench_methods.pege import PEGE, replacement_rate
from torch import Tensor

from qbench import Quantizer, Site, load_method
from qbench.api.batch import Batch
from qbench.checks.method_kit import Kit
from qbench.errors import UsageError
from qbench.plugins import registry
from qbench.quant.formats import FORMATS
from qbench.runs.config import Recipe
from qbench.training.loop import probe_if_due, take_step
from qbench.training.run import TrainingRun
from tests.methods.prepared_runs import COMPILERS, prepare_run_of

SHAPE = (4, 64)


def make_weight_quantizer(
    fmt: str = "int4",
    granularity: str = "channel",
    shape: tuple[int, ...] = SHAPE,
    rate: float = 0.5,
    u: float = 0.3,
    **fields: Any,
) -> Any:
    """Return a quantizer that replaces a share of `rate`, with the weight `u` of the error."""
    q = PEGE(**fields).quantizer(Site("w", "weight", fmt, granularity, shape))
    q.set_seed(0, [f"w{i}" for i in range(math.prod(shape[:-2]))])
    set_rate(q, rate)
    q.error_weight = torch.full_like(q.error_weight, u, dtype=torch.float64)
    return q


def set_rate(q: Quantizer, rate: float) -> None:
    """Set the share of elements that are replaced, as a run does before each step."""
    q.scalars["replaced"] = torch.tensor(rate)


def draw_normal(
    seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return normally distributed numbers, which depend on nothing but the seed."""
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def compute_gradient(q: Quantizer, x: Tensor, g: Tensor) -> Tensor:
    """Return the gradient in `x`, where `g` is the gradient at the output."""
    leaf = x.clone().requires_grad_()
    q.relax(leaf).backward(g)
    assert leaf.grad is not None
    return leaf.grad


def start_run(
    method: PEGE,
    weights: str = "int4",
    activations: str | None = None,
    task: str = "toy",
    steps: int = 60,
) -> TrainingRun:
    """Return a run of the method that is ready for its first step."""
    config = dataclasses.replace(
        Kit("ste", Path()).make_config(weights, activations=activations, steps=steps), task=task
    )
    return prepare_run_of(method, config)


def begin_first_step(run: TrainingRun, batch: Batch) -> None:
    """Do what the loop does before it takes the first step."""
    run.begin_step(0)
    probe_if_due(run, batch)
    run.apply_schedules()


# ---- the schedule ----


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (math.e, [0, 0.1586, 0.3574, 0.6201, 0.8280, 1]),
        (2.0, [0, 0.1375, 0.3219, 0.5850, 0.8074, 1]),
    ],
)
@pytest.mark.parametrize("ramp", [0.25, 0.5, 0.75])
def test_the_rate_follows_the_logarithm(base: float, expected: list[float], ramp: float) -> None:
    actual = [replacement_rate(ramp * t, "log", base, ramp) for t in (0, 0.1, 0.25, 0.5, 0.75, 1)]
    assert actual == pytest.approx(expected, abs=6e-5)
    assert (
        actual[-1]
        == replacement_rate(ramp + 0.01, "log", base, ramp)
        == replacement_rate(1.0, "log", base, ramp)
        == 1.0
    )


def test_the_other_schedules() -> None:
    assert [replacement_rate(t, "linear", 2, 0.5) for t in (0, 0.1, 0.25, 0.5, 0.9)] == [
        0,
        0.2,
        0.5,
        1,
        1,
    ]
    assert [replacement_rate(t, "full", 2, 0.5) for t in (0, 0.3, 1)] == [1, 1, 1]


def test_a_run_sets_the_rate_before_each_step_and_records_it() -> None:
    run = start_run(PEGE(ramp=0.5), activations="int4", steps=60)
    for step, expected in ((0, 0.0), (15, 0.6201), (30, 1.0), (59, 1.0)):
        run.begin_step(step)
        run.apply_schedules()
        assert [float(q.scalars["replaced"]) for q in run.quantizers()] == pytest.approx(
            [expected] * 6, abs=6e-5
        )  # type: ignore[arg-type]
        assert run.method.metrics(run)["replaced"] == pytest.approx(expected, abs=6e-5)


# ---- the mix ----


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("base", ["absmax", "mse"])
def test_nothing_replaced_is_full_precision(fmt: str, base: str) -> None:
    x, g = draw_normal(1, dtype=torch.float32), draw_normal(2, dtype=torch.float32)
    raw = make_weight_quantizer(fmt, rate=0.0, base=base, raw_unreplaced=True)
    assert torch.equal(raw.relax(x), x) and torch.equal(compute_gradient(raw, x, g), g)
    clipped = make_weight_quantizer(fmt, rate=0.0, base=base)
    grid = clipped.grid(x)
    fits = x.abs() <= grid.scale * grid.levels.high
    assert torch.equal(clipped.relax(x)[fits], x[fits]) and torch.equal(
        compute_gradient(clipped, x, g)[fits], g[fits]
    )
    if base == "absmax" and fmt != "int1":
        torch.testing.assert_close(clipped.relax(x), x, rtol=3e-7, atol=0)
        assert torch.equal(compute_gradient(clipped, x, g), g)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("base", ["absmax", "mse", "hessian"])
def test_everything_replaced_without_a_pull_is_clipped_ste(fmt: str, base: str) -> None:
    x, g = draw_normal(3, dtype=torch.float32), draw_normal(4, dtype=torch.float32)
    q, ste = (
        make_weight_quantizer(fmt, rate=1.0, base=base, kappa=0.0),
        load_method("ste")(scale=base).quantizer(Site("w", "weight", fmt, "channel", SHAPE)),
    )  # type: ignore[call-arg]
    assert torch.equal(q.relax(x), ste.relax(x)) and torch.equal(
        compute_gradient(q, x, g), compute_gradient(ste, x, g)
    )


@given(
    st.integers(0, 10_000),
    st.sampled_from(FORMATS),
    st.sampled_from(["absmax", "mse"]),
    st.floats(0, 1),
    st.booleans(),
)
def test_every_element_is_the_clipped_one_or_its_level(
    seed: int, fmt: str, base: str, rate: float, raw: bool
) -> None:
    x = draw_normal(seed)
    q = make_weight_quantizer(fmt, rate=rate, base=base, raw_unreplaced=raw)
    grid, y = q.grid(x), q.relax(x)
    other = x if raw else x.clamp(-grid.scale * grid.levels.high, grid.scale * grid.levels.high)
    level = grid.snap(x)
    assert ((y == level) | (y == other)).all()
    if rate in (0.0, 1.0):
        assert torch.equal(y, level if rate else other)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
def test_the_share_replaced_is_the_rate(rate: float) -> None:
    shape = (2, 200, 500)
    x, q = draw_normal(5, shape), make_weight_quantizer("int4", shape=shape, rate=rate)
    replaced_share = (q.relax(x) == q.grid(x).snap(x)).double().mean((-2, -1))
    spread = math.sqrt(rate * (1 - rate) / 100_000)
    assert (
        (replaced_share - rate).abs() < 4 * spread + 1e-4
    ).all()  # an element on its level counts as hit: the largest of each row


def test_masks_are_keyed_by_seed_site_and_step_and_by_nothing_else() -> None:
    x, before = draw_normal(6), torch.get_rng_state()

    def mix_at(seed: int = 0, site: str = "w", step: int = 7) -> Tensor:
        q = make_weight_quantizer()
        q.set_seed(seed, [site])
        q.step.fill_(step)
        q.relax(x)
        return q.relax(x)

    assert torch.equal(mix_at(), mix_at())
    assert not any(
        torch.equal(mix_at(), other) for other in (mix_at(seed=1), mix_at(site="v"), mix_at(step=8))
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_shipping_depends_on_no_schedule_and_draws_nothing() -> None:
    x = draw_normal(7)
    q = make_weight_quantizer(rate=0.2).eval()
    first = q(x)
    set_rate(q, 0.9)
    q.step.fill_(5)
    q.set_seed(3, ["other"])
    assert torch.equal(q(x), first) and torch.equal(first, q.grid(x).snap(x))


# ---- the gradient ----


@pytest.mark.parametrize("fmt", ["int1", "int2", "int4", "fp4"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block-32"])
@pytest.mark.parametrize("base", ["absmax", "mse", "affine"])
def test_the_gradient_is_that_of_the_loss_form(fmt: str, granularity: str, base: str) -> None:
    """The loss form is L(s·(x_n + sg[x_m − x_n])) + (u/2)·Σ M·(x_n − sg[x_q])².

    Autograd differentiates it, with an L that is not linear.
    """
    if (fmt, base) == ("fp4", "affine"):
        return
    q, x = make_weight_quantizer(fmt, granularity, base=base, u=0.7), draw_normal(8)
    grid, group = q.grid(x), q.site.grouping.group
    offset = 0.0 if grid.offset is None else grid.offset

    def loss(y: Tensor) -> Tensor:
        return (torch.sin(3 * y) * draw_normal(9)).sum() + y.square().sum()

    leaf = x.clone().requires_grad_()
    loss(q.relax(leaf)).backward()
    other = x.clone().requires_grad_()
    z, code = (group(other) - offset) / grid.scale, (group(grid.snap(x)) - offset) / grid.scale
    within = (z - z.clamp(grid.levels.low, grid.levels.high)).abs() < (1.0 if fmt == "fp4" else 0.5)
    z = torch.where(within, z, z.detach())
    x_n = z + (z.clamp(grid.levels.low, grid.levels.high) - z).detach()
    mask = group(q.random(x) < 0.5)
    x_m = torch.where(mask, code, x_n).detach()
    y = (grid.scale * (x_n + (x_m - x_n).detach()) + offset).reshape(x.shape)
    (loss(y) + 0.7 / 2 * (mask * (x_n - code)).square().sum()).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-10, atol=1e-10)
    if base == "mse" and fmt == "int2":
        assert not within.all()  # the searched scale clips


def test_the_penalty_adds_nothing_to_the_scale() -> None:
    """Under absmax the scale depends on the largest element only.

    That element gets its own gradient alone, however strong the pull is.
    """
    x, g = draw_normal(10), draw_normal(11)
    largest = x.abs() == x.abs().amax(-1, keepdim=True)
    pulled = compute_gradient(make_weight_quantizer(rate=1.0, u=100.0), x, g)
    torch.testing.assert_close(pulled[largest], g[largest], rtol=1e-9, atol=1e-9)
    assert (pulled - g)[~largest].abs().min() > 0


def test_with_everything_replaced_and_the_right_weight_it_is_ewgs() -> None:
    """The weight is u = δ·|g|/(L − 1) in step units, on the affine grid that both have."""
    x, g, delta = draw_normal(12, (1, 256)), draw_normal(13, (1, 256)), 0.5
    ewgs = (
        EWGS(delta=delta)
        .quantizer(Site("x", "activation", "int4", "tensor", (1, 256), unsigned=True))
        .double()
    )
    ewgs.low.data.fill_(float(x.min()))
    ewgs.high.data.fill_(float(x.max()))
    ewgs.alpha.data.copy_(ewgs.high - ewgs.low)
    pege = make_weight_quantizer("int4", "tensor", (1, 256), rate=1.0, base="affine")
    at_steps = g * pege.grid(x).scale
    pege.error_weight = delta * at_steps.abs() / 15
    actual, expected = compute_gradient(pege, x, g), compute_gradient(ewgs, x, g)
    assert (actual - expected).abs().max() < 1e-12 and (actual - g).abs().max() > 1e-3


def test_clipped_inputs_get_no_gradient_and_replaced_ones_their_pull() -> None:
    q = PEGE().quantizer(Site("x", "activation", "int4", "tensor", (1, 4), unsigned=True))
    q.calibrate(torch.tensor([[0.0, 15.0, 1.0, 1.0]]), first=True)
    set_rate(q, 1.0)
    q.error_weight.fill_(2.0)
    x = torch.tensor([[3.25, 20.0, -4.0, 7.0]])
    assert q.relax(x).tolist() == [[3.0, 15.0, 0.0, 7.0]]
    assert compute_gradient(q, x, torch.ones(1, 4)).tolist() == [[1.5, 0.0, 0.0, 1.0]]


# ---- kappa ----


@pytest.mark.parametrize("schedule", ["log", "full"])
def test_the_first_step_sets_the_weight_of_the_error(schedule: str) -> None:
    """kappa = RMS(x_n − x_q)·u/RMS(g_m).

    The gradient is taken here by another pass, in which nothing is replaced.
    """
    run = start_run(PEGE(kappa=0.3, schedule=schedule), activations="int4")
    batch = run.problem.batch(0)
    begin_first_step(run, batch)
    clipped_inputs: dict[str, Tensor] = {}

    def clipped(name: str, x: Tensor) -> Tensor:
        scale = run.inputs[name].grid(x).scale
        clipped_inputs[name] = x.clamp(max=15 * scale)
        clipped_inputs[name].retain_grad()
        return clipped_inputs[name]

    for name, layer in run.problem.layers().items():
        layer.set_input_quantizer(functools.partial(clipped, name))
    run.problem.loss(run.model(batch.inputs), batch).backward()

    def kappa(x: Tensor, s: Tensor, u: Tensor) -> float:
        z = (x / s).detach()
        assert x.grad is not None
        return float(
            (z - z.round()).square().mean().sqrt() * u / (s * x.grad).square().mean().sqrt()
        )

    for stack in run.weights:
        for index, layer in enumerate(stack.layers):
            scale = layer.weight.detach().abs().amax(1, keepdim=True) / 7
            assert kappa(layer.weight, scale, stack.quantizer.error_weight[index]) == pytest.approx(
                0.3, rel=1e-4
            )
    for name, q in run.inputs.items():
        assert kappa(
            clipped_inputs[name], q.grid(clipped_inputs[name]).scale, q.error_weight
        ) == pytest.approx(0.3, rel=1e-4)
    assert len(clipped_inputs) == 3 and all(
        float(q.scalars["replaced"]) == (schedule == "full") for q in run.quantizers()
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("fmt", ["int1", "int2", "int4"])
@pytest.mark.parametrize("base", ["absmax", "mse", "hessian"])
def test_the_error_weight_is_measured_on_the_weights_as_they_are(base: Any, fmt: str) -> None:
    """Clipped weights would have another grid."""
    run = start_run(PEGE(kappa=0.3, base=base), weights=fmt)
    batch = run.problem.batch(0)
    begin_first_step(run, batch)
    clipped_weights: list[tuple[Any, Tensor, Tensor]] = []
    for stack in run.weights:
        weights = stack.stack().detach()
        grid = stack.quantizer.grid(weights)
        for index, layer in enumerate(stack.layers):
            scale, x = grid[index].scale, weights[index]
            layer.used = x.clamp(grid.levels.low * scale, grid.levels.high * scale).requires_grad_()
            error = (layer.used.detach() - grid[index].snap(x)) / scale
            clipped_weights.append((layer, error * stack.quantizer.error_weight[index], scale))  # type: ignore[index, operator]
    run.problem.loss(run.model(batch.inputs), batch).backward()
    for layer, pull, scale in clipped_weights:
        realised = pull.square().mean().sqrt() / (scale * layer.used.grad).square().mean().sqrt()
        assert float(realised) == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize("schedule", ["log", "full"])
def test_weights_that_start_at_zero_are_measured_later(schedule: Any) -> None:
    run = start_run(PEGE(schedule=schedule), task="linreg", steps=100)
    run.recipes = (Recipe(steps=100, lr=0.1, clip=0.0),)
    for step in range(31):
        take_step(run, step)
        u = float(run.weights[0].quantizer.error_weight)
        assert (u == 0) == (step < 10) and math.isfinite(u)
    assert u > 0


def test_the_decoupled_pull_is_a_step_after_the_optimizer() -> None:
    plain, pulled = (start_run(PEGE(kappa=k, decoupled=True, schedule="full")) for k in (0.0, 0.5))
    for run in (plain, pulled):
        run.recipes = (Recipe(steps=60, batch=64, lr=0.01, schedule="constant", warmup=0.0),)
        take_step(run, 0)
    for (_, a, grid), (_, b, _) in zip(plain.network.grids(), pulled.network.grids(), strict=True):
        w = a.weight.detach()
        torch.testing.assert_close(
            b.weight.detach(), w - 0.01 * 0.5 * (w - grid.snap(w)), rtol=0, atol=1e-7
        )
        assert not torch.equal(a.weight, b.weight)
    assert all(float(q.error_weight.sum()) == 0 for q in pulled.quantizers())  # type: ignore[operator]


def test_the_pull_brings_weights_to_their_levels() -> None:
    def distance(kappa: float) -> float:
        run = start_run(PEGE(kappa=kappa, schedule="full"))
        run.recipes = (Recipe(steps=60, batch=64, lr=0.01),)
        for step in range(60):
            take_step(run, step)
        gaps = [
            ((w := layer.weight.detach()) - grid.snap(w)).div(grid.scale).square().mean()
            for _, layer, grid in run.network.grids()
        ]
        return float(sum(gaps)) / len(gaps)

    assert distance(1.0) < 0.8 * distance(0.0)


# ---- domains, degenerate tensors, compilation ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kappa": -0.1}, "kappa must not be negative"),
        ({"kappa": math.nan}, "kappa"),
        ({"ramp": 0.0}, "ramp must be in (0, 1]"),
        ({"ramp": 1.5}, "ramp"),
        ({"log_base": 1.0}, "log_base must be above 1"),
        ({"log_base": math.inf}, "log_base"),
    ],
)
def test_values_out_of_domain_are_refused(fields: dict[str, float], message: str) -> None:
    assert message in str(PEGE(**fields).check()) and PEGE().check() is None  # type: ignore[arg-type]


def test_a_codebook_has_no_affine_grid() -> None:
    site = Site("w", "weight", "fp4", "channel", SHAPE)
    assert (
        PEGE(base="affine").unsupported(site) == "fp4 is a codebook, which has no affine grid"
        and PEGE().unsupported(site) is None
    )


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block-32"])
@pytest.mark.parametrize("base", ["absmax", "mse", "affine"])
def test_degenerate_weights_give_finite_numbers(fmt: str, granularity: str, base: str) -> None:
    if (fmt, base) == ("fp4", "affine"):
        return
    x = draw_normal(14, dtype=torch.float32)
    outlier = x.clone()
    outlier[:, 3] = 1e6
    for tensor in (torch.zeros(SHAPE), torch.full(SHAPE, -0.3), outlier, x.half(), 1e-20 * x):
        q = make_weight_quantizer(fmt, granularity, base=base)
        q.error_weight = q.error_weight.float()
        leaf = tensor.clone().requires_grad_()
        y = q(leaf)
        y.sum().backward()
        assert (
            y.dtype == torch.float32 and torch.isfinite(y).all() and torch.isfinite(leaf.grad).all()
        )


def test_stacked_sites_get_the_bits_that_they_get_alone() -> None:
    x, g = draw_normal(15, (3, *SHAPE), torch.float32), draw_normal(16, (3, *SHAPE), torch.float32)
    stacked = make_weight_quantizer(shape=(3, *SHAPE))
    grad = compute_gradient(stacked, x, g)
    for index in range(3):
        alone = make_weight_quantizer()
        alone.set_seed(0, [f"w{index}"])
        assert torch.equal(stacked.relax(x)[index], alone.relax(x[index])) and torch.equal(
            grad[index], compute_gradient(alone, x[index], g[index])
        )


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_compiled_gradient_is_the_eager_one(compiler: str) -> None:
    x, g = draw_normal(17, dtype=torch.float32), draw_normal(18, dtype=torch.float32)
    q = make_weight_quantizer()
    q.error_weight = q.error_weight.float()
    leaf = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = torch.compile(q, backend=compiler, dynamic=False)
        for step in range(2):
            q.step.fill_(step)
            leaf.grad = None
            y = compiled(leaf)
            y.backward(g)
            torch.testing.assert_close(y, q(x), rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(leaf.grad, compute_gradient(q, x, g), rtol=1e-5, atol=1e-5)
            assert not torch.allclose(leaf.grad, g, atol=1e-2)


@pytest.mark.parametrize(
    "given",
    [
        {"kappa": 0},
        {"schedule": "full"},
        {"schedule": "linear"},
        {"ramp": 0.25},
        {"decoupled": True},
    ],
)
def test_every_ablation_can_be_asked_for_in_a_sweep_file(
    given: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "load", lambda *_: PEGE)
    method = registry.build(
        "methods", "pege", {**given, "raw_unreplaced": True, "base": "mse", "log_base": 2}
    )
    assert method == PEGE(**given, raw_unreplaced=True, base="mse", log_base=2.0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="did you mean"):
        registry.build("methods", "pege", {"kapa": 0.1})


def test_once_everything_is_replaced_nothing_is_drawn_and_nothing_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, g = draw_normal(3), draw_normal(4)
    q = make_weight_quantizer(rate=1.0)
    before = q.relax(x), compute_gradient(q, x, g)
    q.mask_now = "all"
    monkeypatch.setattr(type(q), "random", lambda *_: pytest.fail("a draw that nobody needs"))
    assert torch.equal(q.relax(x), before[0]) and torch.equal(compute_gradient(q, x, g), before[1])
