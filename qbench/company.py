"""Runs side by side: one run with an axis in front of every tensor, made of runs that could each train alone.

A step of a small network costs its calls, not its arithmetic, so runs that differ in the seed, in numbers of the recipe or of the method, or in
the width of their integers take their steps together. Each is prepared as if it trained alone. Then its tensors move into rows of larger
ones, of which its own become views: the loop steps the large run, and whatever is asked of one run (its checkpoint, its score) is asked
of that one, which sees its numbers as they are now and knows nothing of its neighbours.

What each gets is, on the CPU, bit for bit what it gets alone, and on a GPU to within `APART`. Quantizers reduce over trailing axes; products
are those of `qbench.rows`; norms are taken by row; and the optimizer steps whole rows only where a row fills its vectors, for the last
elements of a row that does not are computed in another order.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from qbench.config import Recipe
from qbench.formats import Levels, LevelsBeside
from qbench.method import Method
from qbench.optim import make_optimizer, parameter_groups
from qbench.quantizer import Bundle, Quantizer
from qbench.rows import fills_vectors, one_each
from qbench.run import Run

APART = 1e-3
"""What the losses of a run's first steps may differ by on a GPU, as a share of them, alone and in company: there nobody promises in what order a batch
of products adds. `make gpu` says what it comes to."""


def side_by_side(runs: Sequence[Run]) -> Run | None:
    """One run of several of one kind (`grouping.kind_of`); None where their task is not written for it. From now on the tensors of `runs` are
    views of its own."""
    first = runs[0]
    twins: dict[int, list[nn.Parameter]] = {}
    own = {id(quantizer): quantizer for quantizer in first.inputs.values()}  # which its layers hold on to
    model = stacked([run.model for run in runs], twins, own, buffers=False)
    assert isinstance(model, nn.Module)
    problem = first.problem.beside([run.problem for run in runs], model)
    if problem is None:
        return None
    method = _without_differences(runs)
    method.load_state_dict(_rows_beside([run.method.state_dict() for run in runs]))

    def wide(quantizers: Sequence[Quantizer]) -> Quantizer:
        found: Quantizer = stacked(quantizers, twins, {id(first.method): method})
        found.site = replace(found.site, shape=(len(runs), *found.site.shape))
        found.lead = 1
        _put_numbers_beside(found, quantizers)
        return found

    layers = problem.layers()
    bundles = [
        Bundle(bundle.names, [layers[name] for name in bundle.names], wide([run.bundles[place].quantizer for run in runs]))
        for place, bundle in enumerate(first.bundles)
    ]
    inputs = {name: wide([run.inputs[name] for run in runs]) for name in first.inputs}
    for name, quantizer in inputs.items():
        layers[name].see_input_through(quantizer)
    whole = replace(first, problem=problem, method=method, bundles=bundles, inputs=inputs, lr_scale=_scales(runs), members=list(runs))
    whole.recipes = tuple(run.recipe for run in runs)
    if first.distills or first.method.needs_reference:
        whole.reference = stacked([run.reference for run in runs], {}, {}, buffers=False)
    for run in (whole, *runs):
        run.clock, run.part = whole.clock, whole.part
        for quantizer in run.quantizers():
            quantizer.step = whole.clock
        for quantizer in run.inputs.values():
            quantizer.part = whole.part
    whole.optimizer = Pieces(whole, twins)
    whole.parameters = whole.optimizer.parameters
    return whole


def _scales(runs: Sequence[Run]) -> dict[str, float | list[float]]:
    """Multipliers of rates, one of each run."""
    scales = {name: [run.lr_scale[name] for run in runs] for name in runs[0].lr_scale}
    return {name: [s[0] if isinstance(s, list) else s for s in each] for name, each in scales.items()}


def _without_differences(runs: Sequence[Run]) -> Method:
    """A method for all. In the place of a number in which they differ stands none, so that whoever forgets to ask each run is found out."""
    method = copy.copy(runs[0].method)
    for name, value in method.params.items():
        if any(getattr(run.method, name) != value for run in runs):
            setattr(method, name, math.nan)
    return method


def _put_numbers_beside(quantizer: Quantizer, own: Sequence[Quantizer]) -> None:
    """What a quantizer keeps as numbers, and runs do not agree in, becomes a tensor that broadcasts against its groups."""
    axes, device = len(quantizer.site.scale_shape), quantizer.key.device
    for name, value in vars(own[0]).items():
        each = [vars(one)[name] for one in own]
        if isinstance(value, Levels):
            if any(levels != value for levels in each):
                setattr(quantizer, name, LevelsBeside.of(each, axes, device))
        elif isinstance(value, int | float) and any(number != value for number in each):
            setattr(quantizer, name, one_each(each, axes, device))


def stacked(modules: Sequence[Any], twins: dict[int, list[nn.Parameter]], known: dict[int, Any], buffers: bool = True) -> Any:
    """A copy of the first of several alike modules, with the tensors of all in front of each other; theirs become its rows.

    A buffer without axes says what is the same for all."""
    whole = copy.deepcopy(modules[0], dict(known))
    parts = [dict(module.named_modules()) for module in modules]
    for path, module in whole.named_modules():
        own = [part[path] for part in parts]
        for name, tensor in list(module.named_parameters(recurse=False)):
            alone = [getattr(one, name) for one in own]
            row = nn.Parameter(torch.stack([p.detach() for p in alone]), requires_grad=tensor.requires_grad)
            setattr(module, name, row)
            twins[id(row)] = alone
            for place, p in enumerate(alone):
                p.data = row.data[place]
        for name, tensor in list(module.named_buffers(recurse=False)) if buffers else ():
            rows = torch.stack([getattr(one, name) for one in own]) if tensor.dim() > 1 else tensor
            setattr(module, name, rows)
            for place, one in enumerate(own):
                setattr(one, name, rows[place] if tensor.dim() > 1 else rows)
    return whole


def _rows_beside(states: Sequence[Any]) -> Any:
    """The states of several methods as the state of one: tensors beside each other, mappings by name, lists (of numbers, one of each run) end
    to end, and what is the same for all."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.stack(list(states))
    if isinstance(first, Mapping):
        return {name: _rows_beside([state[name] for state in states]) for name in first}
    if isinstance(first, list):
        return [number for state in states for number in state]
    assert all(state == first for state in states), "what runs side by side do not share must be a tensor"
    return first


