"""A stacked run has the bits of a run trained alone, whatever the other runs are and do."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from qbench_tasks import grammar, windows
from qbench_tasks.digits import DigitsProblem
from torch import Tensor
from torch._dynamo.utils import counters

from qbench import load_method, load_task
from qbench.api.method import Method
from qbench.engines.dispatch import run_one
from qbench.execution import execute
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.execute import execute_group
from qbench.execution.group_policy import MOST_RUNS, group_size, stacking_kind, why_alone
from qbench.execution.prepare import prepare_run
from qbench.execution.stacking import stack_modules, stack_runs
from qbench.execution.workload import estimate_work
from qbench.numerics.batched_math import linear, matmul_per_run, per_run
from qbench.quant.quantizer import Quantizer
from qbench.quant.site import Site
from qbench.runs.attempts import Attempt, create_attempt
from qbench.runs.config import Quantization, RunConfig
from qbench.sweeps.run_queue import RunQueue
from qbench.training import devices
from qbench.training.loop import take_step
from qbench.training.run import TrainingRun
from qbench.training.setup import open_problem
from tests import SOAK
from tests.tasks.test_text import texts, write_corpus
from tests.training.test_loop import registered

STEPS = 16
CPU = torch.device("cpu")
SEEDS_AND_RATES = ((0, 0.01), (1, 0.01), (0, 0.003), (2, 0.03), (1, 0.1))
"""Seeds and learning rates. Some runs share their data, some their rate."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp": ("fp", {}), "ste": ("ste", {}), "ste mse": ("ste", {"scale": "mse"}), "ste hessian": ("ste", {"scale": "hessian"}),
    "ste learned": ("ste", {"scale": "learned"}), "rr": ("rr", {}), "placebo": ("placebo", {}), "lsq": ("lsq", {}), "lotion": ("lotion", {}),
    "lotion optimizer": ("lotion", {"fisher": "optimizer"}), "gdnsq": ("gdnsq", {}), "pege": ("pege", {}),
    "ewgs": ("ewgs", {}), "ewgs adaptive": ("ewgs", {"delta": "adaptive"}),
}  # fmt: skip
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("digits", {}), "linreg": ("linreg", {}), "rotated": ("linreg", {"rotated": True}), "batches": ("linreg", {"exact": False}),
    "twolayer": ("twolayer", {}), "twolayer batches": ("twolayer", {"exact": False, "rotated": True}),
    "cnn": ("digits", {"model": "cnn"}), "grammar": ("grammar", {}), "text": ("text", {}),
}  # fmt: skip
FEW = ("gdnsq",)
"""Methods that are tested on every task. All methods are tested on digits; `make soak` tests all
methods on all tasks."""
INT4 = Quantization("int4", "tensor")
SHORT = {"cnn": 6, "grammar": 3, "text": 2}
"""Steps on the tasks with expensive steps. On these, three runs are stacked."""


