"""RowOptimizer: one optimizer over stacked runs, stepped in slices of rows that keep the bits.

A fused optimizer computes the last elements of a tensor, those that do not fill a vector, in
another order than the rest. So the rows of several runs are stepped as one tensor only where each
row fills whole vectors, and row by row elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from qbench.numerics.batched_math import whole_vectors_only
from qbench.runs.config import Recipe
from qbench.training.optimizer import make_optimizer, parameter_groups
from qbench.training.run import TrainingRun


@dataclass(frozen=True)
class RowSlice:
    """Rows of one stacked parameter that are stepped together.

    They are those of the runs from `first` up to, not including, `last`.
    """

    first: int
    last: int
    rows: nn.Parameter


class RowOptimizer:
    """An optimizer over the rows of stacked parameters.

    Args:
        run: The stacked run.
        rows: The runs' own parameters by the identity of the stacked parameter.
    """

    def __init__(self, run: TrainingRun, rows: Mapping[int, Sequence[nn.Parameter]]) -> None:
        self.own_parameters = rows
        self.slices: dict[nn.Parameter, list[RowSlice]] = {}
        """The slices of each stacked parameter, end to end."""
        self.step_counter: Tensor | None = None
        """Number of steps as AdamW counts them, where one counter serves all slices."""
        self.optimizer = make_optimizer(self._make_groups(run), run.recipe)
        self.parameters = list(self.slices)
        for p, slices in self.slices.items():
            members = list(zip(run.stacked, rows[id(p)], strict=True))
            for row_slice in slices:
                self._take_over_state(row_slice, members)
        self.all_slices_step = self._starts_even(run.recipe)
        """Whether AdamW has stepped every slice every time, so that all have one step count."""

    def _make_groups(self, run: TrainingRun) -> list[dict[str, Any]]:
        """Return parameter groups: one for each group of the run and each learning rate in it."""
        groups = []
        # Stacked runs belong to batched methods, whose `schedules` has no side effects.
        scaled = {name for one in run.stacked for name in one.method.schedules(one)}
        for group in parameter_groups(run):
            for first, count in _runs_of_one_rate(run, group["name"] in scaled):
                recipe, slices = run.recipes[first], list[RowSlice]()
                for p in group["params"]:  # type: ignore[attr-defined]
                    cut = _cut_rows(p, first, count)
                    self.slices.setdefault(p, []).extend(cut)
                    slices += cut
                numbers = {
                    "weight_decay": recipe.weight_decay if group["name"] == "decay" else 0.0,
                    "momentum": recipe.momentum,
                    "params": [row_slice.rows for row_slice in slices],
                    "place": first,
                }
                groups.append(group | numbers)
        return groups

    def _take_over_state(
        self, row_slice: RowSlice, members: Sequence[tuple[TrainingRun, nn.Parameter]]
    ) -> None:
        """Take over what the runs' own optimizers have gathered, if they come from checkpoints."""
        own = members[row_slice.first : row_slice.last]
        states = [
            run.optimizer.state[p]
            for run, p in own
            if isinstance(run.optimizer, torch.optim.Optimizer) and run.optimizer.state.get(p)
        ]
        if not states:
            return
        assert len(states) == len(own), "stacked runs are at one step"
        shape = row_slice.rows.shape
        self.optimizer.state[row_slice.rows] = {
            # A value without axes is the step count, which all of them share.
            name: torch.stack([s[name] for s in states]).view(shape)
            if value.dim()
            else value.clone()
            for name, value in states[0].items()
        }

    def _starts_even(self, recipe: Recipe) -> bool:
        """Return whether one step count serves all slices from the start."""
        if recipe.optimizer != "adamw":
            return False
        counts = {float(state["step"]) for state in self.optimizer.state.values()}
        slices = sum(map(len, self.slices.values()))
        return len(self.optimizer.state) in (0, slices) and len(counts) < 2

    def return_state(self, place: int, member: TrainingRun) -> None:
        """Give one of the stacked runs its optimizer's state."""
        assert isinstance(member.optimizer, torch.optim.Optimizer)
        for p, slices in self.slices.items():
            (row_slice,) = [s for s in slices if s.first <= place < s.last]
            if state := self.optimizer.state.get(row_slice.rows):
                row = place - row_slice.first
                member.optimizer.state[self.own_parameters[id(p)][place]] = {
                    name: (value[row] if value.dim() else value).clone()
                    for name, value in state.items()
                }

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor | None:
        """Return what the optimizer keeps of a stacked parameter under a name."""
        rows = [
            self.optimizer.state.get(row_slice.rows, {}).get(name)
            for row_slice in self.slices.get(parameter, [])
        ]
        known = [row for row in rows if row is not None]
        return torch.cat(known) if known else None

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Step all slices, by one call of AdamW's kernel where that is possible."""
        for p, slices in self.slices.items():
            grads: Sequence[Tensor | None] = [None] * len(slices)
            if p.grad is not None:
                # A fused optimizer reads memory in order, whatever the strides say.
                grads = p.grad.contiguous().split([s.last - s.first for s in slices])
            for row_slice, grad in zip(slices, grads, strict=True):
                row_slice.rows.grad = grad
            self.all_slices_step = self.all_slices_step and p.grad is not None
        # The first step is torch's own, because it makes the optimizer's state.
        if self.all_slices_step and self.optimizer.state:
            self._step_adamw()
            return
        if self.step_counter is not None:
            # A slice had no gradient: from now on each of them counts its own steps.
            for state in self.optimizer.state.values():
                state["step"] = self.step_counter.clone()
            self.step_counter = None
        self.optimizer.step()

    @torch.no_grad()
    def _step_adamw(self) -> None:
        """Call the kernel that `AdamW.step` calls, without its work for each parameter.

        With slices by the dozen that work is more than the arithmetic.
        """
        state = self.optimizer.state
        if self.step_counter is None:
            self.step_counter = next(iter(state.values()))["step"]
            for moments in state.values():
                moments["step"] = self.step_counter
        self.step_counter += 1
        for group in self.optimizer.param_groups:
            rows = group["params"]
            first, second = ([state[p][name] for p in rows] for name in ("exp_avg", "exp_avg_sq"))
            beta1, beta2 = group["betas"]
            torch._fused_adamw_(
                rows,
                [p.grad for p in rows],
                first,
                second,
                [],
                [self.step_counter] * len(rows),
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )


def _runs_of_one_rate(run: TrainingRun, scaled: bool) -> list[tuple[int, int]]:
    """Return adjacent runs with identical optimizer settings, as (first, count).

    Clipping is done before the optimizer steps, so recipes may differ in it. Where the method's
    schedules scale a group's learning rate, they may do so by hyper-parameters and formats, so that
    the runs must agree in these too.
    """
    identities = []
    for one in run.stacked:
        formats = [stack.quantizer.site.format for stack in one.weights] if scaled else []
        params = one.method.params if scaled else {}
        identities.append((replace(one.recipe, clip=0.0), formats, params))
    found, first = [], 0
    for _, same in groupby(identities):
        count = len(list(same))
        found.append((first, count))
        first += count
    return found


def _cut_rows(parameter: nn.Parameter, first: int, count: int) -> list[RowSlice]:
    """Return the rows of `count` runs: one slice where each row fills vectors, else one a row."""
    fills = whole_vectors_only(parameter[0].numel(), parameter.device)
    size = count if fills else 1
    return [
        RowSlice(start, start + size, nn.Parameter(parameter.data[start : start + size]))
        for start in range(first, first + count, size)
    ]
