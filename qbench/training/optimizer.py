"""Optimizers, learning rates and clipping, by the board's recipe and nobody else's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qbench.errors import UsageError
from qbench.numerics.batched_math import per_run_constant
from qbench.runs.config import Recipe
from qbench.training.run import TrainingRun, scheduled_scale

CORE_GROUPS = {"decay", "plain", "quantizer"}


def parameter_groups(run: TrainingRun) -> list[dict[str, object]]:
    """Return every parameter in exactly one group.

    The model's matrices decay (`decay`) and its vectors do not (`plain`). The quantizers' own
    parameters never decay: they are in `quantizer`, or in the groups that the method names.
    """
    named = {name: list(parameters) for name, parameters in run.method.param_groups(run).items()}
    taken = {id(p) for group in named.values() for p in group}
    if len(taken) != sum(map(len, named.values())) or CORE_GROUPS & named.keys():
        raise UsageError(
            f"method {run.method.name}: param_groups names a parameter twice, "
            "or uses a name of the core's"
        )
    model = [p for p in run.model.parameters() if id(p) not in taken]
    quantizer = [p for q in run.quantizers() for p in q.parameters() if id(p) not in taken]
    groups = {
        "decay": [p for p in model if p.dim() - run.run_axes > 1],
        "plain": [p for p in model if p.dim() - run.run_axes < 2],
        "quantizer": quantizer,
        **named,
    }
    decay = run.recipe.weight_decay
    return [
        {"params": ps, "name": name, "weight_decay": decay if name == "decay" else 0.0}
        for name, ps in groups.items()
        if ps
    ]


def make_optimizer(groups: list[dict[str, object]], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer; fused kernels are the fastest on every device."""
    betas = (recipe.beta1, recipe.beta2)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, fused=True)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    assert recipe.optimizer == "radam", recipe.optimizer
    return torch.optim.RAdam(groups, lr=recipe.lr, betas=betas, decoupled_weight_decay=True)


def set_learning_rates(run: TrainingRun) -> list[float]:
    """Set this step's learning rate of every group, scaled as the method's schedules say.

    Returns:
        Each run's learning rate before scaling.
    """
    assert run.optimizer is not None
    rates = [one.learning_rate for one in run.runs]
    scaled = []
    for group in run.optimizer.param_groups:
        place = group.get("place", 0)
        scaled.append(rates[place] * scheduled_scale(run.scheduled, group["name"], place))
    if run.recording:
        # A recorded step reads its rates from a tensor; a number would be a constant of it.
        run.recording.set_learning_rates(scaled)
        return rates
    for group, rate in zip(run.optimizer.param_groups, scaled, strict=True):
        group["lr"] = rate
    return rates


def clip_gradients(run: TrainingRun) -> Tensor | None:
    """Scale all gradients down to the recipe's norm, those of stacked runs each to its own.

    Returns:
        The norm before, or None where the recipe does not clip.
    """
    if not run.recipe.clip:
        return None
    if not run.run_axes:
        norm: Tensor = nn.utils.clip_grad_norm_(run.parameters, run.recipe.clip)
        return norm
    grads = [p.grad for p in run.parameters if p.grad is not None]
    norms = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=-1) for g in grads], -1), dim=-1
    )
    clips = [recipe.clip for recipe in run.recipes]
    limits = clips[0] if len(set(clips)) == 1 else per_run_constant(clips, 1, norms.device)
    # torch divides a number by a tensor as the number times the reciprocal: the same bits.
    scale = ((norms + 1e-6).reciprocal() * limits).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale.view(-1, *[1] * (grad.dim() - 1)))
    return norms  # type: ignore[no-any-return]
