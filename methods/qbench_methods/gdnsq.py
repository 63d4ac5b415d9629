"""GDNSQ: gradual differentiable noise scale quantization, arXiv 2508.14004.

The noise is the rounding error and its scale is the step s. A network begins with fine steps, which
grow by gradient until the codes fit the format. The forward pass is deterministic.

    forward     c = clip(x, lo, hi);  v = (c − z)/s;  y = round(v)·s + z
    weights     z = min of the group, nothing is clipped;   bits = log2(R/s + 1),  R = max − min
    inputs      z = lo = b,  hi = b + q − s;                bits = log2 q − log2 s
    backward    ∂y/∂x = 1 in range;  ∂y/∂q = 1 above it;  ∂y/∂b = 1 outside it
                ∂y/∂s = e + s·r/√3, and 1 less above the range,
                e = round(v) − v,  r = ±½ by a fair coin
                s and q are learned as log2 s and log2 q
    loss        D + t · D̄ · (m_w P_w + m_a P_a),  P = mean relu(bits − (target − 0.001))
                D what the board minimises, D̄ its sum over the earlier steps / the step's number,
                m_w, m_a the shares of weights and inputs among the violated constraints

As published: start_bits = 10, bits_rate = 0, pressure = 0, rho = 0.9985, with RAdam, and D the
Jeffreys divergence from the frozen reference (the recipe's objective = "distill"). What differs by
default is reconstructed, for budgets in which Adam's small steps could not go ten bits: the rate of
log2 s and the growth of t follow the length of the run, and the start is three bits above the
target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qbench.api import Batch, Grid, Method, Preset, Quantizer, Run, Site, straight_through, widen

Rule = Literal["released", "dither", "lsq"]
MARGIN = 1e-3
"""Bits that the penalty asks for below the target, so that rounding cannot miss it."""
EPSILON = 1e-3
MET_BY = 0.6
"""The fraction of a run at which t has its nominal value."""

PUBLISHED = {"start_bits": 10.0, "bits_rate": 0.0, "pressure": 0.0}
PUBLISHED_RECIPE = {"optimizer": "radam", "schedule": "constant", "objective": "distill"}


@dataclass
class GDNSQ(Method):
    """Start with fine steps and let a growing penalty coarsen them until the codes fit."""

    name = "gdnsq"
    version = 2
    title = "Gradual differentiable noise scale quantization"
    paper = "arXiv 2508.14004"
    presets = {
        data.lower(): Preset(
            f"arXiv 2508.14004, {data}",
            PUBLISHED | {"rho": rho},
            PUBLISHED_RECIPE | {"lr": lr},
            "fp:0.5",
        )
        for data, rho, lr in (("CIFAR", 0.9985, 2e-3), ("ImageNet", 0.999, 5e-4))
    }

    scale_gradient: Rule = "released"
    """∂y/∂s in range: e + s·r/√3, r/√3 (the paper's argument read literally), or e."""
    start_bits: float = 0.0
    """Bits at the start; 0 for three more than the target."""
    bits_rate: float = 6.0
    """How often log2 s could go from the start to the target in a run at the peak rate; 0 for the
    weights' own learning rate."""
    pressure: float = 10.0
    """t at 60 % of the run, growing linearly after the warm-up; 0 for the published 2·lr a step."""
    warmup: float = 0.1
    """The share of the run with t = 0."""
    rho: float = 1.0
    """What every learning rate is multiplied by in each step in which all codes fit."""

    def check(self) -> str | None:
        for name in ("bits_rate", "pressure"):
            if getattr(self, name) < 0:
                return f"{name} must not be negative, not {getattr(self, name)}"
        if self.start_bits and not 1 <= self.start_bits <= 24:
            return f"start_bits must be 0 or from 1 to 24, as a float32 has, not {self.start_bits}"
        if not 0 <= self.warmup < MET_BY:
            return f"warmup must be in [0, {MET_BY}), not {self.warmup}"
        return None if 0 < self.rho <= 1 else f"rho must be in (0, 1], not {self.rho}"

    @property
    def batched(self) -> bool:
        """Cooling, and t as published, follow one run's codes and rate from step to step."""
        return self.rho == 1 and self.pressure > 0

    def unsupported(self, site: Site) -> str | None:
        if site.number_format.codebook:
            return (
                "gdnsq learns the step between equal levels, "
                f"and those of {site.format} are not equally spaced"
            )
        if site.role == "activation" and site.granularity != "tensor":
            return f"gdnsq learns one range for a layer's input, not one by {site.granularity}"
        return None

    def quantizer(self, site: Site) -> Quantizer:
        return InputNoise(site, self) if site.role == "activation" else WeightNoise(site, self)

    def param_groups(self, run: Run) -> dict[str, list[nn.Parameter]]:
        return {"bits": [p for q in noise_quantizers(run) for p in q.logarithms()]}

    def schedules(self, run: Run) -> dict[str, float]:
        cooling = self.cooling(run)
        numbers = {"t": self.penalty_weight(run, cooling), "steps": run.step + 1.0}
        if self.rho < 1:
            numbers |= dict.fromkeys(("decay", "plain", "quantizer"), cooling)
        numbers["bits"] = cooling * self.bits_scale(run)
        if self.rho < 1 and not float(self.unmet_share(run)):
            run.state["cooling"] *= self.rho
        return numbers

    def cooling(self, run: Run) -> float:
        """Return what all learning rates are multiplied by in this step."""
        if self.rho == 1:
            return 1.0
        if "cooling" not in run.state:
            run.state["cooling"] = torch.ones((), dtype=torch.float64)
        return float(run.state["cooling"])

    def penalty_weight(self, run: Run, cooling: float) -> float:
        """Return t."""
        if self.pressure:
            return self.pressure * max(0.0, run.progress - self.warmup) / (MET_BY - self.warmup)
        if "t" not in run.state:
            run.state["t"] = torch.zeros((), dtype=torch.float64)
        if run.progress >= self.warmup:
            run.state["t"] += 2 * (run.learning_rate * cooling)
        return float(run.state["t"])

    def bits_scale(self, run: Run) -> float:
        """Return the learning rate of log2 s and log2 q, relative to the weights'."""
        if run.step == 0:
            return 0.0
        if not self.bits_rate:
            return 1.0
        bits_to_lose = max(q.start - q.bits_allowed for q in noise_quantizers(run))
        return self.bits_rate * max(1.0, bits_to_lose) / (run.steps * run.recipe.lr)

    def losses(self, run: Run, output: Any, batch: Batch) -> dict[str, Tensor]:
        loss = run.loss(output, batch)
        if "seen" not in run.state:
            # D summed over the earlier steps, and D of the parts of this step's batch so far.
            for name in ("seen", "now"):
                run.state[name] = torch.zeros_like(loss.detach())
        run.state["now"] += loss.detach() * batch.share
        seen = run.state["seen"]
        mean = run.scalar("t", like=seen) * seen / run.scalar("steps", like=seen)
        return {"task": loss, "penalty": mean * excess_bits(run)}

    def after_step(self, run: Run) -> None:
        run.state["seen"] += run.sum_over_processes(run.state["now"])
        run.state["now"].zero_()
        for quantizer, x in quantizers_and_weights(run):
            quantizer.confine(x)

    @torch.no_grad()
    def unmet_share(self, run: Run) -> Tensor:
        """Return the share of groups whose codes do not fit the format.

        These would be forced onto the format if the run ended here.
        """
        fits = [q.fits(x).flatten(run.run_axes) for q, x in quantizers_and_weights(run)]
        return (~torch.cat(fits, -1)).double().mean(-1)

    @torch.no_grad()
    def metrics(self, run: Run) -> dict[str, float | Tensor]:
        worst: dict[str, Tensor] = {}
        for quantizer, x in quantizers_and_weights(run):
            name = f"bits_{quantizer.site.role}"
            bits = quantizer.bits(x).flatten(run.run_axes).amax(-1)
            worst[name] = torch.maximum(worst[name], bits) if name in worst else bits
        t = torch.tensor(run.numbers("t"), dtype=torch.float64)
        return {"t": t, "forced": self.unmet_share(run), **worst}


class Noise(Quantizer):
    """A step that is learned as its logarithm, and what the penalty asks of it."""

    log_step: nn.Parameter

    def __init__(self, site: Site, method: GDNSQ) -> None:
        super().__init__(site)
        self.levels, self.rule = site.number_format.levels("affine"), method.scale_gradient
        self.bits_allowed = float(site.number_format.bits)
        self.start = method.start_bits or self.bits_allowed + 3
        self.log_start, self.free, self.least = (
            log_count(self.start),
            self.bits_allowed - MARGIN,
            self.bits_allowed - 2 * MARGIN,
        )
        self.log_step = nn.Parameter(torch.zeros(site.scale_shape))

    def step_size(self) -> Tensor:
        return self.per_run(torch.exp2, self.log_step)

    def logarithms(self) -> list[nn.Parameter]:
        """Return the parameters that bits are made of."""
        return [self.log_step]

    def bits(self, x: Tensor) -> Tensor:
        """Return the bits of each group; differentiable."""
        raise NotImplementedError

    def fits(self, x: Tensor) -> Tensor:
        """Return whether each group's codes are within the format's."""
        raise NotImplementedError

    def confine(self, x: Tensor) -> None:
        """Keep the parameters within the bounds that hold after every step."""
        raise NotImplementedError

    def noise(self, x: Tensor) -> Tensor | None:
        """Return r/√3, drawn anew in each step; None where the rule has no noise."""
        return None if self.rule == "lsq" else random_halves(self, x) * 3**-0.5

    def slope(self, error: Tensor, step: Tensor, noise: Tensor | None) -> Tensor:
        """Return ∂y/∂s in range."""
        if noise is None:
            return error
        noise = noise.view(error.shape)
        return noise if self.rule == "dither" else error + step * noise


def random_halves(quantizer: Quantizer, x: Tensor) -> Tensor:
    """Return +½ or −½ for each element, by a fair coin."""
    return torch.where(quantizer.random(x) < 0.5, -0.5, 0.5).to(x.dtype)


class WeightNoise(Noise):
    def range_ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the minimum and the maximum of each group."""
        grouped = self.site.grouping.group(x)
        return grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)

    @torch.no_grad()
    def calibrate(self, x: Tensor, first: bool) -> None:
        """Start with fine steps. A group of one value has no range: it starts as if that were 1."""
        low, high = self.range_ends(x)
        self.log_step.copy_(
            self.per_run(torch.log2, torch.where(high > low, high - low, 1.0)) - self.log_start
        )

    def bits(self, x: Tensor) -> Tensor:
        low, high = self.range_ends(x)
        return self.per_run(torch.log2, high - low + self.step_size()) - self.log_step

    def fits(self, x: Tensor) -> Tensor:
        low, high = self.range_ends(x)
        return ((high - low) / self.step_size()).round() <= self.levels.high

    @torch.no_grad()
    def confine(self, x: Tensor) -> None:
        """Allow no more bits than at the start: a group that began at zero has a range only now."""
        low, high = self.range_ends(x)
        self.log_step.copy_(
            torch.maximum(self.log_step, self.per_run(torch.log2, high - low) - self.log_start)
        )

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        """Return the grid. A step that is still too fine is forced up to the least that fits."""
        low, high = self.range_ends(x)
        step = torch.where(self.fits(x), self.step_size(), (high - low) / self.levels.high)
        return Grid(self.levels, self.site.grouping, step, low)

    def relax(self, x: Tensor) -> Tensor:
        noise = self.noise(x)
        step, grouped = self.step_size(), self.site.grouping.group(x)
        with torch.no_grad():
            low = grouped.amin(-1, keepdim=True)
            v = (grouped - low) / step
            code = v.round()
            value, slope = code * step + low, self.slope(code - v, step, noise)
        return straight_through((grouped + slope * step).reshape(x.shape), value.reshape(x.shape))


class InputNoise(Noise):
    offset: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, site: Site, method: GDNSQ) -> None:
        super().__init__(site, method)
        self.log_range = nn.Parameter(torch.ones(1, 1))
        if site.unsigned:
            self.register_buffer("offset", torch.zeros(1, 1))
        else:
            self.offset = nn.Parameter(torch.zeros(1, 1))
        self.register_buffer("low", torch.full((1, 1), torch.inf))
        self.register_buffer("high", torch.full((1, 1), -torch.inf))

    def logarithms(self) -> list[nn.Parameter]:
        return [self.log_step, self.log_range]

    @torch.no_grad()
    def calibrate(self, x: Tensor, first: bool) -> None:
        """Take the range of the batches shown; it starts at 0 where they cannot be negative."""
        if first:
            self.low.fill_(torch.inf)
            self.high.fill_(-torch.inf)
        self.low.copy_(
            torch.zeros_like(self.low)
            if self.site.unsigned
            else torch.minimum(self.low, x.amin((-2, -1), keepdim=True))
        )
        self.high.copy_(torch.maximum(self.high, x.amax((-2, -1), keepdim=True)))
        width = torch.where(self.high > self.low, self.high - self.low, 1.0)
        self.offset.copy_(self.low)
        self.log_step.copy_(self.per_run(torch.log2, width) - self.log_start)
        self.log_range.copy_(self.log_step + self.start)

    def bits(self, x: Tensor) -> Tensor:
        return self.log_range - self.log_step

    def fits(self, x: Tensor) -> Tensor:
        return (self.per_run(torch.exp2, self.bits(x)) - 1).round() <= self.levels.high

    @torch.no_grad()
    def confine(self, x: Tensor) -> None:
        """Use all codes of the format: with fewer, another range is trained than the one that
        ships.
        """
        self.log_range.copy_(torch.maximum(self.log_range, self.log_step + self.least))

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        """Return the grid. It is forced to fit by a coarser step, not by a narrower range."""
        step = torch.where(
            self.fits(x),
            self.step_size(),
            self.per_run(torch.exp2, self.log_range - self.bits_allowed),
        )
        return Grid(
            self.levels,
            self.site.grouping,
            step,
            None if self.site.unsigned else self.offset.detach(),
        )

    def relax(self, x: Tensor) -> Tensor:
        noise = self.noise(x)
        step, width, low = self.step_size(), self.per_run(torch.exp2, self.log_range), self.offset
        with torch.no_grad():
            high = low + width - step
            above, below = x > high, x < low
            v = (torch.minimum(torch.maximum(x, low), high) - low) / step
            code = v.round()
            value, slope = code * step + low, self.slope(code - v, step, noise)
        clipped = torch.where(above, low + width - step, low.expand(x.shape))
        return straight_through(torch.where(above | below, clipped, x) + slope * step, value)


# ---- the objective ----


def noise_quantizers(run: Run) -> list[Noise]:
    """Return all quantizers of a run."""
    return [q for q in run.quantizers() if isinstance(q, Noise)]


def quantizers_and_weights(run: Run) -> list[tuple[Noise, Tensor]]:
    """Return every quantizer with the weights that its bits depend on.

    The bits of inputs depend on no tensor; they get the step.
    """
    weights = [(stack.quantizer, widen(stack.stack())) for stack in run.weights]
    inputs = [(q, q.step) for q in run.inputs.values()]
    return [(q, x) for q, x in [*weights, *inputs] if isinstance(q, Noise)]


def log_count(bits: float) -> float:
    """Return log2 of the number of steps between the codes of so many bits."""
    return math.log2(2**bits - 1)


def excess_bits(run: Run) -> Tensor:
    """Return m_w P_w + m_a P_a.

    P is by how many bits the groups of a role are over, on average. m is the role's share of the
    groups that are over.
    """
    over: dict[str, list[Tensor]] = {}
    for q, x in quantizers_and_weights(run):
        excess = (q.bits(x) - q.free).relu().flatten(run.run_axes)
        over.setdefault(q.site.role, []).append(excess)
    roles = [torch.cat(parts, -1) for parts in over.values()]
    violated = [(role > 0).sum(-1) for role in roles]
    total = torch.stack(violated).sum(0)
    weighted = [
        (count + EPSILON) / (total + EPSILON) * role.mean(-1)
        for count, role in zip(violated, roles, strict=True)
    ]
    return torch.stack(weighted).sum(0)
