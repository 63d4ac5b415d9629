"""The task linreg: loss, gradient and Hessian against each other and against samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qbench_tasks.linreg import LinReg, LinRegProblem
from qbench_tasks.population import Population, draw_rotation

from qbench.errors import UsageError

CPU = torch.device("cpu")


def problem(size: str = "xs", **options: object) -> LinRegProblem:
    return LinReg(**options).problem(size, 0, 64, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("rotated", [False, True])
def test_gradient_and_hessian_are_those_of_the_loss(rotated: bool) -> None:
    p = problem(rotated=rotated, start=1.0)
    (layer,) = p.layers().values()

    def loss(w: torch.Tensor) -> torch.Tensor:
        return p.population.excess_loss(w)

    w = layer.weight.detach()
    hessian = torch.autograd.functional.hessian(loss, w)[0, :, 0, :]
    torch.testing.assert_close(p.input_moment(layer), hessian, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        p.hessian_diagonal(layer), hessian.diagonal().unsqueeze(0), rtol=1e-4, atol=1e-6
    )
    p.loss(p.model(None), p.batch(0)).backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(
        layer.weight.grad, (w - p.population.teacher) @ hessian, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("rotated", [False, True])
def test_the_spectrum_is_a_power_law(rotated: bool) -> None:
    p = problem("s", rotated=rotated, alpha=1.5)
    values = torch.linalg.eigvalsh(p.input_moment(p.model.line).double()).flip(0)
    torch.testing.assert_close(
        values, torch.arange(1, 513, dtype=torch.float64) ** -1.5, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("rotated", [False, True])
def test_samples_have_the_population_loss_as_their_mean(rotated: bool) -> None:
    noise = 0.5
    p = problem(rotated=rotated, exact=False, noise=noise, start=1.0)
    with torch.no_grad():
        losses = torch.stack([p.loss(p.model(b.inputs), b) for b in map(p.batch, range(400))])
        expected = p.population.excess_loss(p.model(None)) + noise**2 / 2
    assert abs(losses.mean() - expected) < 4 * losses.std() / len(losses) ** 0.5
    assert p.work.labels == 64 and problem().work.labels == 1


@torch.no_grad()
def test_the_metric_is_the_population_loss_of_the_weight_in_use() -> None:
    p = problem(exact=False)
    p.model.line.used = p.population.teacher.clone()
    assert p.score(p.model, "test") == {"loss": 0.0}
    p.model.line.used = None
    assert p.score(p.model, "test")["loss"] == pytest.approx(
        float(p.population.excess_loss(torch.zeros(1, 256)))
    )


@given(d=st.integers(2, 40), seed=st.integers(0, 2**30))
def test_a_rotation_is_orthogonal(d: int, seed: int) -> None:
    q = draw_rotation(d, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(q @ q.mT, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_teacher_is_the_same_rotated_or_not_and_another_for_another_seed() -> None:
    def teacher(seed: int, rotated: bool) -> torch.Tensor:
        return Population("linreg", seed, 64, 1.1, rotated, 0.0, CPU).teacher

    assert torch.equal(teacher(0, False), teacher(0, True)) and not torch.equal(
        teacher(0, False), teacher(1, False)
    )


def test_options_out_of_their_domain_are_refused() -> None:
    assert (
        LinReg(noise=-1).check()
        and LinReg(alpha=9).check()
        and LinReg(noise=0.1).check()
        and LinReg(start=-1).check()
    )
    with pytest.raises(UsageError, match="rotated needs d"):
        problem("l", rotated=True)


def test_the_paper_size_is_one_group_of_twelve_thousand() -> None:
    p = problem("l")
    assert p.model.line.weight.shape == (1, 12_000) and p.hessian_diagonal(p.model.line).shape == (
        1,
        12_000,
    )
