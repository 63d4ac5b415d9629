"""Element-wise gradient scaling. Lee, Kim & Ham, "Network Quantization with Element-wise Gradient
Scaling", arXiv 2104.00903.

    forward     x_n = clamp((x − l)/(u − l), 0, 1);   x_q = round(x_n·(L − 1))/(L − 1)
                a weight is |α|·2(x_q − ½), an input |α|·x_q;   l, u and α are learned
    backward    with d = x_n − x_q and g the gradient at x_q:
                g_n = g·(1 + δ·sign(g)·d) = g + δ·|g|·d,
                and ordinary differentiation for everything else. δ = 0 is straight-through

    δ = max(0, mean over batches of (Tr H/N)/(3·std g)) at each site, H the Hessian of the loss in
        x_q, its trace by Hutchinson's probes
    or, delta = "adaptive" (no Hessian), with a = sign(g)·(x_q − x_n) in codes, by group:
    δ = mean(a)/max(var(x_q − x_n), 1e-3), and the multiplier is 1 − min(δ·a, 0.99)

Departures. α is one a group, from least squares, and folded into the weight. An input that can be
negative takes the rule of the weights. The paper starts from a trained network; from scratch the
intervals are fitted anew during the first tenth of the run. Probes are at most eight an update
instead of fifty, and all sites are probed at once: a tenth of the run's time is all that they get.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qbench.api import INPUT, Batch, Grid, Method, Preset, Quantizer, Run, Site, widen

HALF_NORMAL = math.sqrt(1 - 2 / math.pi)
"""The standard deviation of |x| for x ~ N(0, 1)."""
UPDATES = (0.1, 0.3, 0.5, 0.7)
"""When δ is measured, as fractions of the run."""
PROBES, PROBE_STEPS = 8, 3
"""Largest number of probes of an update, and how many steps of training a probe costs."""
FITS = 50
"""How often in a whole run the intervals would be fitted anew."""


@dataclass
class EWGS(Method):
    """Scale each element's gradient up where it leads to its level and down where it leads away."""

    name = "ewgs"
    title = "Element-wise gradient scaling"
    paper = "arXiv 2104.00903"
    presets = {
        "cifar": Preset(
            "arXiv 2104.00903, CIFAR",
            {"rate": 0.01},
            {"optimizer": "adamw", "lr": 1e-3, "schedule": "cosine"},
            "fp:0.5",
        ),
        "imagenet": Preset(
            "arXiv 2104.00903, ImageNet",
            {"rate": 1e-3},
            {"optimizer": "sgd", "lr": 1e-2, "schedule": "cosine"},
            "fp:0.5",
        ),
    }

    delta: float | Literal["hessian", "adaptive"] = "hessian"
    rate: float = 0.01
    """Learning rate of l, u and α, relative to the weights'."""
    follow: float = 0.1
    """The fraction of a run from scratch during which l, u and α are fitted to the tensors."""

    def check(self) -> str | None:
        if not isinstance(self.delta, str) and not 0 <= self.delta < math.inf:
            return f"delta must not be negative, not {self.delta}"
        if not self.rate >= 0 or not 0 <= self.follow < 1:
            return (
                "rate must not be negative and follow must be in [0, 1), "
                f"not {self.rate} and {self.follow}"
            )
        return None

    def unsupported(self, site: Site) -> str | None:
        if site.number_format.codebook:
            return f"{site.format} is a codebook, and the levels of EWGS are uniform"
        most = 2 * (2**site.number_format.bits - 1)
        if not isinstance(self.delta, str) and self.delta >= most:
            return (
                f"delta = {self.delta} turns gradients round: {site.format} needs less than {most}"
            )
        return None

    def quantizer(self, site: Site) -> Quantizer:
        return EWGSQuantizer(site, self.delta)

    def param_groups(self, run: Run) -> Mapping[str, list[nn.Parameter]]:
        return {"interval": [p for quantizer in run.quantizers() for p in quantizer.parameters()]}

    def schedules(self, run: Run) -> dict[str, float]:
        return {"interval": self.rate}

    def recalibrates(self, run: Run) -> bool:
        """Return whether l, u and α are fitted anew: now and then, early in a run from scratch."""
        early = run.reference is None and 0 < run.progress <= self.follow
        return early and run.step % max(1, run.steps // FITS) == 0

    def probes(self, run: Run) -> bool:
        return self.delta == "hessian" and run.step in affordable_probes(run.steps)[0]

    def probe(self, run: Run, batch: Batch) -> None:
        """Measure δ."""
        _, probes = affordable_probes(run.steps)
        measure_delta(run, run.probe_batches(min(2, probes)), probes)

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        for quantizer in map(as_ewgs, run.quantizers()):
            quantizer.high.clamp_(min=quantizer.low + quantizer.least)

    def metrics(self, run: Run) -> dict[str, float | Tensor]:
        deltas = [
            run.mean(quantizer.delta).double() for quantizer in map(as_ewgs, run.quantizers())
        ]
        return (
            {}
            if self.delta == "adaptive" or not deltas
            else {"delta": torch.stack(deltas).sum(0) / len(deltas)}
        )


class EWGSQuantizer(Quantizer):
    delta: Tensor
    least: Tensor
    calls: Tensor
    """Number of tensors that the present calibration has seen."""

    def __init__(self, site: Site, delta: float | str) -> None:
        super().__init__(site)
        self.levels, self.adaptive = site.levels("midrise"), delta == "adaptive"
        self.signed = self.levels.low < 0
        shape = site.scale_shape if site.role == "weight" else (1, 1)
        lead = site.shape[:-2] if site.role == "weight" else ()
        self.low, self.high = nn.Parameter(-torch.ones(shape)), nn.Parameter(torch.ones(shape))
        self.alpha = nn.Parameter(torch.ones(shape))
        self.register_buffer(
            "delta",
            torch.full(
                (*lead, *(1,) * (len(shape) - len(lead))), 0.0 if isinstance(delta, str) else delta
            ),
        )
        self.register_buffer("least", torch.full(shape, 1e-2))
        self.register_buffer("calls", torch.zeros(()))

    @torch.no_grad()
    def calibrate(self, x: Tensor, first: bool) -> None:
        """Fit l, u and α by the starting rule; for an input, take the mean over batches."""
        if first:
            self.calls.zero_()
        x, fit = widen(x), self.alpha / self.reach()
        self.calls += 1
        low, high = self.interval(self.site.grouping.group(x))
        update_mean(self.low, low, self.calls)
        update_mean(self.high, high, self.calls)
        self.least.copy_((self.high - self.low) / 100)
        update_mean(fit, self.best_fit(x), self.calls)
        self.alpha.copy_(fit * self.reach())

    def reach(self) -> Tensor:
        """Return the α by which values decode to where they were encoded."""
        return (self.high - self.low) * (self.levels.high / (self.levels.count - 1))

    def interval(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return l and u of the starting rule.

        They are ∓3σ, or the minimum and three deviations of a half-normal law. The interval is
        never empty, and ∓3 where all elements are zero.
        """
        deviation = x.std(-1, keepdim=True, correction=0)
        if self.signed:
            size = torch.maximum(3 * deviation, 1.5 * x.abs().mean(-1, keepdim=True))
            size = torch.where(size > 0, size, 3.0)
            return -size, size
        low, high = x.amin(-1, keepdim=True), 3 / HALF_NORMAL * deviation
        return low, torch.where(high > low, high, torch.where(low != 0, low + low.abs(), 1.0))

    def best_fit(self, x: Tensor) -> Tensor:
        """Return the least-squares α in units of its reach; 1 where there is nothing to fit."""
        grouped, unit = (
            self.site.grouping.group(x),
            self.units(self.grid(x), x) * self.reach() / self.levels.high,
        )
        dot, square = (grouped * unit).sum(-1, keepdim=True), unit.square().sum(-1, keepdim=True)
        return torch.where((dot > 0) & (square > 0), dot / square, 1.0)

    def grid(self, x: Tensor) -> Grid:
        scale = (self.high - self.low) / (self.levels.high - self.levels.low)
        offset = self.low - scale * self.levels.low
        return Grid(
            self.levels, self.site.grouping, scale, offset, self.alpha.abs() / self.levels.high
        )

    def units(self, grid: Grid, x: Tensor) -> Tensor:
        """Return the unit level of each element, grouped."""
        return self.site.grouping.group(grid.codes(x)).to(grid.scale.dtype) + self.levels.low

    def relax(self, x: Tensor) -> Tensor:
        grid = self.grid(x)
        z = grid.encode(x).clamp(self.levels.low, self.levels.high)
        with torch.no_grad():
            unit = self.units(grid, x).to(z.dtype)
        # d is in units of x_n, and z in codes
        scaled = (
            _Adaptive.apply(z, unit)
            if self.adaptive
            else _Scaled.apply(z, unit, self.delta / (self.levels.count - 1))
        )  # type: ignore[no-untyped-call]
        return (scaled * grid.decoding()[0]).reshape(x.shape)  # type: ignore[no-any-return]


class _Scaled(torch.autograd.Function):
    """Rounding, with the gradient g + δ·|g|·d.

    It is not linear in g, so no differentiable expression has it.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, unit: Tensor, delta: Tensor) -> Tensor:
        ctx.save_for_backward(z - unit, delta)
        return unit.view_as(unit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        error, delta = ctx.saved_tensors
        return grad + delta * grad.abs() * error, None, None


class _Adaptive(torch.autograd.Function):
    """Rounding, with a gradient scaled by how errors and gradients of the group go together."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, unit: Tensor) -> Tensor:
        ctx.save_for_backward(unit - z)
        return unit.view_as(unit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (error,) = ctx.saved_tensors
        against = grad.sign() * error
        delta = against.mean(-1, keepdim=True) / error.var(-1, keepdim=True, correction=0).clamp(
            min=1e-3
        )
        return grad * (1 - (delta * against).clamp(max=0.99)), None


def as_ewgs(quantizer: Quantizer) -> EWGSQuantizer:
    """Return a quantizer as what it is."""
    assert isinstance(quantizer, EWGSQuantizer)
    return quantizer


def update_mean(mean: Tensor, value: Tensor, count: Tensor) -> None:
    """Take one more value into a mean; the first one is taken exactly, whatever stood there."""
    mean.mul_(1 - 1 / count).add_(value / count)


def affordable_probes(steps: int) -> tuple[list[int], int]:
    """Return the steps at which δ is measured, and the probes of each time.

    All probes of a run cost a tenth of it.
    """
    affordable = max(1, steps // (10 * PROBE_STEPS))
    updates = min(len(UPDATES), affordable)
    steps_of_updates = [math.ceil(share * steps) for share in UPDATES[:updates]]
    return steps_of_updates, min(PROBES, affordable // updates)


def measure_delta(run: Run, batches: list[Batch], probes: int) -> None:
    """Set δ at every site, from the curvature and the gradient in its x_q."""
    ratios: dict[str, Tensor] = {}
    for index, batch in enumerate(batches):
        own_probes = range(index, probes, len(batches))
        for name, ratio in curvature_ratios(run, batch, own_probes).items():
            ratios[name] = ratios.get(name, 0) + ratio / len(batches)
    weights = [(stack.names, stack.quantizer) for stack in run.weights]
    inputs = [([name + INPUT], quantizer) for name, quantizer in run.inputs.items()]
    for names, quantizer in [*weights, *inputs]:
        ewgs = as_ewgs(quantizer)
        # A larger δ could turn a gradient round.
        most = 0.99 * 2 * (ewgs.levels.count - 1)
        delta = torch.stack([ratios[name] for name in names]).clamp(0, most)
        ewgs.delta.copy_(delta.view(ewgs.delta.shape))


def curvature_ratios(run: Run, batch: Batch, probes: range) -> dict[str, Tensor]:
    """Return (Tr H/N)/(3·std g) in each site's x_q, on one batch.

    Hutchinson: with random signs v, the mean of vᵀHv is the trace of H.
    """
    loss, tensors_by_site = run.probe_loss(batch)
    names, tensors = list(tensors_by_site), list(tensors_by_site.values())
    slopes = map_sites(run, tensors_by_site, output_slope)
    first = torch.autograd.grad(loss, tensors, create_graph=True)
    grads = dict(zip(names, first, strict=True))
    traces = dict.fromkeys(names, torch.zeros((), device=loss.device))
    for probe in probes:
        signs = map_sites(run, tensors_by_site, random_signs(1 + probe))
        along = sum((grads[n] * signs[n] * slopes[n]).sum() for n in names)
        seconds = torch.autograd.grad(
            along,  # type: ignore[arg-type]
            tensors,
            retain_graph=True,
            materialize_grads=True,
        )
        for n, second in zip(names, seconds, strict=True):
            traces[n] = traces[n] + (second * signs[n] * slopes[n]).mean() / len(probes)
    spreads = {n: 3 * (grads[n].detach() * slopes[n]).std(correction=0) for n in names}
    return {n: torch.where(spreads[n] > 0, traces[n] / spreads[n], 0.0) for n in names}


@torch.no_grad()
def map_sites(
    run: Run, tensors: Mapping[str, Tensor], f: Callable[[EWGSQuantizer, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return `f` of each site's quantizer and tensor, in the shape that the network uses."""
    results = {
        name + INPUT: f(as_ewgs(quantizer), tensors[name + INPUT])
        for name, quantizer in run.inputs.items()
    }
    for stack in run.weights:
        parts = f(as_ewgs(stack.quantizer), stack.stack()).unbind(-3)
        for name, layer, part in zip(stack.names, stack.layers, parts, strict=True):
            results[name] = layer.as_weight(part)
    return results


def output_slope(quantizer: EWGSQuantizer, x: Tensor) -> Tensor:
    """Return how fast the output moves with x_q: 2|α| or |α|."""
    scale = quantizer.grid(x).decoding()[0] * (quantizer.levels.count - 1)
    return scale.expand(quantizer.site.grouping.group(x).shape).reshape(x.shape)


def random_signs(stream: int) -> Callable[[EWGSQuantizer, Tensor], Tensor]:
    """Return a function that draws ±1 for each element."""

    def draw(quantizer: EWGSQuantizer, x: Tensor) -> Tensor:
        return 1.0 - 2.0 * (quantizer.random(x, stream) < 0.5).to(x.dtype)

    return draw
