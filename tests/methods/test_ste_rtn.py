"""STE and RTN are compared with their formulas, and all methods with what they share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qbench import Quantizer, Site, load_method
from qbench.api.batch import Batch
from qbench.checks.method_kit import Kit
from qbench.errors import UsageError
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.prepare import prepare_run
from qbench.plugins.registry import build, plugins
from qbench.quant.formats import FORMATS
from qbench.quant.scale_rules import absmax_scale, searched_scale
from qbench.quant.scaled_quantizer import ScaledQuantizer
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.plan import make_plan
from qbench.training.calibration import finalize
from qbench.training.loop import take_step
from qbench.training.setup import open_problem

SHAPE = (4, 16)


def make_quantizer(
    name: str,
    fmt: str,
    shape: tuple[int, ...] = SHAPE,
    role: str = "weight",
    unsigned: bool = False,
    **params: object,
) -> Quantizer:
    """Return a method's quantizer of a weight, or of an input."""
    granularity = "channel" if role == "weight" else "tensor"
    actual = build("methods", name, params).quantizer(
        Site("w", role, fmt, granularity, shape, unsigned)
    )  # type: ignore[arg-type]
    assert isinstance(actual, Quantizer)
    return actual


def draw_normal(seed: int, double: bool = False) -> Tensor:
    """Return normally distributed numbers, which depend on nothing but the seed."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x if double else x.float()


@given(st.integers(0, 10_000), st.sampled_from(FORMATS), st.sampled_from(["absmax", "mse"]))
def test_ste_is_idempotent_odd_and_monotone(seed: int, fmt: str, scale: str) -> None:
    q, x = make_quantizer("ste", fmt, scale=scale), draw_normal(seed)
    grid = q.grid(x)
    assert torch.equal(grid.snap(q.relax(x)), q.relax(x))
    if fmt != "int1":
        assert torch.equal(q.relax(-x), -q.relax(x))
        assert (
            q.relax(torch.where(x.abs() < 0.01, torch.zeros_like(x), x))[x.abs() < 0.01] == 0
        ).all()
    order = x.argsort(-1)
    assert (q.relax(x).gather(-1, order).diff(dim=-1) >= 0).all()
    if fmt != "fp4" and scale == "absmax" and fmt != "int1":
        assert ((q.relax(x) - x).abs() <= grid.scale / 2 * (1 + 1e-5)).all()


@given(
    st.integers(0, 10_000),
    st.sampled_from([f"int{b}" for b in range(1, 9)]),
    st.sampled_from(["absmax", "mse"]),
    st.booleans(),
)
def test_the_gradient_mask_is_that_of_the_rounded_code(
    seed: int, fmt: str, scale: str, clip_gradient: bool
) -> None:
    q, x, g = (
        make_quantizer("ste", fmt, scale=scale, clip_gradient=clip_gradient),
        draw_normal(seed, double=True).requires_grad_(),
        draw_normal(seed + 1, double=True),
    )
    q.relax(x).backward(g)
    s = q.grid(x.detach()).scale
    if fmt == "int1":
        fits = (torch.round(x / s - 0.5) + 0.5).abs() <= 0.5
    else:
        fits = torch.round(x / s).abs() <= 2 ** (int(fmt[3:]) - 1) - 1
    assert x.grad is not None
    assert torch.equal(x.grad, g if clip_gradient else g * fits)


def test_a_searched_scale_clips() -> None:
    """The test above could not fail otherwise."""
    q, x = make_quantizer("ste", "int2", scale="mse"), draw_normal(0)
    assert not q.grid(x).needs_no_clipping(x).all()


@pytest.mark.parametrize("fmt", ["int2", "int4", "int8"])
def test_the_gradient_through_the_scale_is_that_of_the_smooth_part(fmt: str) -> None:
    """The gradient is dŵ = dw + (n − w/s)·ds, with ds by finite differences.

    ŵ = s(w)·n, where the codes n are held fixed and rounding has slope 1.
    """
    q, x, g = (
        make_quantizer("ste", fmt, scale_gradient=True),
        draw_normal(7, double=True),
        draw_normal(8, double=True),
    )
    leaf = x.clone().requires_grad_()
    q.relax(leaf).backward(g)
    assert torch.equal(q.relax(x), q.grid(x).snap(x)) or torch.allclose(
        q.relax(x), q.grid(x).snap(x), rtol=1e-14
    )
    site, levels = q.site, q.site.levels()
    s = absmax_scale(x, site, levels)
    code_error = (torch.round(x / s) - x / s) * g
    expected, h = g.clone(), 1e-6
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            up, down = x.clone(), x.clone()
            up[row, column] += h
            down[row, column] -= h
            slope = (absmax_scale(up, site, levels) - absmax_scale(down, site, levels)) / (2 * h)
            expected[row, column] += (code_error.sum(-1, keepdim=True) * slope).sum()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(leaf.grad, g)


def test_scale_gradient_needs_absmax() -> None:
    with pytest.raises(UsageError, match="ste: scale_gradient needs the scale rule absmax"):
        build("methods", "ste", {"scale_gradient": True, "scale": "mse"})


@pytest.mark.parametrize("unsigned", [False, True])
def test_inputs_keep_the_widest_range_they_were_shown(unsigned: bool) -> None:
    q = make_quantizer("ste", "int4", role="activation", shape=(1, 4), unsigned=unsigned)
    q.calibrate(torch.tensor([[0.0, 3.0, 0.5, 0.1]]), first=True)
    q.calibrate(torch.tensor([[1.0, 2.0, 0.5, 0.1]]), first=False)
    top = 15 if unsigned else 7
    x = torch.tensor([[3.0, 9.0, 1.0, -1.0]], requires_grad=True)
    y = q.relax(x)
    assert y.detach()[0, :2].tolist() == pytest.approx([3.0, 3.0]) and len(
        q.grid(x).levels.units()
    ) == (16 if unsigned else 15)
    assert float(y.detach()[0, 2]) == pytest.approx(round(1.0 * top / 3) * 3 / top)
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1.0, 0.0, 1.0, 0.0 if unsigned else 1.0]]
    q.calibrate(torch.tensor([[0.0, 1.0, 0.5, 0.1]]), first=True)
    assert float(q.eval()(x.detach())[0, 1]) == 1.0


@pytest.mark.parametrize(("grid", "levels"), [("symmetric", 3), ("affine", 4), ("midrise", 4)])
def test_rtn_has_every_grid(grid: str, levels: int) -> None:
    q, x = make_quantizer("rtn", "int2", grid=grid), draw_normal(3)
    assert q.grid(x).levels.count == levels
    snapped = q.grid(x).snap(x)
    if grid == "affine":
        assert torch.allclose(snapped.amin(-1), x.amin(-1)) and torch.allclose(
            snapped.amax(-1), x.amax(-1)
        )
    if grid == "midrise":
        assert (snapped != 0).all()


def test_rtn_refuses_grids_that_a_codebook_lacks() -> None:
    method = load_method("rtn")(grid="affine")  # type: ignore[call-arg]
    assert (
        method.unsupported(Site("w", "weight", "fp4", "channel", SHAPE))
        == "fp4 is a codebook, which has no affine grid"
    )
    with pytest.raises(UsageError, match="does not apply"):
        build("methods", "rtn", {"grid": "affine", "scale": "mse"})


def test_a_searched_scale_beats_absmax() -> None:
    """This is why beating absmax RTN proves little."""
    x = draw_normal(4)
    for fmt in ("int2", "int3", "int4"):
        error = {
            s: float((make_quantizer("rtn", fmt, scale=s).grid(x).snap(x) - x).square().sum())
            for s in ("absmax", "mse")
        }
        assert error["mse"] < error["absmax"]


def test_a_searched_scale_stays_a_fraction_of_the_live_absmax_until_the_next_calibration() -> None:
    x, other = draw_normal(4), draw_normal(5)
    q = make_quantizer("ste", "int3", scale="mse")
    live = q.grid(x).scale
    q.calibrate(x, first=True)
    assert torch.equal(q.grid(x).scale, live) and torch.equal(q.grid(4 * x).scale, 4 * live)
    kept = q.grid(other).scale
    q.calibrate(other, first=True)
    best = q.grid(other).scale
    assert not torch.equal(kept, best) and torch.equal(
        best, make_quantizer("ste", "int3", scale="mse").grid(other).scale
    )


@pytest.mark.parametrize(("method", "field"), [("ste", "scale"), ("rr", "scale"), ("pege", "base")])
@pytest.mark.parametrize("fmt", ["int2", "int4", "fp4"])
def test_a_learned_scale_starts_at_the_searched_one_and_has_the_gradient_of_lsq(
    method: str, field: str, fmt: str
) -> None:
    """It is compared with LSQ as its paper writes it.

    A detached difference hides the rounding from autograd.
    """
    q, x, g = (
        make_quantizer(method, fmt, **{field: "learned"}).double(),
        draw_normal(7, double=True),
        draw_normal(8, double=True),
    )
    assert isinstance(q, ScaledQuantizer)
    q.calibrate(x, first=True)
    assert torch.equal(q.size, searched_scale(x, q.site, q.levels).to(q.size.dtype))
    with torch.no_grad():
        q.size.mul_(0.8)
        if method == "pege":
            q.scalars["replaced"] = torch.ones(())
    leaf = x.clone().requires_grad_()
    value = q.relax(leaf)
    value.backward(g)
    s = q.size.detach().clone().requires_grad_()
    low, high = q.levels.low, q.levels.high
    clipped = torch.clamp(x / s, low, high)
    y = (clipped + (value.detach() / s.detach() - clipped).detach()) * s
    expected = torch.autograd.grad((y * g).sum(), s)[0] / (SHAPE[-1] * high) ** 0.5
    assert q.size.grad is not None and leaf.grad is not None
    torch.testing.assert_close(q.size.grad, expected)
    assert torch.equal(leaf.grad != 0, q.grid(x).needs_no_clipping(x))


def test_a_learned_scale_is_trained_without_decay_and_calibrated_once(tmp_path: Path) -> None:
    config = Kit("ste", tmp_path).make_config("int2", steps=20)
    config = dataclasses.replace(config, method_params={**config.method_params, "scale": "learned"})
    run = prepare_run(
        Assignment(config, tmp_path),
        Execution(),
        open_problem(config, torch.device("cpu"))[1],
        torch.device("cpu"),
    )
    start = [b.quantizer.size.detach().clone() for b in run.weights]  # type: ignore[union-attr, operator]
    for step in range(20):
        take_step(run, step)
    moved = [b.quantizer.size.detach().clone() for b in run.weights]  # type: ignore[union-attr, operator]
    run.begin_step(20)
    finalize(run)
    for stack, before, after in zip(run.weights, start, moved, strict=True):
        assert not torch.equal(before, after) and torch.equal(stack.quantizer.size, after)  # type: ignore[arg-type]
    assert run.optimizer is not None
    assert {g["name"]: g["weight_decay"] for g in run.optimizer.param_groups}["quantizer"] == 0


def test_a_run_calibrates_scales_ranges_and_curvature_at_every_tenth_and_at_the_end(
    tmp_path: Path,
) -> None:
    config = Kit("ste", tmp_path).make_config("int2", activations="int4", steps=20)
    config = dataclasses.replace(config, method_params={**config.method_params, "scale": "hessian"})
    run = prepare_run(
        Assignment(config, tmp_path),
        Execution(),
        open_problem(config, torch.device("cpu"))[1],
        torch.device("cpu"),
    )
    quantizer = run.weights[0].quantizer
    assert isinstance(quantizer, ScaledQuantizer)
    changed = []
    for step in range(20):
        before = [
            t.clone() for t in (quantizer.curvature, quantizer.fraction, run.inputs["hidden"].size)
        ]
        take_step(run, step)
        after = (quantizer.curvature, quantizer.fraction, run.inputs["hidden"].size)
        if any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            changed.append(step)
    assert changed == list(range(2, 20, 2))
    curvature = quantizer.curvature.clone()
    run.begin_step(20)
    finalize(run)
    assert not torch.equal(curvature, quantizer.curvature)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"scle": "mse"}, "unknown parameter of method ste 'scle'; did you mean scale"),
        ({"scale": "msee"}, "unknown value 'msee'; did you mean mse"),
        ({"clip_gradient": 1}, "expected bool, not int 1"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(params: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        build("methods", "ste", params)
    assert message in str(error.value) and "\n" not in str(error.value)


PRESETS = [
    (name, preset) for name in sorted(plugins("methods")) for preset in load_method(name).presets
]


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_published_recipe_can_be_planned(name: str, preset: str) -> None:
    text = (
        'board = "p"\ntrack = "as-published"\nmethods = ["fp"]\n'
        'tasks = ["digits"]\nformats = ["int4"]\n'
    )
    plan = make_plan(
        parse_sweep(f'{text}[[method]]\nname = "{name}"\npreset = "{preset}"\n', "p.toml")
    )
    published = load_method(name).presets[preset]
    (cell,) = (c for c in plan.cells if c.label == f"{name} as published ({preset})")
    assert (
        published.source
        and published.recipe.items() <= dataclasses.asdict(cell.example.recipe).items()
    )
    assert published.params.items() <= cell.example.method_params.items()
    assert (
        cell.example.start == (published.start or "scratch") and plan.sweep.track == "as-published"
    )


def test_methods_whose_paper_publishes_a_recipe_have_a_preset() -> None:
    assert {name for name, _ in PRESETS} == {"ewgs", "gdnsq", "lotion", "lsq"}


UNUSUAL_INPUTS = {
    "nothing": torch.zeros(0, 8),
    "zeros": torch.zeros(4, 8),
    "a constant": torch.full((4, 8), 3.0),
    "an outlier": torch.tensor([[1e6, *[1.0] * 7]]),
    "float16": torch.linspace(0, 2, 32).view(4, 8).half(),
    "bfloat16": torch.linspace(0, 2, 32).view(4, 8).bfloat16(),
}


@pytest.mark.parametrize("kind", UNUSUAL_INPUTS)
@pytest.mark.parametrize(
    "name", sorted(n for n in plugins("methods") if not load_method(n).full_precision)
)
def test_unusual_inputs_of_a_layer_give_finite_numbers(name: str, kind: str) -> None:
    """They do so in training and as shipped, by the method's own rule for inputs.

    An empty batch can be computed with, but not calibrated on.
    """
    x = UNUSUAL_INPUTS[kind]
    for fmt, unsigned in ((f, u) for f in ("int1", "int2", "int4", "fp4") for u in (True, False)):
        site = Site("x.input", "activation", fmt, "tensor", (1, 8), unsigned)
        if load_method(name)().unsupported(site):
            continue
        q = load_method(name)().quantizer(site)
        assert q is not None
        q.calibrate(x.float() if x.numel() else torch.rand(4, 8), first=True)
        leaf = x.clone().requires_grad_()
        y = q(leaf)
        y.sum().backward()
        shipped = q.eval()(x)
        assert y.shape == x.shape and all(
            bool(torch.isfinite(t).all()) for t in (y, shipped, leaf.grad)
        )  # type: ignore[arg-type]


def test_calibration_skips_an_empty_batch(tmp_path: Path) -> None:
    config = Kit("ste", tmp_path).make_config("int2", activations="int4")
    run = prepare_run(
        Assignment(config, tmp_path),
        Execution(),
        open_problem(config, torch.device("cpu"))[1],
        torch.device("cpu"),
    )
    full, empty = (
        run.problem.batch(-1),
        Batch(torch.zeros(0, 16), torch.zeros(0, dtype=torch.int64), 0),
    )
    run.network.calibrate_inputs([full])
    expected = run.inputs["hidden"].size.clone()  # type: ignore[union-attr, operator]
    run.network.calibrate_inputs([empty, full, empty])
    assert torch.equal(run.inputs["hidden"].size, expected)  # type: ignore[arg-type]


def test_a_batch_of_zeros_does_not_change_a_range() -> None:
    q = make_quantizer("ste", "int4", role="activation", unsigned=True)
    small = torch.rand(4, 16) / 100
    q.calibrate(small, first=True)
    expected = q.grid(small).scale.clone()
    q.calibrate(torch.zeros(4, 16), first=False)
    assert torch.equal(q.grid(small).scale, expected) and float(expected) < 0.01
