"""Optimizers: parameter groups, learning rates and clipping, by the board's recipe and nobody else's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qbench.config import Recipe
from qbench.errors import UsageError
from qbench.run import Run
from qbench.schedule import lr_factor


def parameter_groups(run: Run, recipe: Recipe) -> list[dict[str, object]]:
    """Every parameter in exactly one group: matrices decay, vectors do not, and no quantizer's own parameter ever does."""
    own = {name: list(parameters) for name, parameters in run.method.param_groups(run).items()}
    taken = {id(p) for group in own.values() for p in group}
    if len(taken) != sum(map(len, own.values())) or {"decay", "plain", "quantizer"} & own.keys():
        raise UsageError(f"method {run.method.name}: param_groups names a parameter twice, or uses a name of the core's")
    model = [p for p in run.model.parameters() if id(p) not in taken]
    quantizer = [p for q in run.quantizers() for p in q.parameters() if id(p) not in taken]
    groups = {"decay": [p for p in model if p.dim() > 1], "plain": [p for p in model if p.dim() < 2], "quantizer": quantizer, **own}
    decay = recipe.weight_decay
    return [{"params": ps, "name": name, "weight_decay": decay if name == "decay" else 0.0} for name, ps in groups.items() if ps]


def make_optimizer(groups: list[dict[str, object]], recipe: Recipe) -> torch.optim.Optimizer:
    betas = (recipe.beta1, recipe.beta2)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, fused=True)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    assert recipe.optimizer == "radam", recipe.optimizer
    return torch.optim.RAdam(groups, lr=recipe.lr, betas=betas, decoupled_weight_decay=True)


def set_learning_rates(run: Run, recipe: Recipe, step: int) -> float:
    """The step's learning rate in every group, scaled as the method asks; taken at the middle of the step. Returns the shared rate."""
    assert run.optimizer is not None
    lr = recipe.lr * lr_factor(recipe.schedule, (step + 0.5) / recipe.steps, recipe.warmup, recipe.decay, recipe.floor)
    for group in run.optimizer.param_groups:
        group["lr"] = lr * run.lr_scale.get(group["name"], 1.0)
    return lr


def clip(parameters: list[nn.Parameter], limit: float) -> Tensor | None:
    """Scale all gradients down to the norm `limit`; returns the norm before."""
    return nn.utils.clip_grad_norm_(parameters, limit) if limit else None
