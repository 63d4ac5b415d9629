"""Full precision: the reference of every comparison, trained with the same budget."""

from __future__ import annotations

from dataclasses import dataclass

from qbench.api import Method, Site


@dataclass
class FP(Method):
    """Nothing is quantized."""

    name = "fp"
    title = "Full precision"
    quantizes = False
    compiled_alike = True

    def alone(self) -> None:
        return None

    def unrecorded(self) -> None:
        return None

    def undivided(self) -> None:
        return None

    def quantizer(self, site: Site) -> None:
        return None
