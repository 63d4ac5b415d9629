"""GDNSQ: gradual differentiable noise scale quantization, arXiv 2508.14004.

The noise is the rounding error and its scale is the step s. A network begins with fine steps, which grow by gradient until
the codes fit the format. Nothing is random in the forward pass.

    forward     c = clip(x, lo, hi);  v = (c − z)/s;  y = round(v)·s + z
    weights     z = min of the group, nothing is clipped;   bits = log2(R/s + 1),  R = max − min
    inputs      z = lo = b,  hi = b + q − s;                bits = log2 q − log2 s
    backward    ∂y/∂x = 1 in range;  ∂y/∂q = 1 above it;  ∂y/∂b = 1 outside it
                ∂y/∂s = e + s·r/√3, and 1 less above the range,  e = round(v) − v,  r = ±½ by a fair coin
                s and q are learned as log2 s and log2 q
    loss        D + t · D̄ · (m_w P_w + m_a P_a),  P = mean relu(bits − (target − 0.001))
                D the task's loss, or the Jeffreys divergence from the frozen reference; D̄ its mean over the earlier steps;
                m_w, m_a the shares of weights and inputs among the violated constraints

As published: start_bits = 10, bits_rate = 0, pressure = 0, rho = 0.9985, distill = true, with RAdam. What differs by default is
reconstructed, for budgets in which Adam's small steps could not go ten bits: the rate of log2 s and the growth of t follow the
length of the run, and the start is three bits above the target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qbench.api import Batch, Grid, Method, Preset, Quantizer, Site, straight_through, widen
from qbench.training.run import Run

Rule = Literal["released", "dither", "lsq"]
MARGIN, EPSILON, MET_BY = 1e-3, 1e-3, 0.6

PUBLISHED = {"distill": True, "start_bits": 10.0, "bits_rate": 0.0, "pressure": 0.0}


@dataclass
class GDNSQ(Method):
    """Start with fine steps and let a growing penalty coarsen them until the codes fit."""

    name = "gdnsq"
    title = "Gradual differentiable noise scale quantization"
    paper = "arXiv 2508.14004"
    knobs = ("pressure", "bits_rate")
    varies = ("pressure", "bits_rate", "start_bits", "format")

    presets = {
        "cifar": Preset(
            "arXiv 2508.14004, CIFAR",
            PUBLISHED | {"rho": 0.9985},
            {"optimizer": "radam", "lr": 2e-3, "schedule": "constant"},
            "fp:0.5",
        ),
        "imagenet": Preset(
            "arXiv 2508.14004, ImageNet",
            PUBLISHED | {"rho": 0.999},
            {"optimizer": "radam", "lr": 5e-4, "schedule": "constant"},
            "fp:0.5",
        ),
    }

    scale_gradient: Rule = "released"
    """∂y/∂s in range: e + s·r/√3, r/√3 (the paper's argument read literally), or e."""
    distill: bool = False
    """Imitate the frozen network that the run started from; labels are not used. For all methods alike it is the recipe's `objective`."""
    start_bits: float = 0.0
    """Bits at the start; 0 for three more than the target."""
    bits_rate: float = 6.0
    """How often log2 s could go from the start to the target in a run at the peak rate; 0 for the weights' own learning rate."""
    pressure: float = 10.0
    """t at 60 % of the run, growing linearly after the warm-up; 0 for the published 2·lr every step."""
    warmup: float = 0.1
    """The share of the run with t = 0."""
    rho: float = 1.0
    """What every learning rate is multiplied by in each step in which all codes fit."""

    def check(self) -> str | None:
        for field in ("bits_rate", "pressure"):
            if getattr(self, field) < 0:
                return f"{field} must not be negative, not {getattr(self, field)}"
        if self.start_bits and not 1 <= self.start_bits <= 24:
            return f"start_bits must be 0 or from 1 to 24, the bits of a float32, not {self.start_bits}"
        if not 0 <= self.warmup < MET_BY:
            return f"warmup must be in [0, {MET_BY}), not {self.warmup}"
        return None if 0 < self.rho <= 1 else f"rho must be in (0, 1], not {self.rho}"

    def alone(self) -> str | None:
        if self.rho < 1 or not self.pressure:
            return "gdnsq side by side needs rho = 1 and pressure > 0: the others follow one run's codes or rate"
        return None

    def unrecorded(self) -> str | None:
        if self.rho < 1 or not self.pressure:
            return "gdnsq recorded needs rho = 1 and pressure > 0: the others follow a run's codes or rate from step to step"
        return None

    def unsupported(self, site: Site) -> str | None:
        if site.number_format.codebook:
            return f"gdnsq learns the step between equal levels, and those of {site.format} are not equally spaced"
        if site.role == "activation" and site.granularity != "tensor":
            return f"gdnsq learns one range for a layer's input, not one by {site.granularity}"
        return None

    @property
    def needs_reference(self) -> bool:
        return self.distill

    def quantizer(self, site: Site) -> Quantizer:
        return InputNoise(site, self) if site.role == "activation" else WeightNoise(site, self)

    def param_groups(self, run: Run) -> dict[str, list[nn.Parameter]]:
        return {"bits": [p for q in noisy(run) for p in q.logarithms()]}

    def prepare(self, run: Run, batches: list[Batch]) -> None:
        self.t, self.cooling, self.count = [0.0], 1.0, 1
        self.begin(torch.zeros((), device=run.clock.device))
        run.lr_scale["bits"] = 0.0
        run.calibrate(batches)

    def begin(self, seen: Tensor) -> None:
        """D summed over the earlier steps and in this one, t, and how many steps there will have been: numbers of each run, written to where they are."""
        self.seen, self.now, self.factor, self.steps = (
            seen,
            *(torch.full_like(seen, number) for number in (0.0, 0.0, 1.0)),
        )

    def before_step(self, run: Run, batch: Batch) -> None:
        self.count = batch.count
        if run.optimizer is None:
            return
        if self.pressure:
            self.t = [
                p * max(0.0, run.progress - self.warmup) / (MET_BY - self.warmup)
                for p in run.own("pressure")
            ]
        elif run.progress >= self.warmup:
            self.t = [t + 2 * run.optimizer.param_groups[0]["lr"] for t in self.t]
        run.write(self.t, self.factor)
        self.steps.fill_(run.step + 1)
        if self.rho < 1 and not float(self.unmet(run)):
            self.cooling *= self.rho
        for group in run.optimizer.param_groups:
            run.lr_scale[group["name"]] = self.cooling
        if self.bits_rate:
            way = zip(run.own("bits_rate"), map(travel, run.runs), run.recipes, strict=True)
            run.lr_scale["bits"] = [
                self.cooling * (rate * max(1.0, bits) / (run.steps * recipe.lr))
                for rate, bits, recipe in way
            ]

    def losses(self, run: Run, output: Any, batch: Batch) -> dict[str, Tensor]:
        name, loss = (
            ("distance", run.distance(output, batch))
            if self.distill
            else (run.objective, run.loss(output, batch))
        )
        self.now += loss.detach() * (batch.count / self.count)
        return {name: loss, "penalty": self.factor * self.seen / self.steps * excess(run)}

    def after_step(self, run: Run) -> None:
        self.seen += run.everywhere(self.now)
        self.now.zero_()
        for q, x in tensors(run):
            q.confine(x)

    def unmet(self, run: Run) -> Tensor:
        """The share of groups whose codes do not fit the format: what would be forced if the run ended here."""
        with torch.no_grad():
            return (
                torch.cat([(~q.fits(x)).flatten(run.lead) for q, x in tensors(run)], -1)
                .double()
                .mean(-1)
            )

    def metrics(self, run: Run) -> dict[str, float | Tensor]:
        with torch.no_grad():
            bits = [(q.site.role, q.bits(x).flatten(run.lead).amax(-1)) for q, x in tensors(run)]
        worst = {
            f"bits_{role}": torch.stack([b for r, b in bits if r == role]).amax(0)
            for role, _ in bits
        }
        return {"t": torch.tensor(self.t, dtype=torch.float64), "forced": self.unmet(run), **worst}

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t, "cooling": self.cooling, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t, self.cooling = state["t"], state["cooling"]
        self.begin(state["seen"])


# ---- the two quantizers ----


class Noise(Quantizer):
    """A step learned as its logarithm, and what the penalty asks of it."""

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
        return self.by_run(torch.exp2, self.log_step)

    def logarithms(self) -> list[nn.Parameter]:
        """The parameters that bits are made of."""
        return [self.log_step]

    def bits(self, x: Tensor) -> Tensor:
        """Of each group; differentiable."""
        raise NotImplementedError

    def fits(self, x: Tensor) -> Tensor:
        """Whether each group's codes are within the format's."""
        raise NotImplementedError

    def confine(self, x: Tensor) -> None:
        """Bounds that hold after every step."""
        raise NotImplementedError

    def noise(self, x: Tensor) -> Tensor | None:
        """r/√3, another in each step."""
        return None if self.rule == "lsq" else coins(self, x) * 3**-0.5

    def slope(self, error: Tensor, step: Tensor, noise: Tensor | None) -> Tensor:
        """∂y/∂s in range."""
        if noise is None:
            return error
        noise = noise.view(error.shape)
        return noise if self.rule == "dither" else error + step * noise


def coins(quantizer: Quantizer, x: Tensor) -> Tensor:
    """±½ for each element."""
    return torch.where(quantizer.draw(x) < 0.5, -0.5, 0.5).to(x.dtype)


class WeightNoise(Noise):
    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grouped = self.site.grouping.group(x)
        return grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)

    @torch.no_grad()
    def reset(self, x: Tensor) -> None:
        """A group of one value has no range to divide: it starts as if that were 1."""
        low, high = self.ends(x)
        self.log_step.copy_(
            self.by_run(torch.log2, torch.where(high > low, high - low, 1.0)) - self.log_start
        )

    def bits(self, x: Tensor) -> Tensor:
        low, high = self.ends(x)
        return self.by_run(torch.log2, high - low + self.step_size()) - self.log_step

    def fits(self, x: Tensor) -> Tensor:
        low, high = self.ends(x)
        return ((high - low) / self.step_size()).round() <= self.levels.high

    @torch.no_grad()
    def confine(self, x: Tensor) -> None:
        """No more bits than at the start: a group that began at zero found its range only now."""
        low, high = self.ends(x)
        self.log_step.copy_(
            torch.maximum(self.log_step, self.by_run(torch.log2, high - low) - self.log_start)
        )

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        """A step that is still too fine is forced up to the least that fits."""
        low, high = self.ends(x)
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

    def forget(self) -> None:
        self.low.fill_(torch.inf)
        self.high.fill_(-torch.inf)

    @torch.no_grad()
    def reset(self, x: Tensor) -> None:
        """The range of the batches shown; from 0 where they cannot be negative."""
        self.low.copy_(
            torch.zeros_like(self.low)
            if self.site.unsigned
            else torch.minimum(self.low, x.amin((-2, -1), keepdim=True))
        )
        self.high.copy_(torch.maximum(self.high, x.amax((-2, -1), keepdim=True)))
        width = torch.where(self.high > self.low, self.high - self.low, 1.0)
        self.offset.copy_(self.low)
        self.log_step.copy_(self.by_run(torch.log2, width) - self.log_start)
        self.log_range.copy_(self.log_step + self.start)

    def bits(self, x: Tensor) -> Tensor:
        return self.log_range - self.log_step

    def fits(self, x: Tensor) -> Tensor:
        return (self.by_run(torch.exp2, self.bits(x)) - 1).round() <= self.levels.high

    @torch.no_grad()
    def confine(self, x: Tensor) -> None:
        """All codes of the format are used: fewer would train on another range than the one that ships."""
        self.log_range.copy_(torch.maximum(self.log_range, self.log_step + self.least))

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        """Forced by a coarser step, not by a narrower range."""
        step = torch.where(
            self.fits(x),
            self.step_size(),
            self.by_run(torch.exp2, self.log_range - self.bits_allowed),
        )
        return Grid(
            self.levels,
            self.site.grouping,
            step,
            None if self.site.unsigned else self.offset.detach(),
        )

    def relax(self, x: Tensor) -> Tensor:
        noise = self.noise(x)
        step, width, low = self.step_size(), self.by_run(torch.exp2, self.log_range), self.offset
        with torch.no_grad():
            high = low + width - step
            above, below = x > high, x < low
            v = (torch.minimum(torch.maximum(x, low), high) - low) / step
            code = v.round()
            value, slope = code * step + low, self.slope(code - v, step, noise)
        clipped = torch.where(above, low + width - step, low.expand(x.shape))
        return straight_through(torch.where(above | below, clipped, x) + slope * step, value)


