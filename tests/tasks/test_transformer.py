"""The transformer against the same network written plainly in PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from qbench_tasks.transformer import EPS, Rope, Shape, Transformer, rotate_pairs
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qbench.quant.layers import QuantLinear

SHAPE = Shape(vocab=19, width=32, depth=2, heads=4, mlp=48, context=16)


def model(shape: Shape = SHAPE, seed: int = 0) -> Transformer:
    return Transformer(shape, torch.Generator().manual_seed(seed))


def tokens(count: int = 3, time: int = 16) -> Tensor:
    return torch.randint(SHAPE.vocab, (count, time), generator=torch.Generator().manual_seed(1))


def plainly(m: Transformer, ids: Tensor) -> Tensor:
    """Llama's network, with an explicit attention matrix and complex rotations."""
    width, heads, time = m.shape.width, m.shape.heads, ids.shape[1]
    half = width // heads // 2

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def turn(x: Tensor) -> Tensor:
        angles = torch.arange(time).unsqueeze(1) * 10_000.0 ** -(torch.arange(half) / half)
        z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(
            torch.ones_like(angles), angles
        )
        return torch.cat((z.real, z.imag), -1)

    x = m.embedding.weight[ids]
    for block in m.blocks:
        a = block.attention
        h = norm(x, block.before_attention.weight)
        q, k, v = (split(h @ layer.weight.T) for layer in (a.q, a.k, a.v))
        if a.q_norm is not None:
            q, k = norm(q, a.q_norm.weight), norm(k, a.k_norm.weight)
        scores = turn(q) @ turn(k).mT / (width // heads) ** 0.5
        scores = scores.masked_fill(torch.ones(time, time).triu(1).bool(), float("-inf"))
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ a.o.weight.T
        h = norm(x, block.before_mlp.weight)
        x = (
            x
            + (F.silu(h @ block.mlp.gate.weight.T) * (h @ block.mlp.up.weight.T))
            @ block.mlp.down.weight.T
        )
    return norm(x, m.norm.weight) @ m.head.weight.T


@pytest.mark.parametrize("qk_norm", [False, True])
def test_it_is_the_network_written_plainly(qk_norm: bool) -> None:
    m = model(Shape(**{**vars(SHAPE), "qk_norm": qk_norm}))
    with torch.no_grad():
        for name, parameter in m.named_parameters():
            if "norm" in name or "before" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    ours, plain = m(tokens()), plainly(m, tokens())
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    probe = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    parameters = list(m.parameters())
    for a, b in zip(
        torch.autograd.grad(ours, parameters, probe),
        torch.autograd.grad(plain, parameters, probe),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_the_future_is_not_seen_and_a_shorter_text_is_a_beginning() -> None:
    m, ids = model(), tokens()
    changed = ids.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % SHAPE.vocab
    torch.testing.assert_close(m(ids)[:, :9], m(changed)[:, :9])
    torch.testing.assert_close(m(ids)[:, :9], m(ids[:, :9]), rtol=1e-4, atol=1e-5)


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    cos, sin = Rope(64, 8)(64)
    q, k = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(2, 64, 1, 8)
    turned_q, turned_k = rotate_pairs(q, cos, sin)[:, 0], rotate_pairs(k, cos, sin)[:, 0]
    torch.testing.assert_close(turned_q.norm(dim=-1), q[:, 0].norm(dim=-1))
    products = turned_q @ turned_k.mT
    for distance in (-3, 0, 5):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)


def test_sizes_are_counted_right() -> None:
    for shape in (SHAPE, Shape(19, 32, 3, 2, 64, 8, qk_norm=True)):
        m = model(shape)
        assert sum(p.numel() for p in m.parameters()) == shape.parameters
        assert sum(layer.weight.numel() for _, layer in m.body()) == shape.body


def test_flops_are_those_of_the_products() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    m, ids = model(), tokens()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        m(ids).sum().backward()
    attention = 3 * 2 * 2 * SHAPE.depth * SHAPE.width * SHAPE.context  # a token, without a mask
    assert counter.get_total_flops() == pytest.approx(
        SHAPE.flops(ids.numel()) + ids.numel() * attention / 2
    )


def test_the_start_is_reproducible_and_keeps_the_signal_in_scale() -> None:
    a, b = model(seed=3), model(seed=3)
    assert all(map(torch.equal, a.parameters(), b.parameters()))
    assert 0.3 < a(tokens(8)).std() < 1.5


def test_the_body_is_everything_but_embedding_and_head() -> None:
    m = model()
    every = {name for name, module in m.named_modules() if isinstance(module, QuantLinear)}
    assert every - {name for name, _ in m.body()} == {"head"} and len(every) == 7 * SHAPE.depth + 1


def test_it_can_be_differentiated_twice() -> None:
    m = model()
    with sdpa_kernel(SDPBackend.MATH):
        loss = m(tokens()).square().mean()
        weight = m.get_parameter("blocks.0.attention.q.weight")
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        (product,) = torch.autograd.grad(gradient.sum(), weight)
    assert torch.isfinite(product).all() and product.abs().max() > 0


def test_two_axes_of_runs() -> None:
    models = [model(seed=seed) for seed in range(4)]
    one = model()
    for name, parameter in one.named_parameters():
        parameter.data = torch.stack([m.get_parameter(name).data for m in models]).unflatten(
            0, (2, 2)
        )
    together = one(tokens().expand(2, 2, 3, 16)).flatten(0, 1)
    torch.testing.assert_close(
        together, torch.stack([m(tokens()) for m in models]), rtol=1e-4, atol=1e-5
    )


def test_bf16_stays_close() -> None:
    m = model()
    with torch.autocast("cpu", torch.bfloat16):
        low = m(tokens())
    assert (low.float() - m(tokens())).abs().max() < 0.1


def test_a_weight_in_use_replaces_the_weight() -> None:
    m = model()
    layer: nn.Module = m.get_submodule("blocks.1.mlp.down")
    before = m(tokens())
    layer.used = torch.zeros_like(layer.weight)  # type: ignore[arg-type]
    assert not torch.equal(m(tokens()), before)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_each_run_has_the_bits_that_it_has_alone(backend: SDPBackend, gated: bool) -> None:
    """Also where its numbers neither begin on a cache line nor fill vectors."""
    shape = Shape(vocab=19, width=40, depth=2, heads=2, mlp=24, context=5, gated=gated)
    models, ids = [model(shape, seed) for seed in range(6)], tokens(18, 5).unflatten(0, (6, 3))
    whole = model(shape)
    for name, parameter in whole.named_parameters():
        parameter.data = torch.stack([m.get_parameter(name).data for m in models])
    probe = torch.randn(6, 3, 5, 19, generator=torch.Generator().manual_seed(2))
    with sdpa_kernel(backend):
        together = whole(ids)
        together.backward(probe)
        for place, m in enumerate(models):
            alone = m(ids[place].clone())
            alone.backward(probe[place].clone())
            assert torch.equal(together[place], alone)
            for name, parameter in m.named_parameters():
                grad = whole.get_parameter(name).grad
                assert (
                    grad is not None
                    and parameter.grad is not None
                    and torch.equal(grad[place], parameter.grad)
                ), name
