"""Step times on a GPT of 0.9M parameters.

    python -m tests.bench steps

Our step, in full precision and quantized, is compared with plain PyTorch and with the fake
quantization of other libraries. All contenders take their steps in turn in one process, on the same
batches, with the same optimizer and clipping. The report shows the median over rounds of the ratio
to our full-precision step of the same round. The compiled quantized step is compared with the
compiled full-precision step. torchao and brevitas are timed where they are installed:

    pip install torchao
    pip install --no-deps brevitas dependencies==2.0.1 unfoldNd
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from qbench_tasks.transformer import Shape, Transformer
from torch import Tensor, nn

from qbench.api.batch import Batch, Split
from qbench.api.problem import Problem
from qbench.execution.compile import compile_run
from qbench.plugins import registry
from qbench.quant.layers import QuantLayer
from qbench.runs.config import Quantization, Recipe, RunConfig
from qbench.training.calibration import calibrate
from qbench.training.loop import take_step
from qbench.training.optimizer import make_optimizer, parameter_groups
from qbench.training.run import TrainingRun
from qbench.training.setup import make_run

SHAPE = Shape(vocab=128, width=128, depth=4, heads=4, mlp=384, context=128)
RECIPE = Recipe(steps=10_000, lr=1e-4)


class RandomTokens(Problem):
    """A transformer on one batch of random tokens, for measuring speed only."""

    def __init__(self, tokens: int, shape: Shape = SHAPE) -> None:
        self.model = Transformer(shape, torch.Generator().manual_seed(0))
        draw = torch.Generator().manual_seed(1)
        data = torch.randint(
            shape.vocab, (tokens // shape.context, shape.context + 1), generator=draw
        )
        self.data = Batch(data[:, :-1].contiguous(), data[:, 1:].contiguous(), len(data))

    def batch(self, index: int) -> Batch:
        return self.data

    def batches(self, split: Split) -> list[Batch]:
        return [self.data]

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        assert batch.targets is not None
        return F.cross_entropy(output.flatten(0, -2), batch.targets.flatten())

    def layers(self) -> dict[str, QuantLayer]:
        return {
            name: m
            for name, m in self.model.named_modules()
            if isinstance(m, QuantLayer) and name != "head"
        }


def run_of(
    method: str,
    problem: Problem,
    recipe: Recipe,
    reference: nn.Module | None = None,
    **params: object,
) -> TrainingRun:
    """Return a run of a method on a problem, ready for its first step.

    Weights are quantized to int4 by channel, except for a full-precision method.
    """
    instance = registry.build("methods", method, params)
    weights = Quantization("int4", "channel") if not instance.full_precision else None
    config = RunConfig(
        0,
        method,
        instance.version,
        instance.params,
        "bench",
        1,
        {},
        "",
        "m",
        weights,
        None,
        recipe,
        "scratch",
        0,
    )
    run = make_run(problem, instance, config)
    run.reference = reference
    calibrate(run)
    run.optimizer = make_optimizer(parameter_groups(run), recipe)
    run.parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    return run


def ours(method: str, tokens: int, compiled: bool = False) -> Callable[[], None]:
    """Return a function that takes a step of our training loop with a method."""
    run = run_of(method, RandomTokens(tokens), RECIPE)
    if compiled:
        compile_run(run)
    counter = iter(range(RECIPE.steps))

    def step() -> None:
        take_step(run, next(counter))

    return step


def plain(
    tokens: int, change: Callable[[nn.Module], nn.Module] = lambda model: model
) -> Callable[[], None]:
    """Return a function that takes a step of the same network and loop in plain PyTorch."""
    problem = RandomTokens(tokens)
    model = change(Plain(SHAPE))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    inputs, targets = problem.data.inputs, problem.data.targets
    assert inputs is not None and targets is not None

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


class Plain(nn.Module):
    """The transformer of the language-model tasks, written without any code of qbench."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.depth))
        self.norm = nn.RMSNorm(shape.width, eps=1e-6)
        self.head = nn.Linear(shape.width, shape.vocab, bias=False)
        size = shape.width // shape.heads
        angles = torch.outer(
            torch.arange(shape.context), 10_000.0 ** -(torch.arange(0, size, 2) / size)
        )
        self.register_buffer("cos", angles.cos().repeat(1, 2)[:, None], persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2)[:, None], persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        out: Tensor = self.head(self.norm(x))
        return out