@pytest.fixture(scope="module", autouse=True)
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a small corpus, and score language models on a few windows."""
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "a.jsonl", texts(1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "text", ("text", {"corpus": corpus}))
        patch.setattr(grammar, "SCORED_AT_ONCE", 4)
        for split in ("train", "val", "test"):
            patch.setitem(grammar.WINDOWS, split, 4)
            patch.setitem(windows.WINDOWS, split, 2)
        yield


def config(
    method: str = "ste",
    task: str = "digits",
    seed: int = 0,
    lr: float = 0.01,
    steps: int | None = None,
    inputs: Quantization | None = None,
    **recipe: Any,
) -> RunConfig:
    name, params = METHODS.get(method, (method, {}))
    bed, options = TASKS[task]
    steps = steps or SHORT.get(task, STEPS)
    recipe = (
        {"batch": 4 if task == "grammar" else 2} | recipe if task in ("grammar", "text") else recipe
    )
    m, t = load_method(name)(**params), load_task(bed)(**options)
    return RunConfig(
        0, name, m.version, m.params, bed, t.version, t.key_options(), t.fingerprint(), "xs", Quantization("int2", "channel") if not m.full_precision else None,
        inputs, dataclasses.replace(t.recipe("xs"), steps=steps, lr=lr, **recipe), "scratch", seed,
    )  # fmt: skip


def make_configs(method: str = "ste", task: str = "digits", **more: Any) -> list[RunConfig]:
    return [
        config(method, task, seed=seed, lr=lr, **more)
        for seed, lr in (SEEDS_AND_RATES[1:4] if task in SHORT else SEEDS_AND_RATES)
    ]


def make_assignments(
    configs: Sequence[RunConfig], folder: Path, resume: Sequence[Path | None] | None = None
) -> list[Assignment]:
    fresh = [Assignment(c, create_attempt(folder, c.key).folder) for c in configs]
    return [
        dataclasses.replace(a, resume=r)
        for a, r in zip(fresh, resume or [None] * len(fresh), strict=True)
    ]


def train_stacked(
    configs: Sequence[RunConfig], folder: Path, execution: Execution = Execution(), **more: Any
) -> list[dict[str, Any]]:
    return execute_group(
        make_assignments(configs, folder, **more), execution, [lambda _: None] * len(configs)
    )


def train_separately(configs: Sequence[RunConfig], folder: Path) -> list[dict[str, Any]]:
    return [run_one(a) for a in make_assignments(configs, folder)]


TIMED = ("attempt", "started", "finished", "cost")


def outcome(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in TIMED}


def read_curve(folder: Path, c: RunConfig, number: int = 1) -> list[dict[str, Any]]:
    path = folder / "runs" / c.key[:2] / c.key / str(number) / "curve.jsonl"
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"}
        for line in path.read_text().splitlines()
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "method"),
    [(task, name) for task in TASKS for name in (METHODS if SOAK or task == "digits" else FEW)],
)
def test_a_stacked_run_has_the_result_of_a_single_run(
    task: str, method: str, tmp_path: Path
) -> None:
    """Results, curves and artefacts are equal."""
    configs = make_configs(method, task)
    many, one = (
        train_stacked(configs, tmp_path / "many"),
        train_separately(configs, tmp_path / "one"),
    )
    fine = [r["cost"] for r in many if r["state"] == "ok"]
    assert {cost["company"] for cost in fine} <= {len(configs)} and not any(
        "company" in r.get("cost", {}) for r in one
    )
    assert fine or method == "lotion optimizer"
    for c, a, b in zip(configs, many, one, strict=True):
        assert outcome(a) == outcome(b)
        assert read_curve(tmp_path / "many", c) == read_curve(tmp_path / "one", c)


@pytest.mark.parametrize(
    ("task", "method"),
    [("digits", name) for name in METHODS if name != "fp"]
    + [
        (task, name)
        for task in ("cnn", "grammar")
        for name in ("rr", "gdnsq", "pege", "ewgs", "lsq")
    ],
)
def test_quantized_inputs_do_not_change_that(task: str, method: str, tmp_path: Path) -> None:
    configs = make_configs(method, task, steps=SHORT.get(task, 12), inputs=INT4)[:3]
    many, one = (
        train_stacked(configs, tmp_path / "many"),
        train_separately(configs, tmp_path / "one"),
    )
    fine = [r["cost"]["company"] for r in many if r["state"] == "ok"]
    assert fine == [3] * 3 or (method == "lotion optimizer" and not fine)
    for c, a, b in zip(configs, many, one, strict=True):
        assert outcome(a) == outcome(b)
        assert read_curve(tmp_path / "many", c) == read_curve(tmp_path / "one", c)


@pytest.mark.parametrize("task", ["digits", "cnn", "grammar"])
def test_bf16_does_not_change_that(task: str, tmp_path: Path) -> None:
    configs = make_configs("ewgs", task, steps=3, precision="bf16")[:3]
    many, one = (
        train_stacked(configs, tmp_path / "many"),
        train_separately(configs, tmp_path / "one"),
    )
    assert [(r["state"], r.get("cost", {}).get("company")) for r in many] == [("ok", 3)] * 3
    assert [outcome(r) for r in many] == [outcome(r) for r in one]


@pytest.mark.parametrize(
    ("task", "inputs"),
    [("digits", INT4), ("batches", None), ("cnn", INT4), ("grammar", None), ("grammar", INT4)],
)
def test_micro_batches_do_not_change_that(
    task: str, inputs: Quantization | None, tmp_path: Path
) -> None:
    """The batch of each run is split, not the runs. Random draws belong to its samples."""
    configs, execution = (
        make_configs("gdnsq", task, steps=3, inputs=inputs),
        Execution(accumulate=3),
    )
    many = train_stacked(configs, tmp_path / "many", execution)
    one = [run_one(a, execution) for a in make_assignments(configs, tmp_path / "one")]
    assert [(r["state"], r.get("cost", {}).get("company")) for r in many] == [
        ("ok", len(configs))
    ] * len(configs)
    assert [outcome(r) for r in many] == [outcome(r) for r in one]


def prepare_alone(c: RunConfig, folder: Path) -> TrainingRun:
    return prepare_run(Assignment(c, folder), Execution(), open_problem(c, CPU)[1], CPU)


def prepare_stacked(configs: Sequence[RunConfig], folder: Path) -> TrainingRun:
    run = stack_runs([prepare_alone(c, folder) for c in configs])
    assert run is not None
    return run


@pytest.mark.parametrize(
    ("task", "method", "size", "inputs"),
    [
        *(
            ("digits", method, size, None)
            for method in ("ste", "gdnsq", "ewgs")
            for size in (2, 7, 16)
        ),
        *((task, "ewgs", 5, None) for task in SHORT),
        *(("digits", method, 33, INT4) for method in ("gdnsq", "pege")),
    ],
)
def test_bits_do_not_depend_on_the_slot_or_the_number_of_runs(
    task: str, method: str, size: int, inputs: Quantization | None, tmp_path: Path
) -> None:
    me = config(
        method,
        task,
        seed=3,
        lr=0.02,
        steps=8 if inputs else None,
        optimizer="radam" if size == 7 else "adamw",
        inputs=inputs,
    )
    single = prepare_alone(me, tmp_path)
    for step in range(me.recipe.steps):
        take_step(single, step)
    for slot in {0, size // 2, size - 1}:
        others = [
            dataclasses.replace(
                me, seed=10 + i, recipe=dataclasses.replace(me.recipe, lr=0.01 + 0.01 * (i // 4))
            )
            for i in range(size - 1)
        ]
        configs = [*others[:slot], me, *others[slot:]]
        run = prepare_stacked(configs, tmp_path)
        for step in range(me.recipe.steps):
            take_step(run, step)
        for (name, mine), (_, its) in zip(
            single.model.state_dict().items(),
            run.stacked[slot].model.state_dict().items(),
            strict=True,
        ):
            assert torch.equal(mine, its), name


def test_single_runs_share_the_parameters_of_the_stacked_run(tmp_path: Path) -> None:
    configs = make_configs("lsq")
    run = prepare_stacked(configs, tmp_path)
    take_step(run, 0)
    for place, single in enumerate(run.stacked):
        for mine, large in zip(single.model.parameters(), run.model.parameters(), strict=True):
            assert torch.equal(mine, large[place]) and mine.data_ptr() == large[place].data_ptr()
        for weights, wide in zip(single.weights, run.weights, strict=True):
            assert torch.equal(weights.quantizer.size, wide.quantizer.size[place])  # type: ignore[operator, arg-type, index]
    run.return_state()
    states = [m.optimizer.state[p] for m in run.stacked for p in m.model.parameters()]  # type: ignore[union-attr]
    assert all(s["step"] == 1 and s["exp_avg"].abs().sum() > 0 for s in states)


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("method", ["ste", "lsq", "gdnsq", "pege", "ewgs"])
def test_each_run_has_its_own_input_range(method: str, unsigned: bool) -> None:
    """One run's first batch is all zero."""
    site, draw = (
        Site("a.input", "activation", "int4", "tensor", (1, 24), unsigned),
        torch.Generator().manual_seed(0),
    )
    singles = [load_method(method)().quantizer(site) for _ in range(40)]
    copies = copy.deepcopy(singles)
    stacked = stack_modules(copies, {}, {})
    stacked.run_axes = 1
    for least in (0.0, 0.1):
        x = torch.randn(40, 16, 24, generator=draw) * (least + torch.arange(40.0)).view(-1, 1, 1)
        x = x.abs() if unsigned else x
        stacked.calibrate(x, first=True)
        for quantizer, own in zip(singles, x, strict=True):
            quantizer.calibrate(own, first=True)
    grid, relaxed = stacked.grid(x), stacked.relax(x)
    for place, (quantizer, own) in enumerate(zip(singles, x, strict=True)):
        assert torch.equal(grid.scale[place], quantizer.grid(own).scale) and torch.equal(
            relaxed[place], quantizer.relax(own)
        )


