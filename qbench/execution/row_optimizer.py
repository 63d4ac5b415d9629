"""One optimizer over stacked runs, stepped in slices that keep the bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from qbench.numerics.batched_math import fills_vectors
from qbench.runs.config import Recipe
from qbench.training.optimizer import make_optimizer, parameter_groups
from qbench.training.run import Run

# ---- the optimizer ----


@dataclass(frozen=True)
class Piece:
    """Rows of one parameter that are stepped in one go, from the run `first` on."""

    first: int
    last: int
    rows: nn.Parameter


class Pieces:
    """An optimizer over the rows of the large parameters: those of one recipe together, where the bits allow it."""

    def __init__(self, run: Run, twins: Mapping[int, Sequence[nn.Parameter]]) -> None:
        self.twins = twins
        self.pieces: dict[nn.Parameter, list[Piece]] = {}
        """Of each parameter, end to end."""
        self.taken: Tensor | None = None
        """Steps, as AdamW counts them, where one counter serves all pieces."""
        groups, recipe = [], run.recipe
        for group in parameter_groups(run):
            for first, count in _alike(run.recipes):
                found = []
                for p in group["params"]:  # type: ignore[attr-defined]
                    cut = _cut(p, first, count)
                    self.pieces.setdefault(p, []).extend(cut)
                    found += cut
                own = {
                    "weight_decay": run.recipes[first].weight_decay
                    if group["name"] == "decay"
                    else 0.0,
                    "momentum": run.recipes[first].momentum,
                }
                groups.append(
                    group | own | {"params": [piece.rows for piece in found], "place": first}
                )
        self.optimizer = make_optimizer(groups, recipe)
        self.parameters = list(self.pieces)
        for p, pieces in self.pieces.items():
            members = list(zip(run.members, twins[id(p)], strict=True))
            for piece in pieces:
                self._take_over(piece, members)
        counts = (
            {float(state["step"]) for state in self.optimizer.state.values()}
            if recipe.optimizer == "adamw"
            else set()
        )
        every = len(self.optimizer.state) in (0, sum(map(len, self.pieces.values())))
        self.even = recipe.optimizer == "adamw" and every and len(counts) < 2
        """Whether AdamW has stepped every piece every time: one that had no gradient counts for itself."""

    def _take_over(self, piece: Piece, members: Sequence[tuple[Run, nn.Parameter]]) -> None:
        """What the members' own optimizers have gathered, if they come from checkpoints."""
        alone = members[piece.first : piece.last]
        optimizers = [
            (member.optimizer, p)
            for member, p in alone
            if isinstance(member.optimizer, torch.optim.Optimizer)
        ]
        states = [optimizer.state[p] for optimizer, p in optimizers if optimizer.state.get(p)]
        if states:
            assert len(states) == len(alone), "runs side by side are at one step"
            rows = {
                name: torch.stack([s[name] for s in states]) if value.dim() else value.clone()
                for name, value in states[0].items()
            }
            self.optimizer.state[piece.rows] = {
                name: v.view(piece.rows.shape) if v.dim() else v for name, v in rows.items()
            }

    def hand_back(self, place: int, member: Run) -> None:
        assert isinstance(member.optimizer, torch.optim.Optimizer)
        for p, pieces in self.pieces.items():
            (piece,) = [piece for piece in pieces if piece.first <= place < piece.last]
            if state := self.optimizer.state.get(piece.rows):
                own = {
                    name: (v[place - piece.first] if v.dim() else v).clone()
                    for name, v in state.items()
                }
                member.optimizer.state[self.twins[id(p)][place]] = own

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor | None:
        """What the optimizer keeps of a large parameter, by its name there."""
        rows = [
            self.optimizer.state.get(piece.rows, {}).get(name)
            for piece in self.pieces.get(parameter, [])
        ]
        return (
            torch.cat([row for row in rows if row is not None])
            if any(row is not None for row in rows)
            else None
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        for p, pieces in self.pieces.items():
            # A fused optimizer reads memory in order, whatever the strides say.
            rows = (
                [None] * len(pieces)
                if p.grad is None
                else p.grad.contiguous().split([piece.last - piece.first for piece in pieces])
            )
            for piece, grad in zip(pieces, rows, strict=True):
                piece.rows.grad = grad
            self.even = self.even and p.grad is not None
        if self.even and self.optimizer.state:
            self._step_adamw()
            return
        if self.taken is not None:
            for state in self.optimizer.state.values():
                state["step"] = self.taken.clone()
            self.taken = None
        self.optimizer.step()

    @torch.no_grad()
    def _step_adamw(self) -> None:
        """The kernel that `AdamW.step` calls, without what it does for each parameter on the way there: with pieces by the dozen that is more
        than the arithmetic."""
        state = self.optimizer.state
        if self.taken is None:
            self.taken = next(iter(state.values()))["step"]
            for moments in state.values():
                moments["step"] = self.taken
        self.taken += 1
        for group in self.optimizer.param_groups:
            rows = group["params"]
            first, second = ([state[p][name] for p in rows] for name in ("exp_avg", "exp_avg_sq"))
            grads, steps, (beta1, beta2) = (
                [p.grad for p in rows],
                [self.taken] * len(rows),
                group["betas"],
            )
            numbers = {
                "lr": group["lr"],
                "beta1": beta1,
                "beta2": beta2,
                "weight_decay": group["weight_decay"],
                "eps": group["eps"],
            }
            torch._fused_adamw_(
                rows, grads, first, second, [], steps, **numbers, amsgrad=False, maximize=False
            )


def _alike(recipes: Sequence[Recipe]) -> list[tuple[int, int]]:
    """Neighbours whom the optimizer need not tell apart: the first, and how many."""
    found, first = [], 0
    for _, same in groupby(replace(recipe, clip=0.0) for recipe in recipes):
        count = len(list(same))
        found.append((first, count))
        first += count
    return found


def _cut(parameter: nn.Parameter, first: int, count: int) -> list[Piece]:
    """The rows of `count` runs as one piece where each fills its vectors, else one piece a run."""
    size = count if fills_vectors(parameter[0].numel(), parameter.device) else 1
    starts = range(first, first + count, size)
    return [
        Piece(start, start + size, nn.Parameter(parameter.data[start : start + size]))
        for start in starts
    ]