class PlainBlock(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, self.heads = shape.width, shape.heads
        self.one, self.two = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (
            nn.Linear(width, shape.mlp, bias=False),
            nn.Linear(width, shape.mlp, bias=False),
        )
        self.down = nn.Linear(shape.mlp, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        h = self.one(x)
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        q, k = (
            t * cos + torch.cat([-t[..., t.shape[-1] // 2 :], t[..., : t.shape[-1] // 2]], -1) * sin
            for t in (q, k)
        )
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        x = x + self.o(y.transpose(1, 2).flatten(2))
        h = self.two(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))  # type: ignore[no-any-return]


def torchao_linear(model: nn.Module) -> nn.Module:
    """Replace the linear layers of the blocks by torchao's, with int4 weights in groups of 32."""
    from torchao.quantization.qat import FakeQuantizedLinear, IntxFakeQuantizeConfig

    config = IntxFakeQuantizeConfig(torch.int4, group_size=32)  # type: ignore[attr-defined]
    return _replace_body(
        model, lambda layer: FakeQuantizedLinear.from_linear(layer, weight_config=config)
    )


def brevitas_linear(model: nn.Module) -> nn.Module:
    """Replace the linear layers of the blocks by brevitas's, with int4 weights by channel."""
    import brevitas.nn as qnn
    from brevitas.quant import Int8WeightPerChannelFloat

    def make(layer: nn.Linear) -> nn.Module:
        made: nn.Module = qnn.QuantLinear(
            layer.in_features,
            layer.out_features,
            bias=False,
            weight_quant=Int8WeightPerChannelFloat,
            weight_bit_width=4,
        )
        return made

    return _replace_body(model, make)


def _replace_body(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    assert isinstance(model, Plain)
    for block in model.blocks:
        for name, layer in list(block.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(block, name, make(layer))
    return model


@dataclass(frozen=True)
class Contender:
    """A step, and the contender whose time in the same round its own time is divided by."""

    step: Callable[[], None]
    against: str = "fp"


def contenders(tokens: int, compiled: bool) -> dict[str, Contender]:
    found = {
        "fp": Contender(ours("fp", tokens)),
        "STE int4": Contender(ours("ste", tokens)),
        "plain PyTorch": Contender(plain(tokens)),
    }
    for name, change in (
        ("torchao FakeQuantizedLinear", torchao_linear),
        ("brevitas QuantLinear", brevitas_linear),
    ):
        try:
            found[name] = Contender(plain(tokens, change))
        except ImportError:
            print(f"{name}: not installed, left out")
    if compiled:
        found["fp, compiled"] = Contender(ours("fp", tokens, compiled=True))
        found["STE int4, compiled"] = Contender(ours("ste", tokens, compiled=True), "fp, compiled")
    return found


def interleave(
    entrants: dict[str, Contender], tokens: int, rounds: int, warmup: int = 5
) -> Iterator[str]:
    """Take the contenders' steps in turn and yield a row for each contender.

    Each time is divided by the time of the contender that it is compared with in the same round.
    """
    for entrant in entrants.values():
        for _ in range(warmup):
            entrant.step()
    times: dict[str, list[float]] = {name: [] for name in entrants}
    for _ in range(rounds):
        for name, entrant in entrants.items():
            start = time.perf_counter()
            entrant.step()
            times[name].append(time.perf_counter() - start)
    for name, entrant in entrants.items():
        ratios = [a / b for a, b in zip(times[name], times[entrant.against], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        median = 1e3 * statistics.median(times[name])
        target = TARGETS.get((name, tokens))
        yield f"| {name} | {tokens} | {median:.1f} | {entrant.against} | {middle:.3f} | {low:.3f}–{high:.3f} | {target or ''} |"


TARGETS = {
    ("STE int4", 4096): 1.03,
    ("STE int4", 512): 1.10,
    ("STE int4, compiled", 4096): 1.02,
    ("STE int4, compiled", 512): 1.03,
}
"""The largest ratio that quantizing may cost.

Our full-precision step should take at most 1.02 times as long as plain PyTorch.
"""


def table(rounds: int = 60, compiled: bool = True) -> Iterator[str]:
    """Yield the lines of the report."""
    torch.set_num_threads(1)
    yield "| step | tokens | median ms | against | ratio | quartiles | target |"
    yield "|---|---:|---:|---|---:|---|---:|"
    for tokens, count in ((4096, rounds), (512, 4 * rounds)):
        yield from interleave(contenders(tokens, compiled), tokens, count)


if __name__ == "__main__":
    print("\n".join(table()))