# ---- failures and resumption ----


def test_a_diverging_run_does_not_affect_the_others(tmp_path: Path) -> None:
    configs = [
        config("ste", "linreg", seed=s, lr=lr, optimizer="sgd", momentum=0.0)
        for s, lr in ((0, 0.1), (1, 1e30), (2, 0.2))
    ]
    many = train_stacked(configs, tmp_path / "many")
    assert [(r["state"], r["reason"]) for r in many] == [
        ("ok", None),
        ("failed", "diverged"),
        ("ok", None),
    ]
    for a, b in zip(many, train_separately(configs, tmp_path / "one"), strict=True):
        assert outcome(a) == outcome(b)
    assert (
        len(read_curve(tmp_path / "many", configs[1]))
        < STEPS
        == len(read_curve(tmp_path / "many", configs[0]))
    )


@dataclass
class FailsByGroupSize(Method):
    """STE that fails in groups that are too large, and with one seed."""

    name = "moody"
    max_runs: ClassVar[int] = 9
    failing_seed: ClassVar[int] = -1
    tried: ClassVar[list[int]] = []

    def quantizer(self, site: Site) -> Quantizer:
        return load_method("ste")().quantizer(site)  # type: ignore[return-value]

    def after_backward(self, run: TrainingRun) -> None:
        runs = run.stacked or [run]
        if run.step == 5:
            self.tried.append(len(runs))
        if run.step == 5 and len(runs) > self.max_runs:
            raise torch.OutOfMemoryError("no room")
        if run.step == 5 and any(one.seed == self.failing_seed for one in runs):
            raise ValueError("not with that one")


