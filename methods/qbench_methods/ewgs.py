"""Element-wise gradient scaling. Lee, Kim & Ham, "Network Quantization with Element-wise Gradient Scaling", arXiv 2104.00903.

    forward     x_n = clamp((x − l)/(u − l), 0, 1);   x_q = round(x_n·(L − 1))/(L − 1)
                a weight is |α|·2(x_q − ½), an input |α|·x_q;   l, u and α are learned
    backward    with d = x_n − x_q and g the gradient at x_q:   g_n = g·(1 + δ·sign(g)·d) = g + δ·|g|·d
                and ordinary differentiation for everything else.  δ = 0 is the straight-through estimator

    δ = max(0, mean over batches of (Tr H/N)/(3·std g)) at each site, H the Hessian of the loss in x_q, its trace by Hutchinson's probes
    or, delta = "adaptive" (no Hessian), with a = sign(g)·(x_q − x_n) in codes, by group:
    δ = mean(a)/max(var(x_q − x_n), 1e-3) and the multiplier is 1 − min(δ·a, 0.99)

Departures. α is one a group, from least squares, and folded into the weight. An input that can be negative takes the rule of the weights.
The paper starts from a trained network; from scratch the intervals are fitted anew during the first tenth of the run.
Probes are at most eight an update instead of fifty, and all sites are probed at once: a tenth of the run's time is all they get.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qbench.api import Batch, Grid, Method, Preset, Quantizer, Site, widen
from qbench.training.quantized_network import INPUT
from qbench.training.run import Run

HALF_NORMAL = math.sqrt(1 - 2 / math.pi)
"""The deviation of |x| for x ~ N(0, 1)."""
UPDATES = (0.1, 0.3, 0.5, 0.7)
"""When δ is measured."""
PROBES, PROBE_STEPS = 8, 3
"""Probes of an update at most, and how many steps of training one costs."""
LOOKS = 50


@dataclass
class EWGS(Method):
    """Scale each element's gradient up where it leads to its level and down where it leads away."""

    name = "ewgs"
    title = "Element-wise gradient scaling"
    paper = "arXiv 2104.00903"
    knobs = ("delta", "rate")
    varies = ("delta", "rate", "format")
    compiled_alike = True

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
    """The fraction of a run from scratch during which l, u and α follow the tensors."""

    def check(self) -> str | None:
        if not isinstance(self.delta, str) and not 0 <= self.delta < math.inf:
            return f"delta must not be negative, not {self.delta}"
        if not self.rate >= 0 or not 0 <= self.follow < 1:
            return f"rate must not be negative and follow must be in [0, 1), not {self.rate} and {self.follow}"
        return None

    def alone(self) -> None:
        return None

    def unrecorded(self) -> None:
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

    def prepare(self, run: Run, batches: list[Batch]) -> None:
        run.lr_scale["interval"] = self.rate
        run.calibrate(batches)

    def param_groups(self, run: Run) -> Mapping[str, list[nn.Parameter]]:
        return {"interval": [p for quantizer in run.quantizers() for p in quantizer.parameters()]}

    def before_step(self, run: Run, batch: Batch) -> None:
        if (
            run.reference is None
            and 0 < run.progress <= self.follow
            and run.step % max(1, run.steps // LOOKS) == 0
        ):
            look_again(run)
        updates, probes = plan(run.steps)
        if self.delta == "hessian" and run.step in updates:
            for one, _ in run.each(batch):
                measure_delta(one, one.probe_batches(min(2, probes)), probes)

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        for quantizer in map(own, run.quantizers()):
            quantizer.high.clamp_(min=quantizer.low + quantizer.least)

    def metrics(self, run: Run) -> dict[str, float | Tensor]:
        deltas = [run.mean(quantizer.delta).double() for quantizer in map(own, run.quantizers())]
        return (
            {}
            if self.delta == "adaptive" or not deltas
            else {"delta": torch.stack(deltas).sum(0) / len(deltas)}
        )


class EWGSQuantizer(Quantizer):
    delta: Tensor
    least: Tensor
    looks: Tensor

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
        self.register_buffer("looks", torch.zeros(()))

    def forget(self) -> None:
        self.looks.zero_()

    @torch.no_grad()
    def reset(self, x: Tensor) -> None:
        """l, u and α by the starting rule; the mean over batches for an input."""
        x, fit = widen(x), self.alpha / self.reach()
        self.looks += 1
        for parameter, start in zip(
            (self.low, self.high), self.interval(self.site.grouping.group(x)), strict=True
        ):
            average(parameter, start, self.looks)
        self.least.copy_((self.high - self.low) / 100)
        average(fit, self.best_fit(x), self.looks)
        self.alpha.copy_(fit * self.reach())

    def reach(self) -> Tensor:
        """The α by which values decode to where they were encoded."""
        return (self.high - self.low) * (self.levels.high / (self.levels.count - 1))

    def interval(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """∓3σ, or from the minimum to three deviations of a half-normal law; never empty, and ∓3 where all is zero."""
        deviation = x.std(-1, keepdim=True, correction=0)
        if self.signed:
            size = torch.maximum(3 * deviation, 1.5 * x.abs().mean(-1, keepdim=True))
            size = torch.where(size > 0, size, 3.0)
            return -size, size
        low, high = x.amin(-1, keepdim=True), 3 / HALF_NORMAL * deviation
        return low, torch.where(high > low, high, torch.where(low != 0, low + low.abs(), 1.0))

    def best_fit(self, x: Tensor) -> Tensor:
        """The least-squares α in units of its reach; 1 where there is nothing to fit."""
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
        """The unit level of each element, grouped."""
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
    """Rounding, with the gradient g + δ·|g|·d. No expression has it: it is not linear in g."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, unit: Tensor, delta: Tensor) -> Tensor:
        ctx.save_for_backward(z - unit, delta)
        return unit.view_as(unit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        error, delta = ctx.saved_tensors
        return grad + delta * grad.abs() * error, None, None


class _Adaptive(torch.autograd.Function):
    """Rounding, with a gradient that is scaled by how errors and gradients of the group go together."""

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


def own(quantizer: Quantizer) -> EWGSQuantizer:
    assert isinstance(quantizer, EWGSQuantizer)
    return quantizer


def average(mean: Tensor, value: Tensor, count: Tensor) -> None:
    """Take one more value into a mean; the first one is taken exactly, whatever stood there."""
    mean.mul_(1 - 1 / count).add_(value / count)


def look_again(run: Run) -> None:
    """l, u and α as if the run began here."""
    for bundle in run.bundles:
        bundle.quantizer.forget()
        bundle.quantizer.reset(bundle.stack().detach())
    run.calibrate(run.probe_batches(4))


def plan(steps: int) -> tuple[list[int], int]:
    """The steps at which δ is measured and the probes of each time: a tenth of the run's cost in all."""
    affordable = max(1, steps // (10 * PROBE_STEPS))
    updates = min(len(UPDATES), affordable)
    return [math.ceil(u * steps) for u in UPDATES[:updates]], min(PROBES, affordable // updates)


def measure_delta(run: Run, batches: list[Batch], probes: int) -> None:
    """δ at every site, from the curvature and the gradient in its x_q."""
    found: dict[str, Tensor] = {}
    for index, batch in enumerate(batches):
        for name, ratio in curvature_ratios(run, batch, range(index, probes, len(batches))).items():
            found[name] = found.get(name, 0) + ratio / len(batches)
    for names, quantizer in [(b.names, b.quantizer) for b in run.bundles] + [
        ([n + INPUT], q) for n, q in run.inputs.items()
    ]:
        most = 0.99 * 2 * (own(quantizer).levels.count - 1)
        delta = torch.stack([found[name] for name in names]).clamp(0, most)
        own(quantizer).delta.copy_(delta.view(own(quantizer).delta.shape))


def curvature_ratios(run: Run, batch: Batch, probes: range) -> dict[str, Tensor]:
    """(Tr H/N)/(3·std g) in each site's x_q, on one batch."""
    loss, made = run.probe_loss(batch)
    names, tensors = list(made), list(made.values())
    slopes = by_site(run, made, slope)
    grads = dict(zip(names, torch.autograd.grad(loss, tensors, create_graph=True), strict=True))
    traces = dict.fromkeys(names, torch.zeros((), device=loss.device))
    for probe in probes:
        signs = by_site(
            run, made, lambda q, x: 1.0 - 2.0 * (q.draw(x, 1 + probe) < 0.5).to(x.dtype)
        )  # noqa: B023
        along = sum((grads[n] * signs[n] * slopes[n]).sum() for n in names)
        seconds = torch.autograd.grad(along, tensors, retain_graph=True, materialize_grads=True)  # type: ignore[arg-type]
        for n, second in zip(names, seconds, strict=True):
            traces[n] = traces[n] + (second * signs[n] * slopes[n]).mean() / len(probes)
    spreads = {n: 3 * (grads[n].detach() * slopes[n]).std(correction=0) for n in names}
    return {n: torch.where(spreads[n] > 0, traces[n] / spreads[n], 0.0) for n in names}


@torch.no_grad()
def by_site(
    run: Run, made: Mapping[str, Tensor], make: Callable[[EWGSQuantizer, Tensor], Tensor]
) -> dict[str, Tensor]:
    """What `make` says of each site's elements, in the shape in which the network uses them."""
    found = {name + INPUT: make(own(q), made[name + INPUT]) for name, q in run.inputs.items()}
    for bundle in run.bundles:
        parts = make(own(bundle.quantizer), bundle.stack()).unbind(-3)
        found |= {
            n: layer.as_weight(part)
            for n, layer, part in zip(bundle.names, bundle.layers, parts, strict=True)
        }
    return found


def slope(quantizer: EWGSQuantizer, x: Tensor) -> Tensor:
    """How fast the output moves with x_q: 2|α| or |α|."""
    scale = quantizer.grid(x).decoding()[0] * (quantizer.levels.count - 1)
    return scale.expand(quantizer.site.grouping.group(x).shape).reshape(x.shape)
