"""Stacked runs that differ in formats, hyper-parameters or recipes have the bits of single runs."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from qbench import load_method
from qbench.errors import QbenchError
from qbench.execution.assignment import Execution
from qbench.execution.execute import execute_group
from qbench.execution.group_policy import INTEGERS, group_sort_key, stacking_kind
from qbench.numerics.batched_math import single_row_linear
from qbench.quant.formats import Format
from qbench.quant.levels import BatchedLevels, Levels
from qbench.runs.config import Quantization, RunConfig
from qbench.training.loop import take_step
from tests.execution.test_stacked_runs import (
    CPU,
    Interrupted,
    config,
    make_assignments,
    outcome,
    prepare_alone,
    prepare_stacked,
    read_curve,
    train_separately,
    train_stacked,
)

RECIPES: tuple[dict[str, Any], ...] = (
    {"lr": 0.01, "weight_decay": 0.1, "clip": 0.5, "warmup": 0.1},
    {"lr": 0.03, "weight_decay": 0.01, "clip": 2.0, "warmup": 0.3, "floor": 0.1},
    {"lr": 0.01, "weight_decay": 0.1, "clip": 1e-3, "warmup": 0.1},
    {"lr": 0.003, "weight_decay": 0.3, "clip": 1.0, "warmup": 0.2},
)
FORMATS = ("int2", "int4", "int3", "int8")
HYPER_PARAMETERS: dict[str, tuple[str, dict[str, Any], dict[str, tuple[float, ...]]]] = {
    "fp": ("fp", {}, {}),
    "ste": ("ste", {}, {}),
    "ste hessian": ("ste", {"scale": "hessian"}, {}),
    "ste learned": ("ste", {"scale": "learned"}, {}),
    "ste through the scale": ("ste", {"scale_gradient": True}, {}),
    "rr": ("rr", {"scale": "mse"}, {}),
    "placebo": ("placebo", {}, {"strength": (0.5, 0.1, 0.9, 0.3)}),
    "lsq": ("lsq", {}, {"rate": (1.0, 0.1, 3.0, 1.0)}),
    "lotion": ("lotion", {}, {"lam": (1.0, 0.3, 7.0, 1e-3)}),
    "gdnsq": ("gdnsq", {}, {"pressure": (10.0, 3.0, 20.0, 1.0), "bits_rate": (6.0, 2.0, 6.0, 3.0)}),
    "gdnsq from its bits": ("gdnsq", {}, {"start_bits": (8.0, 5.0, 10.0, 9.0)}),
    "pege": ("pege", {}, {"kappa": (0.1, 0.3, 0.01, 1.0), "ramp": (0.5, 0.25, 1.0, 0.75)}),
    "pege affine": ("pege", {"base": "affine"}, {"ramp": (0.5, 0.25, 1.0, 0.1)}),
    "ewgs": ("ewgs", {}, {"rate": (0.01, 0.1, 0.001, 1.0)}),
    "ewgs given": ("ewgs", {}, {"delta": (0.1, 0.3, 1.0, 0.01)}),
}


def make_configs(
    title: str, task: str = "digits", granularity: str = "channel", steps: int = 12
) -> list[RunConfig]:
    name, params, varied = HYPER_PARAMETERS[title]
    found = []
    for place, (recipe, width) in enumerate(zip(RECIPES, FORMATS, strict=True)):
        method = load_method(name)(
            **params, **{parameter: values[place] for parameter, values in varied.items()}
        )
        weights = Quantization(width, granularity) if not method.full_precision else None
        c = config(name, task, seed=place % 3, steps=steps, **recipe)
        found.append(dataclasses.replace(c, method_params=method.params, weights=weights))
    return found


@pytest.mark.parametrize(
    ("title", "granularity"),
    [
        *((t, "channel") for t in HYPER_PARAMETERS),
        *((t, "block-32") for t in ("ste learned", "lsq", "gdnsq", "pege", "ewgs")),
    ],
)
def test_a_stacked_run_has_the_result_of_a_single_run(
    title: str, granularity: str, tmp_path: Path
) -> None:
    configs = make_configs(title, granularity=granularity)
    assert len({stacking_kind(c) for c in configs}) == 1 and len({c.key for c in configs}) == 4
    many = train_stacked(configs, tmp_path / "many")
    for c, a, b in zip(configs, many, train_separately(configs, tmp_path / "one"), strict=True):
        assert a["state"] == "ok" and a["cost"]["company"] == 4
        assert outcome(a) == outcome(b)
        assert read_curve(tmp_path / "many", c) == read_curve(tmp_path / "one", c)
    assert len({a["artefact_sha256"] for a in many}) == 4


@pytest.mark.parametrize("title", ["ste", "lotion", "gdnsq"])
def test_sgd_on_a_closed_form_loss(title: str, tmp_path: Path) -> None:
    configs = make_configs(title, "rotated", "tensor")
    moved = [
        dataclasses.replace(c, recipe=dataclasses.replace(c.recipe, optimizer="sgd", momentum=m))
        for c, m in zip(configs, (0.9, 0.5, 0.9, 0.1), strict=True)
    ]
    many = train_stacked(moved, tmp_path / "many")
    for a, b in zip(many, train_separately(moved, tmp_path / "one"), strict=True):
        assert a["cost"]["company"] == 4 and outcome(a) == outcome(b)


def test_the_common_method_refuses_numbers_in_which_runs_differ(tmp_path: Path) -> None:
    run = prepare_stacked(make_configs("lotion"), tmp_path)
    assert run.method.lam and run.method.lam != 0, "a method may ask whether it is zero"
    with pytest.raises(QbenchError, match=r"reads lam.*outside of schedules"):
        run.method.lam * 2
    assert prepare_stacked([make_configs("lotion")[0]] * 2, tmp_path).method.lam == 1.0, (
        "a number that all runs share can be read"
    )


@pytest.mark.parametrize(("method", "name"), [("lsq", "rate"), ("ewgs", "rate")])
def test_runs_of_one_recipe_may_scale_rates_differently(
    method: str, name: str, tmp_path: Path
) -> None:
    """The optimizer must not step them with the first run's rate."""
    configs = [
        dataclasses.replace(c, method_params={**c.method_params, name: value})
        for c, value in zip([config(method)] * 3, (1.0, 0.1, 0.1), strict=True)
    ]
    configs[2] = dataclasses.replace(configs[2], seed=5)
    stacked = train_stacked(configs, tmp_path / "many")
    for one, other in zip(stacked, train_separately(configs, tmp_path / "one"), strict=True):
        assert one["cost"]["company"] == 3 and outcome(one) == outcome(other)
    assert len({one["artefact_sha256"] for one in stacked}) == 3


