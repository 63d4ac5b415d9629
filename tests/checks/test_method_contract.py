"""The conformance kit over every registered method, and that it finds what it is there to find."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qbench import Grid, Method, Quantizer, Site, load_method
from qbench.api import Run
from qbench.checks.method_contract import (
    check_compiles,
    check_method,
    check_recorded,
    check_stacked,
)
from qbench.checks.method_kit import Kit
from qbench.plugins import registry
from qbench.quant.straight_through import straight_through


@pytest.mark.parametrize("name", sorted(registry.plugins("methods")))
def test_every_registered_method_conforms(name: str) -> None:
    findings = list(check_method(name, quick=True))
    assert [f for f in findings if not f.passed] == []
    assert {"fields", "groups", "audit", "learns", "repeats"} <= {f.check for f in findings}


def test_compiled_training_still_quantizes(tmp_path: Path) -> None:
    findings = list(check_compiles(Kit("ste", tmp_path)))
    assert {f.where for f in findings} == {"int4", "fp4", "int2/block-32", "int4 a:int4"}
    assert all(f.passed and "audit passed" in f.detail for f in findings), findings


@contextlib.contextmanager
def registered(method: type[Method]) -> Iterator[None]:
    plain = registry.load

    def load(kind: Any, name: str, where: str = "") -> Any:
        return method if (kind, name) == ("methods", method.name) else plain(kind, name, where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load", load)
        yield


def ste_with(**change: Any) -> type[Method]:
    """STE with one thing broken in its quantizer."""

    @dataclass
    class Broken(Method):
        name = "broken"

        def quantizer(self, site: Site) -> Quantizer | None:
            found = load_method("ste")().quantizer(site)
            assert found is not None
            if site.role == "weight":
                for attribute, make in change.items():
                    setattr(found, attribute, make(found))
            return found

    return Broken


def forgets_to_quantize(q: Quantizer) -> Any:
    return lambda x: Grid(q.site.levels(), q.site.grouping, torch.full(q.site.scale_shape, 1e-9))


def loses_the_gradient(q: Quantizer) -> Any:
    return lambda x: q.grid(x).snap(x.detach()) + 0 * x


def draws_from_the_global_generator(q: Quantizer) -> Any:
    return lambda x: straight_through(x, q.grid(x).snap(x + 0.1 * torch.randn_like(x)))


class Drift:
    """Keeps a count outside of any state that a checkpoint holds."""

    def __init__(self, q: Quantizer) -> None:
        self.q, self.count = q, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.count += 1
        return straight_through(x, self.q.grid(x).snap(x) * (1 + 0.01 * self.count))


@pytest.mark.parametrize(("change", "check"), [({"grid": forgets_to_quantize}, "learns"), ({"relax": loses_the_gradient}, "gradients"),
                                               ({"relax": Drift}, "resumes")])  # fmt: skip
def test_the_kit_finds_what_is_broken(change: dict[str, Any], check: str) -> None:
    with registered(ste_with(**change)):
        failed = {f.check for f in check_method("broken", quick=True) if not f.passed}
    assert check in failed


def test_the_kit_finds_runs_that_depend_on_their_stack(tmp_path: Path) -> None:
    """A quantizer that looks at its leading axes gives stacked runs other bits."""

    def relax(q: Quantizer) -> Any:
        def relax(x: Tensor) -> Tensor:
            return straight_through(x, q.grid(x).snap(x) * (1 + 1e-6 * (x.dim() > 3)))

        return relax

    with registered(ste_with(relax=relax)):
        details = [f.detail for f in check_stacked(Kit("broken", tmp_path))]
    assert details == ["stacked with others it differs"] * 3


def test_the_kit_finds_a_hyper_parameter_that_is_read_outside_of_schedules(tmp_path: Path) -> None:
    @dataclass
    class Broken(Method):
        name = "broken"
        strength: float = 0.5

        def quantizer(self, site: Site) -> Quantizer | None:
            return load_method("ste")().quantizer(site)

        def after_backward(self, run: Run) -> None:
            for stack in run.weights:
                for layer in stack.layers:
                    layer.weight.grad *= self.strength

    with registered(Broken):
        findings = list(check_stacked(Kit("broken", tmp_path)))
    assert [f.passed for f in findings] == [False] * 3
    assert all("one by one" in f.detail for f in findings)


def test_the_kit_finds_a_step_that_cannot_be_recorded(tmp_path: Path) -> None:
    @dataclass
    class Broken(Method):
        name = "broken"

        def quantizer(self, site: Site) -> Quantizer | None:
            return load_method("ste")().quantizer(site)

        def after_step(self, run: Run) -> None:
            assert float(next(run.quantizers()).key.sum()) != 0.5

    with registered(Broken):
        findings = list(check_recorded(Kit("broken", tmp_path)))
    assert findings and not any(f.passed for f in findings)
    assert all("could not be recorded" in f.detail for f in findings)


def test_a_crash_is_a_finding_and_not_the_end() -> None:
    @dataclass
    class Crashes(Method):
        name = "broken"

        def quantizer(self, site: Site) -> Quantizer | None:
            raise RuntimeError("boom")

    with registered(Crashes):
        findings = list(check_method("broken", quick=True))
    assert any(not f.passed and "boom" in f.detail for f in findings) and any(
        f.passed for f in findings
    )


def test_what_could_not_be_trained_is_never_ok() -> None:
    def raises(q: Quantizer) -> Any:
        def relax(x: Tensor) -> Tensor:
            raise RuntimeError("boom")

        return relax

    with registered(ste_with(relax=raises)):
        findings = {f.check: f for f in check_method("broken", quick=True)}
    for check in ("learns", "repeats", "resumes", "budget"):
        assert not findings[check].passed and "boom" in findings[check].detail
    assert findings["budget"].detail.startswith("not run, for the training failed: ")