def config_of_failing_method(seed: int) -> RunConfig:
    return dataclasses.replace(
        config(seed=seed), method="moody", method_params={}, method_version=1
    )


@pytest.fixture
def failing_method() -> Any:
    FailsByGroupSize.max_runs, FailsByGroupSize.failing_seed, FailsByGroupSize.tried = 9, -1, []
    with registered(FailsByGroupSize):
        yield FailsByGroupSize


def test_out_of_memory_halves_the_group(
    failing_method: type[FailsByGroupSize], tmp_path: Path
) -> None:
    failing_method.max_runs = 2
    found = train_stacked([config_of_failing_method(seed) for seed in range(7)], tmp_path / "many")
    assert [r["state"] for r in found] == ["ok"] * 7
    assert failing_method.tried == [7, 3, 1, 2, 4, 2, 2] and [
        r["cost"].get("company", 1) for r in found
    ] == [
        1,
        2,
        2,
        2,
        2,
        2,
        2,
    ]
    assert [outcome(r) for r in found] == [
        outcome(r)
        for r in train_separately(
            [config_of_failing_method(seed) for seed in range(7)], tmp_path / "one"
        )
    ]
    assert all(
        len(read_curve(tmp_path / "many", config_of_failing_method(seed))) == STEPS
        for seed in range(7)
    ), "the first attempt leaves no lines in the curve"