def test_zero_hyper_parameters_are_of_another_kind() -> None:
    def kind(name: str, **params: Any) -> str | None:
        return stacking_kind(
            dataclasses.replace(config(name), method_params=load_method(name)(**params).params)
        )

    assert kind("lotion", lam=0.0) != kind("lotion", lam=0.5) == kind("lotion")
    assert (
        kind("ewgs", delta="adaptive")
        != kind("ewgs")
        != kind("ewgs", delta=0.5)
        == kind("ewgs", delta=0.7)
    )
    assert (
        stacking_kind(config(clip=0.0))
        != stacking_kind(config(clip=2.0))
        == stacking_kind(config())
    )


@pytest.mark.parametrize("kind", ["symmetric", "full", "affine", "midrise"])
def test_batched_levels_agree_with_single_levels(kind: Any) -> None:
    own = [Format.named(width).levels(kind) for width in INTEGERS]
    levels = BatchedLevels.of(own, 3, CPU)
    for end in ("low", "high", "count"):
        assert getattr(levels, end).shape == (7, 1, 1) and getattr(
            levels, end
        ).flatten().tolist() == [getattr(one, end) for one in own]
    assert levels.shift == own[0].shift and not levels.is_binary

    def half(levels: Levels) -> float:
        return levels.high**-0.5

    assert torch.equal(
        levels.per_run_number(half).flatten(), torch.tensor([half(one) for one in own])
    )
    with pytest.raises(AssertionError, match="of one kind"):
        BatchedLevels.of([own[0], Format.named("int1").levels(kind)], 3, CPU)