def _row(state: Any, place: int) -> Any:
    """The state of one of them again."""
    if isinstance(state, Tensor):
        return state[place].clone()
    if isinstance(state, list):
        return state[place : place + 1]
    return {name: _row(part, place) for name, part in state.items()} if isinstance(state, Mapping) else state


def hand_back(run: Run) -> None:
    """Give each member what does not lie in its views: the optimizer's moments, the method's state and the rates. Then it can go on alone."""
    assert isinstance(run.optimizer, Pieces)
    state = run.method.state_dict()
    for place, member in enumerate(run.members):
        member.begin(run.step)
        member.method.load_state_dict(_row(state, place))
        member.lr_scale = {name: [scale[place]] if isinstance(scale, list) else scale for name, scale in run.lr_scale.items()}
        run.optimizer.hand_back(place, member)


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
                    "weight_decay": run.recipes[first].weight_decay if group["name"] == "decay" else 0.0,
                    "momentum": run.recipes[first].momentum,
                }
                groups.append(group | own | {"params": [piece.rows for piece in found], "place": first})
        self.optimizer = make_optimizer(groups, recipe)
        self.parameters = list(self.pieces)
        for p, pieces in self.pieces.items():
            members = list(zip(run.members, twins[id(p)], strict=True))
            for piece in pieces:
                self._take_over(piece, members)
        counts = {float(state["step"]) for state in self.optimizer.state.values()} if recipe.optimizer == "adamw" else set()
        every = len(self.optimizer.state) in (0, sum(map(len, self.pieces.values())))
        self.even = recipe.optimizer == "adamw" and every and len(counts) < 2
        """Whether AdamW has stepped every piece every time: one that had no gradient counts for itself."""

    def _take_over(self, piece: Piece, members: Sequence[tuple[Run, nn.Parameter]]) -> None:
        """What the members' own optimizers have gathered, if they come from checkpoints."""
        alone = members[piece.first : piece.last]
        optimizers = [(member.optimizer, p) for member, p in alone if isinstance(member.optimizer, torch.optim.Optimizer)]
        states = [optimizer.state[p] for optimizer, p in optimizers if optimizer.state.get(p)]
        if states:
            assert len(states) == len(alone), "runs side by side are at one step"
            rows = {name: torch.stack([s[name] for s in states]) if value.dim() else value.clone() for name, value in states[0].items()}
            self.optimizer.state[piece.rows] = {name: v.view(piece.rows.shape) if v.dim() else v for name, v in rows.items()}

    def hand_back(self, place: int, member: Run) -> None:
        assert isinstance(member.optimizer, torch.optim.Optimizer)
        for p, pieces in self.pieces.items():
            (piece,) = [piece for piece in pieces if piece.first <= place < piece.last]
            if state := self.optimizer.state.get(piece.rows):
                own = {name: (v[place - piece.first] if v.dim() else v).clone() for name, v in state.items()}
                member.optimizer.state[self.twins[id(p)][place]] = own

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor | None:
        """What the optimizer keeps of a large parameter, by its name there."""
        rows = [self.optimizer.state.get(piece.rows, {}).get(name) for piece in self.pieces.get(parameter, [])]
        return torch.cat([row for row in rows if row is not None]) if any(row is not None for row in rows) else None

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        for p, pieces in self.pieces.items():
            # A fused optimizer reads memory in order, whatever the strides say.
            rows = [None] * len(pieces) if p.grad is None else p.grad.contiguous().split([piece.last - piece.first for piece in pieces])
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
            grads, steps, (beta1, beta2) = [p.grad for p in rows], [self.taken] * len(rows), group["betas"]
            numbers = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "weight_decay": group["weight_decay"], "eps": group["eps"]}
            torch._fused_adamw_(rows, grads, first, second, [], steps, **numbers, amsgrad=False, maximize=False)


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
    return [Piece(start, start + size, nn.Parameter(parameter.data[start : start + size])) for start in starts]