def test_runs_that_cannot_be_stacked_are_tried_in_halves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Memory may run out before the first step."""
    stack = execute.stack_runs

    def stack_two_at_most(runs: Sequence[TrainingRun]) -> TrainingRun | None:
        if len(runs) > 2:
            raise torch.OutOfMemoryError("no room")
        return stack(runs)

    monkeypatch.setattr(execute, "stack_runs", stack_two_at_most)
    found = train_stacked(make_configs(), tmp_path)
    assert [r["state"] for r in found] == ["ok"] * 5 and [
        r["cost"].get("company", 1) for r in found
    ] == [2, 2, 1, 2, 2]


def test_an_error_is_attributed_to_the_run_that_raised_it(
    failing_method: type[FailsByGroupSize], tmp_path: Path
) -> None:
    failing_method.failing_seed = 2
    found = train_stacked([config_of_failing_method(seed) for seed in range(4)], tmp_path)
    assert [r["reason"] for r in found] == [None, None, "plugin", None]
    assert found[2]["message"] == "ValueError: not with that one"


def test_a_run_that_cannot_begin_does_not_affect_the_others(tmp_path: Path) -> None:
    configs = make_configs()
    configs[1] = dataclasses.replace(configs[1], data="other data")
    found = train_stacked(configs, tmp_path)
    assert [r["reason"] for r in found] == [None, "data", None, None, None] and found[0]["cost"][
        "company"
    ] == 4


class Interrupted(BaseException):
    """Ends a process as a kill would: nothing catches it."""


@pytest.mark.parametrize(
    ("task", "method"),
    [
        *(("digits", method) for method in ("lotion", "gdnsq", "pege", "ewgs", "lsq")),
        ("cnn", "lsq"),
        ("grammar", "ewgs"),
        ("text", "pege"),
    ],
)
def test_killed_runs_resume_in_another_grouping(task: str, method: str, tmp_path: Path) -> None:
    """All runs are stacked at first. After the kill, groups of at most two resume."""
    configs = make_configs(method, task)

    def interrupt(progress: dict[str, Any]) -> None:
        if progress["step"] > configs[0].recipe.steps // 2:
            raise Interrupted

    first = make_assignments(configs, tmp_path / "many")
    with contextlib.suppress(Interrupted):
        execute_group(first, Execution(checkpoint_s=0), [interrupt] * len(configs))
    assert all(Attempt(a.folder).checkpoint.exists() for a in first)
    folders = [a.folder for a in first]
    found = []
    for part in (slice(place, place + 2) for place in range(0, len(configs), 2)):
        found += train_stacked(configs[part], tmp_path / "many", resume=folders[part])
    for c, a, b in zip(configs, found, train_separately(configs, tmp_path / "one"), strict=True):
        assert outcome(a) == outcome(b) and read_curve(tmp_path / "many", c, 2) == read_curve(
            tmp_path / "one", c
        )


def test_runs_resume_stacked_with_runs_at_the_same_step(tmp_path: Path) -> None:
    configs = make_configs()
    seen: list[int] = []

    def interrupt(progress: dict[str, Any]) -> None:
        if progress["step"] > 8:
            raise Interrupted

    first = make_assignments(configs, tmp_path / "many")
    with contextlib.suppress(Interrupted):
        execute_group(first[:2], Execution(checkpoint_s=0), [interrupt] * 2)
    again = make_assignments(configs, tmp_path / "many", [a.folder for a in first])
    found = execute_group(again, Execution(), [lambda p: seen.append(p["step"])] * 5)
    assert [r["cost"]["company"] for r in found] == [2, 2, 3, 3, 3] and min(seen) == 1
    assert [outcome(r) for r in found] == [
        outcome(r) for r in train_separately(configs, tmp_path / "one")
    ]


# ---- grouping ----


def test_stacking_kinds_ignore_only_seed_and_rate() -> None:
    assert (
        len({stacking_kind(c) for c in make_configs()}) == 1 and stacking_kind(config()) is not None
    )
    other = [
        config("lsq"),
        config(task="linreg"),
        config(steps=9),
        config(beta2=0.9),
        config(clip=0.0),
    ]
    other += [
        dataclasses.replace(config(), weights=Quantization(*words))
        for words in (("int1", "channel"), ("int2", "tensor"))
    ]
    assert len({stacking_kind(c) for c in [config(), *other]}) == 8


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"method": "rtn", "method_params": load_method("rtn")().params}, "trains nothing"),
        ({"method": "pege", "method_version": 2, "method_params": load_method("pege")(decoupled=True).params}, "one run at a time"),
        ({"method": "gdnsq", "method_version": 2, "method_params": load_method("gdnsq")(rho=0.9).params}, "one run at a time"),
    ],
)  # fmt: skip
def test_a_run_that_trains_alone_says_why(changed: dict[str, Any], sentence: str) -> None:
    c = dataclasses.replace(config(), **changed)
    assert sentence in str(why_alone(c)) and stacking_kind(c) is None


def test_a_task_that_cannot_be_stacked_trains_runs_singly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DigitsProblem, "seeds_share_data", False)
    assert (
        "digits has not been written for stacked runs" in str(why_alone(config()))
        and stacking_kind(config()) is None
    )


@pytest.mark.parametrize(
    ("task", "sizes"),
    [
        ("digits", {"xs": 32, "s": 32, "m": 11}),
        ("linreg", {"xs": 32, "s": 32, "m": 32, "l": 32}),
        ("batches", {"xs": 32, "l": 32}),
        ("twolayer", {"xs": 32, "s": 30, "m": 7, "l": 1}),
        ("grammar", {"xs": 4, "s": 1, "m": 1}),
        ("text", {"xs": 1, "s": 1, "1m": 1}),
    ],
)
def test_group_sizes_by_task_and_size(task: str, sizes: dict[str, int]) -> None:
    assert {size: group_size(sized(task, size), "cpu") for size in sizes} == sizes


def sized(task: str, size: str, **recipe: Any) -> RunConfig:
    """Return a run with the default recipe of its size."""
    c = dataclasses.replace(config(task=task), size=size)
    usual = load_task(c.task)(**TASKS[task][1]).recipe(size)
    return dataclasses.replace(c, recipe=dataclasses.replace(usual, **recipe))


def test_larger_batches_make_smaller_groups() -> None:
    sizes = [group_size(sized("digits", "m", batch=batch), "cpu") for batch in (64, 1024, 8192)]
    assert sizes[0] > sizes[1] > sizes[2] == 1


def test_on_a_gpu_a_group_fills_the_device_and_not_more_than_its_memory() -> None:
    model, gigabyte = sized("text", "1m"), 2**30
    large, small, tiny = (group_size(model, "cuda", memory * gigabyte) for memory in (140, 16, 1))
    assert group_size(model, "cuda") == large == 18 > small > tiny == 1
    assert (
        small * estimate_work(model).memory
        < 8 * gigabyte
        < (small + 1) * estimate_work(model).memory
    )
    assert (
        group_size(config(), "cuda", 140 * gigabyte) == MOST_RUNS["cuda"]
        and group_size(sized("text", "10m"), "cuda") == 1
    )


@pytest.mark.parametrize("task", ["digits", "cnn", "grammar", "text", "batches"])
def test_memory_is_estimated_by_what_a_step_keeps(task: str) -> None:
    """Half of the estimate for samples is the forward pass, the other half the backward pass.

    The estimate does not count the positions in a convolution's image."""
    c = config(task=task)
    problem, kept = open_problem(c, CPU)[1], dict[int, int]()
    batch, known = problem.batch(0), {p.data_ptr() for p in problem.model.parameters()}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = problem.loss(problem.model(batch.inputs), batch)
    assert loss.isfinite()
    estimated = estimate_work(c).memory - 32 * estimate_work(c).parameters
    assert (
        0.3 * estimated
        < sum(size for where, size in kept.items() if where not in known)
        < (4 if task == "cnn" else 1) * estimated
    )


