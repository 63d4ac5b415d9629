"""Quantizers, quantized layers and weight stacks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench import Site, load_method
from qbench.quant.grid import Grid
from qbench.quant.layers import QuantConv2d, QuantLayer, QuantLinear
from qbench.quant.quantizer import Quantizer
from qbench.quant.straight_through import straight_through
from qbench.quant.weight_stack import WeightStack


def test_a_quantizer_can_be_made_without_a_run() -> None:
    w = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    q = load_method("ste")().quantizer(
        Site(name="w", role="weight", format="int4", granularity="channel", shape=(8, 16))
    )
    assert q is not None
    assert torch.equal(q.relax(w), q.grid(w).snap(w)) and not torch.equal(q.relax(w), w)


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(TypeError, match="no_such"):
        load_method("ste")(no_such=1)


def test_forward_is_final() -> None:
    with pytest.raises(TypeError, match="write relax"):

        class Wrong(Quantizer):
            def forward(self, x: Tensor) -> Tensor:
                return x


def random_layers(count: int, make: type[QuantLayer], *shape: int) -> list[QuantLayer]:
    draw = torch.Generator().manual_seed(1)
    layers = [make(*shape) for _ in range(count)]
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, generator=draw)
    return layers


def stack_layers(layers: list[QuantLayer]) -> QuantLayer:
    """One layer whose weights have an axis of runs in front."""
    one = layers[0]
    one.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
    biases = [layer.bias for layer in layers if layer.bias is not None]
    one.bias = nn.Parameter(torch.stack([b.detach() for b in biases]))
    return one


@pytest.mark.parametrize(
    ("make", "shape", "x_shape"),
    [(QuantLinear, (6, 4), (3, 5, 7, 6)), (QuantConv2d, (2, 4, 3), (3, 5, 2, 8, 8))],
)
def test_a_layer_of_stacked_runs_computes_what_single_layers_do(
    make: type[QuantLayer], shape: tuple[int, ...], x_shape: tuple[int, ...]
) -> None:
    layers = random_layers(3, make, *shape)
    x = torch.randn(x_shape, generator=torch.Generator().manual_seed(2))
    single = torch.stack([layer(x[i]) for i, layer in enumerate(layers)])
    stacked = stack_layers(layers)(x)
    assert stacked.shape == single.shape
    torch.testing.assert_close(stacked, single, rtol=1e-5, atol=1e-5)


def make_weight_stack(layers: list[QuantLayer], method: str = "ste") -> WeightStack:
    names = [f"w{i}" for i in range(len(layers))]
    site = Site(names[0], "weight", "int2", "channel", tuple(layers[0].matrix().shape)).stacked(
        ",".join(names), len(names)
    )
    quantizer = load_method(method)().quantizer(site)
    assert quantizer is not None
    quantizer.set_seed(0, names)
    return WeightStack(names, layers, quantizer)


def test_a_weight_stack_gives_the_gradient_of_quantizing_in_each_layer() -> None:
    """Quantizing once in a step and quantizing in each forward pass give the same gradients."""
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    layers = random_layers(2, QuantLinear, 6, 6)
    weight_stack = make_weight_stack(layers)
    weight_stack.quantize()
    for half in x.split([2, 3]):
        layers[1](F.relu(layers[0](half))).square().sum().backward()
    weight_stack.backward_through_quantizer()
    gradients = [layer.weight.grad for layer in layers]
    quantizers = [make_weight_stack([layer]).quantizer for layer in layers]
    used = [q.relax(layer.weight[None])[0] for q, layer in zip(quantizers, layers, strict=True)]
    y = F.linear(F.relu(F.linear(x, used[0], layers[0].bias)), used[1], layers[1].bias)
    expected = torch.autograd.grad(y.square().sum(), [layer.weight for layer in layers])
    for a, b in zip(gradients, expected, strict=True):
        assert a is not None
        torch.testing.assert_close(a, b)
    assert layers[0].used is None


def test_an_input_quantizer_is_not_part_of_the_model() -> None:
    layer = QuantLinear(4, 4)
    before = set(layer.state_dict())
    quantizer = load_method("ste")().quantizer(
        Site("x.input", "activation", "int4", "tensor", (1, 4), unsigned=True)
    )
    assert quantizer is not None
    quantizer.calibrate(torch.tensor([[0.0, 1.5]]), first=True)
    layer.set_input_quantizer(quantizer.eval())
    assert set(layer.state_dict()) == before and not list(layer.children())
    x = torch.rand(2, 3, 4)
    assert len(layer.quantize_input(x).unique()) <= 16 and layer.quantize_input(x).shape == x.shape


def test_inputs_of_a_convolution_are_quantized_as_samples_by_features() -> None:
    shapes = []
    layer = QuantConv2d(2, 4, 3)
    layer.set_input_quantizer(lambda x: (shapes.append(x.shape), x)[1])
    layer(torch.zeros(5, 2, 8, 8))
    assert shapes == [(5, 128)]


@pytest.mark.parametrize("masked", [False, True])
def test_straight_through_is_exact_forward_and_masked_backward(masked: bool) -> None:
    x = torch.tensor([0.1, 0.7, -3.0], requires_grad=True)
    value, mask = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([True, True, False])
    y = straight_through(x, value, mask if masked else None)
    assert torch.equal(y, value)
    y.backward(torch.tensor([2.0, 3.0, 4.0]))
    assert x.grad is not None and x.grad.tolist() == [2.0, 3.0, 0.0 if masked else 4.0]


def test_straight_through_is_right_when_compiled() -> None:
    """If torch 2.13 dropped the backward pass, the gradient would be that of round(): zero."""
    compiled = torch.compile(
        lambda x: straight_through(x, x.detach().round(), x.detach().abs() < 2).square().sum(),
        backend="aot_eager",
    )
    x = torch.tensor([0.6, -1.4, 5.0], requires_grad=True)
    compiled(x).backward()
    assert x.grad is not None and x.grad.tolist() == [2.0, -2.0, 0.0]


def test_float16_weights_are_widened() -> None:
    q = load_method("rtn")().quantizer(Site("w", "weight", "int8", "channel", (2, 4)))
    assert q is not None and isinstance(q.grid(torch.randn(2, 4).half()), Grid)
    assert q.eval()(torch.randn(2, 4).half()).dtype == torch.float32
