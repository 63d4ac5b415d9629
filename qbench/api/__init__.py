"""Everything that a method, a task or a notebook may import, in one list.

Importing this package imports torch. Packages that must start fast import it for typing only.
"""

from __future__ import annotations

from qbench.api.batch import Batch, Split, send
from qbench.api.language_model import Layout, Question, Quiz, Tokenizer
from qbench.api.load import load_method, load_task
from qbench.api.method import Method, Preset, is_tenth
from qbench.api.problem import Problem, Work
from qbench.api.run import Run
from qbench.api.task import Task
from qbench.errors import UsageError
from qbench.numerics.batched_math import (
    cross_entropy,
    matmul_per_run,
    per_run,
    per_run_where_bits_depend,
    single_row_linear,
    stack_keeping_strides,
)
from qbench.numerics.keyed_random import generator, key_of
from qbench.quant.formats import Format, Granularity
from qbench.quant.grid import Grid, widen
from qbench.quant.input_quantizer import InputQuantizer
from qbench.quant.layers import QuantConv2d, QuantLayer, QuantLinear
from qbench.quant.levels import Levels
from qbench.quant.quantizer import Quantizer
from qbench.quant.scale_rules import ScaleRule, TrainedScaleRule, absmax_scale, affine_grid
from qbench.quant.scaled_quantizer import ScaledQuantizer
from qbench.quant.site import INPUT, Site
from qbench.quant.straight_through import straight_through
from qbench.quant.weight_stack import WeightStack, stack_sites
from qbench.runs.config import Metric, Recipe

__all__ = [
    "INPUT",
    "Batch",
    "Format",
    "Granularity",
    "Grid",
    "InputQuantizer",
    "Layout",
    "Levels",
    "Method",
    "Metric",
    "Preset",
    "Problem",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "Quantizer",
    "Question",
    "Quiz",
    "Recipe",
    "Run",
    "ScaleRule",
    "ScaledQuantizer",
    "Site",
    "Split",
    "Task",
    "Tokenizer",
    "TrainedScaleRule",
    "UsageError",
    "WeightStack",
    "Work",
    "absmax_scale",
    "affine_grid",
    "cross_entropy",
    "generator",
    "is_tenth",
    "key_of",
    "load_method",
    "load_task",
    "matmul_per_run",
    "per_run",
    "per_run_where_bits_depend",
    "send",
    "single_row_linear",
    "stack_keeping_strides",
    "stack_sites",
    "straight_through",
    "widen",
]