def test_the_queue_uses_the_memory_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "parse_device", torch.device)
    monkeypatch.setattr(
        devices, "total_memory", lambda device: {"cuda:1": 16 * 2**30, "cpu": None}[str(device)]
    )
    groups = {}
    for device, group in (("cpu", None), ("cuda:1", None), ("cuda:1", 50)):
        queue = RunQueue(Execution(device=device, group=group))
        for place in range(100):
            queue.push(place, str(place), "a")
        groups[device, group] = len(queue.pop(1, lambda _: sized("text", "1m")))
    assert groups == {
        ("cpu", None): 1,
        ("cuda:1", None): group_size(sized("text", "1m"), "cuda", 16 * 2**30),
        ("cuda:1", 50): 50,
    }


@given(
    st.lists(st.sampled_from("abc-"), max_size=40), st.integers(1, 4), st.sampled_from([None, 1, 3])
)
def test_the_queue_hands_out_each_run_once_in_groups_of_a_kind(
    kinds: list[str], idle: int, most: int | None
) -> None:
    queue, c = RunQueue(Execution(device="cpu", group=most)), config()
    for place, kind in enumerate(kinds):
        queue.push(place, str(place), None if kind == "-" else kind)
    groups = []
    while queue:
        groups.append(queue.pop(idle, lambda _: c))
    assert sorted(int(key) for group in groups for key in group) == list(range(len(kinds)))
    for group in groups:
        of = {kinds[int(key)] for key in group}
        assert (
            len(of) == 1
            and (of != {"-"} or len(group) == 1)
            and len(group) <= (most or MOST_RUNS["cpu"])
        )
    firsts = [int(group[0]) for group in groups]
    assert firsts == sorted(firsts), "in the order of the plan"


