"""Full precision: the reference of every comparison, trained with the same budget."""

from dataclasses import dataclass

from qbench.api import Method, Site


@dataclass
class FP(Method):
    """Nothing is quantized."""

    name = "fp"
    title = "Full precision"
    full_precision = True

    def quantizer(self, site: Site) -> None:
        return None
