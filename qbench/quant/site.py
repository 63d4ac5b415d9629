"""Site: one tensor that is quantized, with its role, format, granularity and shape."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from qbench.errors import UsageError, unknown_name_error
from qbench.quant.formats import Format, Granularity

if TYPE_CHECKING:
    from qbench.quant.levels import LevelKind, Levels


Role = Literal["weight", "activation"]
INPUT = ".input"
"""Suffix of the name of a site that is a layer's input.

The site of the layer's weight has the name of the layer.
"""


@dataclass(frozen=True)
class Site:
    """A tensor that is quantized.

    Its last two axes are rows and columns. Axes before them are other sites, or stacked runs.

    Attributes:
        name: The name of the layer; with the suffix `.input` for its input.
        role: Whether the tensor is a weight or an activation.
        format: The name of the number format, such as `int4`.
        granularity: The name of the granularity, such as `channel`.
        shape: The shape of the tensor; rows are output channels or samples.
        unsigned: Whether the elements cannot be negative, as after a ReLU.
        number_format: The format itself.
        grouping: The granularity itself.
    """

    name: str
    role: Role
    format: str
    granularity: str
    shape: tuple[int, ...]
    unsigned: bool = False
    number_format: Format = field(init=False, repr=False, compare=False)
    grouping: Granularity = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.role not in ("weight", "activation"):
            raise unknown_name_error(
                "role", self.role, ("weight", "activation"), f"site {self.name}"
            )
        if len(self.shape) < 2:
            raise UsageError(f"site {self.name}: a shape needs rows and columns, not {self.shape}")
        # The dataclass is frozen, so derived fields can only be set this way.
        object.__setattr__(self, "number_format", Format.named(self.format))
        object.__setattr__(self, "grouping", Granularity.named(self.granularity))

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """The shape of a tensor with one number for each group of the site."""
        return self.grouping.scale_shape(self.shape)

    def levels(self, kind: LevelKind = "symmetric") -> Levels:
        """Return the levels of the site's format.

        An input that cannot be negative has the unsigned levels, whatever kind is asked for.
        """
        return self.number_format.levels(
            "affine" if self.unsigned and not self.number_format.codebook else kind
        )

    def stacked(self, names: str, count: int) -> Site:
        """Return the site of `count` tensors like this one, quantized in one call."""
        return replace(self, name=names, shape=(count, *self.shape))
