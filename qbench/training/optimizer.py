"""Optimizers: parameter groups, learning rates and clipping, by the board's recipe and nobody else's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qbench.errors import UsageError
from qbench.runs.config import Recipe
from qbench.training.run import Run
from qbench.training.schedules import lr_factor


def parameter_groups(run: Run) -> list[dict[str, object]]:
    """Every parameter in exactly one group: matrices decay, vectors do not, and no quantizer's own parameter ever does."""
    own = {name: list(parameters) for name, parameters in run.method.param_groups(run).items()}
    taken = {id(p) for group in own.values() for p in group}
    if len(taken) != sum(map(len, own.values())) or {"decay", "plain", "quantizer"} & own.keys():
        raise UsageError(
            f"method {run.method.name}: param_groups names a parameter twice, or uses a name of the core's"
        )
    model = [p for p in run.model.parameters() if id(p) not in taken]
    quantizer = [p for q in run.quantizers() for p in q.parameters() if id(p) not in taken]
    matrices = [p for p in model if p.dim() - run.lead > 1]
    vectors = [p for p in model if p.dim() - run.lead < 2]
    groups = {"decay": matrices, "plain": vectors, "quantizer": quantizer, **own}
    decay = run.recipe.weight_decay
    return [
        {"params": ps, "name": name, "weight_decay": decay if name == "decay" else 0.0}
        for name, ps in groups.items()
        if ps
    ]


def make_optimizer(
    groups: list[dict[str, object]], recipe: Recipe, divided: bool = False
) -> torch.optim.Optimizer:
    betas = (recipe.beta1, recipe.beta2)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, fused=True)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=recipe.lr, momentum=recipe.momentum, fused=not divided
        )  # torch has none for a divided parameter
    assert recipe.optimizer == "radam", recipe.optimizer
    return torch.optim.RAdam(groups, lr=recipe.lr, betas=betas, decoupled_weight_decay=True)


def set_learning_rates(run: Run, step: int) -> list[float]:
    """The step's learning rate in every group, scaled as the method asks; taken at the middle of the step. Returns each run's shared rate."""
    assert run.optimizer is not None
    middle = (step + 0.5) / run.steps
    rates = [r.lr * lr_factor(r.schedule, middle, r.warmup, r.decay, r.floor) for r in run.recipes]
    own = []
    for group in run.optimizer.param_groups:
        place, scale = group.get("place", 0), run.lr_scale.get(group["name"], 1.0)
        own.append(rates[place] * (scale[place] if isinstance(scale, list) else scale))
    if run.recorded:
        run.recorded.set_rates(own)
        return rates
    for group, rate in zip(run.optimizer.param_groups, own, strict=True):
        group["lr"] = rate
    return rates


def clip(run: Run) -> Tensor | None:
    """Scale all gradients down to the recipe's norm, of runs side by side each to its own; returns the norm before."""
    if not run.recipe.clip:
        return None
    if not run.lead:
        alone: Tensor = nn.utils.clip_grad_norm_(run.parameters, run.recipe.clip)
        return alone.full_tensor() if run.divided else alone  # type: ignore[attr-defined]
    grads = [p.grad for p in run.parameters if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=-1) for g in grads], -1), dim=-1
    )
    limits = run.number([recipe.clip for recipe in run.recipes], norm)
    scale = ((norm + 1e-6).reciprocal() * limits).clamp(
        max=1.0
    )  # as torch divides a number by a tensor
    for grad in grads:
        grad.mul_(scale.view(-1, *[1] * (grad.dim() - 1)))
    return norm
