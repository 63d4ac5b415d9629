"""Quantizer: the levels of one site, and the rule by which a network is trained on them.

A quantizer sees its tensor as `(…, rows, columns)`: a weight as outputs × inputs, a layer's input
as samples × features. The axes in front are other sites of the same shape, or other runs. A
quantizer reduces over the last two axes only, so that one call serves them all, and each of them
gets the same bits as it would get alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from qbench.numerics import batched_math
from qbench.numerics.keyed_random import key_of, uniform
from qbench.quant.grid import Grid, widen
from qbench.quant.site import Site


class Quantizer(nn.Module):
    """Quantizes the tensors of one site.

    Tensors arrive as `(…, rows, columns)`. Leading axes are other sites or other runs that are
    quantized in the same call, so reduce over the last two axes only, never branch on a tensor's
    value and never call `.item()`. Plain numbers that depend on the format or on a hyper-parameter
    belong in attributes, set in `__init__`: where stacked runs differ in them, the attribute
    becomes a tensor that broadcasts.
    """

    key: Tensor
    """Key of the random numbers: a function of the run's seed and the site's name."""
    step: Tensor
    """The run's step. All quantizers of a run share this tensor."""
    batch_slice: Tensor
    """The first sample, and the number of samples, of the slice of the batch that is computed."""
    run_axes = 0
    """Number of axes in front that belong to stacked runs: 0 or 1."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.scalars: dict[str, Tensor] = {}
        lead = site.shape[:-2] if site.role == "weight" else ()
        self.register_buffer("key", torch.zeros(*lead, 1, 1, dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("batch_slice", torch.tensor([0, 1]), persistent=False)

    def __init_subclass__(cls) -> None:
        if "forward" in cls.__dict__:
            raise TypeError(
                f"{cls.__name__} overrides forward; "
                "write relax (training) and grid (shipping) instead"
            )

    def grid(self, x: Tensor) -> Grid:
        """Return the levels that `x` would ship on now.

        Rounding, packing and bits follow from it.
        """
        raise NotImplementedError

    def relax(self, x: Tensor) -> Tensor:
        """Return what the network computes with in training. Its backward is the gradient rule."""
        raise NotImplementedError

    def calibrate(self, x: Tensor, first: bool) -> None:
        """Initialise learned or searched ranges from `x`. It does nothing unless overridden.

        Args:
            x: The tensor of the site. A layer input is shown several batches, one call each.
            first: Whether this is the first tensor of a new calibration, so that what earlier
                calibrations gathered must be forgotten.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Return `relax(x)` in training mode, and the levels that ship in evaluation mode."""
        x = widen(x)
        return self.relax(x) if self.training else self.grid(x).snap(x)

    @final
    def random(self, x: Tensor, stream: int = 0) -> Tensor:
        """Return uniform numbers in [0, 1) shaped like `x`.

        They are a function of the run's seed, the site, the step and `stream`. Those of a layer's
        input belong to its samples, whatever slices the batch is computed in.
        """
        first = self.batch_slice[0] * (x.shape[-2] // self.batch_slice[1])
        return uniform(self.key + stream, self.step, tuple(x.shape), first)

    @final
    def per_run(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return `f(x)` so that each of several stacked runs gets the bits it would get alone.

        Elementwise functions other than arithmetic and roots need it (`exp2`, `log2`): a CPU
        computes them by another formula in the last few elements of a tensor.
        """
        return batched_math.per_run(f, x, self.run_axes)

    @final
    def scalar(self, name: str, like: Tensor) -> Tensor:
        """Return this step's number of that name from `Method.schedules`, shaped to multiply
        `like`.
        """
        number = self.scalars[name]
        return number.view(-1, *[1] * (like.dim() - 1)) if number.dim() else number

    @final
    def set_seed(self, seed: int, names: list[str]) -> None:
        """Key the random numbers by the run's seed and the names of the sites."""
        keys = torch.tensor([key_of(seed, name) for name in names], dtype=torch.int64)
        self.key.copy_(keys.view(self.key.shape))