@pytest.mark.parametrize(
    ("runs", "places", "shares"),
    [(6, 2, [3, 3]), (7, 3, [3, 2, 2]), (2, 4, [1, 1]), (100, 2, [32, 32])],
)
def test_idle_workers_share_the_runs_of_a_kind(runs: int, places: int, shares: list[int]) -> None:
    queue = RunQueue(Execution(device="cpu"))
    for place in range(runs):
        queue.push(place, str(place), "a")
    assert [
        len(queue.pop(places - busy, lambda _: config())) for busy in range(len(shares))
    ] == shares


def test_groups_are_sized_for_the_machines_that_train_them() -> None:
    """A coordinator without a GPU may have nodes with GPUs whose memory it does not know."""
    queue = RunQueue(Execution(device="cuda"), "cuda")
    for place in range(300):
        queue.push(place, str(place), "a")
    assert len(queue.pop(1, lambda _: config())) == MOST_RUNS["cuda"]


def test_a_kind_is_not_split_if_other_workers_have_other_kinds() -> None:
    queue = RunQueue(Execution(device="cpu"))
    for place, kind in enumerate("aaaabbbb"):
        queue.push(place, str(place), kind)
    assert [len(queue.pop(idle, lambda _: config())) for idle in (2, 1)] == [4, 4]


def test_a_retried_run_is_trained_alone() -> None:
    queue = RunQueue(Execution(device="cpu"))
    for place in range(4):
        queue.push(place, str(place), "a")
    assert queue.pop(2, lambda _: config()) == ["0", "1"]
    queue.push(0, "0", None)
    assert [queue.pop(1, lambda _: config()) for _ in range(2)] == [["0"], ["2", "3"]] and not queue


# ---- arithmetic ----


