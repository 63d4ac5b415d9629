"""The task twolayer: closed forms against samples and double differentiation."""

from __future__ import annotations

import pytest
import torch
from qbench_tasks.twolayer import TwoLayer, TwoLayerProblem

CPU = torch.device("cpu")


def problem(size: str = "xs", seed: int = 0, **options: object) -> TwoLayerProblem:
    return TwoLayer(**options).problem(size, seed, 64, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("rotated", [False, True])
def test_the_closed_form_is_the_mean_over_samples(rotated: bool) -> None:
    p = problem(exact=False, rotated=rotated, noise=0.3)
    with torch.no_grad():
        losses = torch.stack([p.loss(p.model(b.inputs), b) for b in map(p.batch, range(400))])
        expected = p.population.excess_loss(p.model(None)) + 0.3**2 / 2
    assert abs(losses.mean() - expected) < 4 * losses.std() / len(losses) ** 0.5


@pytest.mark.parametrize("rotated", [False, True])
def test_the_hessian_diagonal_is_exact_at_the_weights(rotated: bool) -> None:
    p = problem(rotated=rotated)
    first, second = p.model.first, p.model.second

    def along_second(v: torch.Tensor) -> torch.Tensor:
        return p.population.excess_loss(v @ first.weight.detach())

    full = torch.autograd.functional.hessian(along_second, second.weight.detach())[0, :, 0, :]
    torch.testing.assert_close(
        p.hessian_diagonal(second), full.diagonal().unsqueeze(0), rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(p.input_moment(second), full, rtol=1e-3, atol=1e-5)

    def along_row(w: torch.Tensor) -> torch.Tensor:
        rows = torch.cat((first.weight.detach()[:3], w, first.weight.detach()[4:]))
        return p.population.excess_loss(second.weight.detach() @ rows)

    row = torch.autograd.functional.hessian(along_row, first.weight.detach()[3:4])[0, :, 0, :]
    torch.testing.assert_close(p.hessian_diagonal(first)[3], row.diagonal(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        second.weight.detach()[0, 3] ** 2 * p.input_moment(first), row, rtol=1e-3, atol=1e-5
    )


def test_both_layers_are_quantized_and_the_width_is_swept() -> None:
    for size, meaning in TwoLayer.sizes.items():
        layers = problem(size).layers()
        assert [tuple(layer.weight.shape) for layer in layers.values()] == [
            (meaning["hidden"], 256),
            (1, meaning["hidden"]),
        ]


def test_the_start_is_far_from_the_teacher_at_every_width() -> None:
    for size in TwoLayer.sizes:
        p = problem(size)
        ratio = p.score(p.model, "test")["loss"] / float(
            p.population.excess_loss(torch.zeros(1, 256))
        )
        assert 0.5 < ratio < 2


def test_options_out_of_their_domain_are_refused() -> None:
    assert (
        TwoLayer(noise=-1).check()
        and TwoLayer(alpha=-0.1).check()
        and TwoLayer(noise=0.1).check()
        and TwoLayer().check() is None
    )