# ---- the objective ----


def noisy(run: Run) -> list[Noise]:
    return [q for q in run.quantizers() if isinstance(q, Noise)]


def travel(run: Run) -> float:
    """The most bits that any step has to lose."""
    return max(q.start - q.bits_allowed for q in noisy(run))


def tensors(run: Run) -> list[tuple[Noise, Tensor]]:
    """Every quantizer with the weights that its bits depend on; those of inputs depend on none."""
    weights = [(b.quantizer, widen(b.stack())) for b in run.bundles]
    inputs = [(q, run.clock) for q in run.inputs.values()]
    return [(q, x) for q, x in [*weights, *inputs] if isinstance(q, Noise)]


def log_count(bits: float) -> float:
    return math.log2(2**bits - 1)


def excess(run: Run) -> Tensor:
    """m_w P_w + m_a P_a: by how many bits the groups of each role are over, on average, weighted by the role's share of those that are."""
    over: dict[str, list[Tensor]] = {}
    for q, x in tensors(run):
        over.setdefault(q.site.role, []).append((q.bits(x) - q.free).relu().flatten(run.lead))
    roles = [torch.cat(parts, -1) for parts in over.values()]
    violated = [(role > 0).sum(-1) for role in roles]
    total = torch.stack(violated).sum(0)
    return torch.stack(
        [
            (n + EPSILON) / (total + EPSILON) * role.mean(-1)
            for n, role in zip(violated, roles, strict=True)
        ]
    ).sum(0)