def make_leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("samples", "inputs", "outputs"),
    [
        (64, 64, 32),
        (64, 32, 10),
        (297, 31, 7),
        (64, 256, 1),
        (1, 256, 16),
        (13, 1, 5),
        (8, 512, 48),
    ],
)
@pytest.mark.parametrize("runs", [1, 2, 5])
def test_a_batched_linear_layer_equals_single_ones(
    runs: int, samples: int, inputs: int, outputs: int, biased: bool
) -> None:
    draw = torch.Generator().manual_seed(samples + inputs)
    x, w, b, g = (
        torch.randn(runs, *shape, generator=draw)
        for shape in ((samples, inputs), (outputs, inputs), (outputs,), (samples, outputs))
    )
    many = make_leaves(x, w, b)
    out = linear(many[0], many[1], many[2] if biased else None)
    out.backward(g)
    for run in range(runs):
        one = make_leaves(x[run], w[run], b[run])
        y = F.linear(one[0], one[1], one[2] if biased else None)
        y.backward(g[run].clone())
        assert torch.equal(out[run], y)
        assert all(
            torch.equal(m.grad[run], o.grad)
            for m, o in list(zip(many, one, strict=True))[: 3 if biased else 2]
        )  # type: ignore[index, arg-type]


def test_a_batched_linear_layer_can_be_differentiated_twice() -> None:
    x, w, b = (
        torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 4), (5, 4), (5,))
    )
    assert torch.autograd.gradgradcheck(linear, (x, w, b))


@pytest.mark.parametrize("row", [1, 7, 16, 17, 32, 64])
def test_elementwise_functions_do_not_depend_on_the_position(row: int) -> None:
    x = torch.randn(6, row, generator=torch.Generator().manual_seed(row))
    assert torch.equal(per_run(torch.exp2, x, 1), torch.stack([one.clone().exp2() for one in x]))


def test_matmul_per_run_equals_single_products() -> None:
    a, b = torch.randn(3, 2, 5), torch.randn(3, 5, 4)
    assert (
        torch.equal(matmul_per_run(a, b)[1], a[1] @ b[1])
        and torch.equal(matmul_per_run(a, b[0])[2], a[2] @ b[0])
        and torch.equal(matmul_per_run(a[0], b[0]), a[0] @ b[0])
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_stacked_runs_compiled_take_the_steps_of_eager(tmp_path: Path) -> None:
    """Compiled steps have the gradients of eager ones. One compiled audit serves all runs."""
    torch.compiler.reset()
    counters.clear()
    configs = make_configs("ewgs")
    results = [
        train_stacked(configs, tmp_path / name, Execution(compile=compiled))
        for name, compiled in (("eager", False), ("compiled", True))
    ]
    assert [r["state"] for r in results[1]] == ["ok"] * 5 and all(
        r["audit"]["passed"] for r in results[1]
    )
    assert counters["stats"]["unique_graphs"] == 2, "one graph for the steps, one for the audits"
    for c in configs:
        one, other = read_curve(tmp_path / "eager", c)[:4], read_curve(tmp_path / "compiled", c)[:4]
        assert [line["loss"] for line in other] == pytest.approx(
            [line["loss"] for line in one], rel=1e-3
        )
        assert one[0]["grad_norm"] == pytest.approx(other[0]["grad_norm"], rel=1e-3)


@dataclass
class SometimesWithoutGradient(Method):
    """LSQ whose trained scales, from some step on, have a gradient in odd steps only."""

    name = "now-and-then"
    since: ClassVar[int] = 0

    def quantizer(self, site: Site) -> Quantizer:
        return load_method("lsq")().quantizer(site)  # type: ignore[return-value]

    def after_backward(self, run: TrainingRun) -> None:
        for quantizer in run.quantizers() if run.step % 2 == 0 and run.step >= self.since else ():
            for parameter in quantizer.parameters():
                parameter.grad = None


@pytest.mark.parametrize("since", [0, 4])
def test_a_parameter_that_has_no_gradient_counts_its_own_steps(
    since: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's bias correction needs the number of steps that each parameter took."""
    monkeypatch.setattr(SometimesWithoutGradient, "since", since)
    with registered(SometimesWithoutGradient):
        configs = [
            dataclasses.replace(c, method="now-and-then", method_params={}, method_version=1)
            for c in make_configs("lsq")
        ]
        many, one = (
            train_stacked(configs, tmp_path / "many"),
            train_separately(configs, tmp_path / "one"),
        )
    assert [r["cost"]["company"] for r in many] == [5] * 5
    assert [outcome(r) for r in many] == [outcome(r) for r in one]
