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
from qbench.checks.method_contract import check_alike, check_beside, check_compiles, check_method
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_the_kit_finds_a_method_that_is_another_one_compiled_in_company(tmp_path: Path) -> None:
    """It says that it is the same one; eagerly it is."""

    def relax(q: Quantizer) -> Any:
        def relax(x: Tensor) -> Tensor:
            crowded = torch.compiler.is_compiling() and x.dim() > 3
            return straight_through(x, q.grid(x).snap(x) * (1 + 1e-6 * crowded))

        return relax

    broken = ste_with(relax=relax)
    broken.alone, broken.compiled_alike = lambda self: None, True  # type: ignore[method-assign]
    with registered(broken):
        assert all(f.passed for f in check_beside(Kit("broken", tmp_path)))
        assert [f.detail for f in check_alike(Kit("broken", tmp_path))] == [
            "trained beside others it differs"
        ] * 3
    found = list(check_alike(Kit("fp", tmp_path)))
    assert [f.passed for f in found] == [True] * 3, found
    assert not list(check_alike(Kit("gdnsq", tmp_path))), "it does not say so"


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
