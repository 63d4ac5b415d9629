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
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qbench.api.method import Method
from qbench.execution.row_optimizer import Pieces
from qbench.numerics.batched_math import one_each
from qbench.quant.levels import Levels, LevelsBeside
from qbench.quant.quantizer import Quantizer
from qbench.quant.weight_stack import Bundle
from qbench.training.run import Run

APART = 1e-3
"""What the losses of a run's first steps may differ by on a GPU, as a share of them, alone and in company: there nobody promises in what order a batch
of products adds. `make gpu` says what it comes to."""


def side_by_side(runs: Sequence[Run]) -> Run | None:
    """One run of several of one kind (`grouping.kind_of`); None where their task is not written for it. From now on the tensors of `runs` are
    views of its own."""
    first = runs[0]
    twins: dict[int, list[nn.Parameter]] = {}
    own = {
        id(quantizer): quantizer for quantizer in first.inputs.values()
    }  # which its layers hold on to
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
        Bundle(
            bundle.names,
            [layers[name] for name in bundle.names],
            wide([run.bundles[place].quantizer for run in runs]),
        )
        for place, bundle in enumerate(first.bundles)
    ]
    inputs = {name: wide([run.inputs[name] for run in runs]) for name in first.inputs}
    for name, quantizer in inputs.items():
        layers[name].see_input_through(quantizer)
    whole = replace(
        first,
        problem=problem,
        method=method,
        bundles=bundles,
        inputs=inputs,
        lr_scale=_scales(runs),
        members=list(runs),
    )
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
    return {
        name: [s[0] if isinstance(s, list) else s for s in each] for name, each in scales.items()
    }


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


def stacked(
    modules: Sequence[Any],
    twins: dict[int, list[nn.Parameter]],
    known: dict[int, Any],
    buffers: bool = True,
) -> Any:
    """A copy of the first of several alike modules, with the tensors of all in front of each other; theirs become its rows.

    A buffer without axes says what is the same for all."""
    whole = copy.deepcopy(modules[0], dict(known))
    parts = [dict(module.named_modules()) for module in modules]
    for path, module in whole.named_modules():
        own = [part[path] for part in parts]
        for name, tensor in list(module.named_parameters(recurse=False)):
            alone = [getattr(one, name) for one in own]
            row = nn.Parameter(
                torch.stack([p.detach() for p in alone]), requires_grad=tensor.requires_grad
            )
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
    assert all(state == first for state in states), (
        "what runs side by side do not share must be a tensor"
    )
    return first


def _row(state: Any, place: int) -> Any:
    """The state of one of them again."""
    if isinstance(state, Tensor):
        return state[place].clone()
    if isinstance(state, list):
        return state[place : place + 1]
    return (
        {name: _row(part, place) for name, part in state.items()}
        if isinstance(state, Mapping)
        else state
    )


def hand_back(run: Run) -> None:
    """Give each member what does not lie in its views: the optimizer's moments, the method's state and the rates. Then it can go on alone."""
    assert isinstance(run.optimizer, Pieces)
    state = run.method.state_dict()
    for place, member in enumerate(run.members):
        member.begin(run.step)
        member.method.load_state_dict(_row(state, place))
        member.lr_scale = {
            name: [scale[place]] if isinstance(scale, list) else scale
            for name, scale in run.lr_scale.items()
        }
        run.optimizer.hand_back(place, member)