def test_a_group_is_sorted_by_optimizer_settings(tmp_path: Path) -> None:
    configs = sorted(make_configs("fp"), key=group_sort_key)
    pieces = prepare_stacked(configs, tmp_path).optimizer.slices  # type: ignore[union-attr]
    large = [
        [(piece.first, piece.last) for piece in cut] for p, cut in pieces.items() if p.dim() == 3
    ]
    assert large and all(cut == [(0, 1), (1, 3), (3, 4)] for cut in large), "two of one recipe"
    assert prepare_alone(configs[0], tmp_path).recipes == (configs[0].recipe,)


@pytest.mark.parametrize("title", ["lotion", "gdnsq", "pege"])
def test_killed_runs_resume_in_another_grouping(title: str, tmp_path: Path) -> None:
    configs = make_configs(title)

    def interrupt(progress: dict[str, Any]) -> None:
        if progress["step"] > 6:
            raise Interrupted

    first = make_assignments(configs, tmp_path / "many")
    with contextlib.suppress(Interrupted):
        execute_group(first, Execution(checkpoint_s=0), [interrupt] * 4)
    folders = [a.folder for a in first]
    found = train_stacked(configs[:3], tmp_path / "many", resume=folders[:3]) + train_stacked(
        configs[3:], tmp_path / "many", resume=folders[3:]
    )
    for c, a, b in zip(configs, found, train_separately(configs, tmp_path / "one"), strict=True):
        assert outcome(a) == outcome(b) and read_curve(tmp_path / "many", c, 2) == read_curve(
            tmp_path / "one", c
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_compiled_runs_keep_their_own_levels(tmp_path: Path) -> None:
    torch.compiler.reset()
    configs = make_configs("lsq")
    results = [
        train_stacked(configs, tmp_path / name, Execution(compile=compiled))
        for name, compiled in (("eager", False), ("compiled", True))
    ]
    assert [r["state"] for r in results[1]] == ["ok"] * 4 and all(
        r["audit"]["passed"] for r in results[1]
    )
    for c in configs:
        one, other = read_curve(tmp_path / "eager", c)[:4], read_curve(tmp_path / "compiled", c)[:4]
        assert [line["loss"] for line in other] == pytest.approx(
            [line["loss"] for line in one], rel=1e-3
        )


@pytest.mark.parametrize("size", [2, 16, 19])
def test_bits_on_shared_data_do_not_depend_on_slot_or_number(size: int, tmp_path: Path) -> None:
    """Runs with one stream of data share one product; with two streams, each run has its own."""
    me = config("ste", "batches", seed=3, lr=0.02)
    single = prepare_alone(me, tmp_path)
    for step in range(6):
        take_step(single, step)
    for slot in (0, size // 2, size - 1):
        for seed in (3, 4):
            rates = [0.001 * (place + 1) for place in range(size - 1)]
            others = [
                dataclasses.replace(me, seed=seed, recipe=dataclasses.replace(me.recipe, lr=rate))
                for rate in rates
            ]
            run = prepare_stacked([*others[:slot], me, *others[slot:]], tmp_path)
            for step in range(6):
                take_step(run, step)
            mine, its = (next(one.model.parameters()) for one in (single, run.stacked[slot]))
            assert mine.abs().sum() > 0 and torch.equal(mine, its), (slot, seed)


def test_single_row_linear_gives_the_product_and_its_gradients() -> None:
    x, weight = (
        torch.randn(5, 40, dtype=torch.float64),
        torch.randn(3, 1, 40, dtype=torch.float64, requires_grad=True),
    )
    shared = x.expand(3, 5, 40)
    assert torch.allclose(single_row_linear(shared, weight), shared @ weight.mT) and torch.allclose(
        single_row_linear(x, weight[1]), x @ weight[1].mT
    )
    assert torch.autograd.gradcheck(lambda w: single_row_linear(shared, w).square(), (weight,))
    assert torch.autograd.gradgradcheck(
        lambda w: single_row_linear(x, w).square(), (weight[0].detach().requires_grad_(),)
    )
