"""Everything that a method or a task may import, in one list."""

from __future__ import annotations

from qbench.api.batch import Batch, Split, send
from qbench.api.language_model import Layout, Question, Quiz, Tokenizer
from qbench.api.load import load_method, load_task
from qbench.api.method import Method, Preset
from qbench.api.problem import Problem, with_model
from qbench.api.task import Task
from qbench.errors import UsageError
from qbench.numerics.batched_math import (
    beside_as_laid_out,
    by_run,
    cross_entropy,
    lines,
    one_by_one,
    run_by_run,
    times,
)
from qbench.numerics.keyed_random import generator, key_of
from qbench.quant.formats import Format, Granularity
from qbench.quant.grid import Grid, widen
from qbench.quant.input_quantizer import InputRange
from qbench.quant.layers import QuantConv2d, QuantLayer, QuantLinear
from qbench.quant.levels import Levels
from qbench.quant.quantizer import Quantizer
from qbench.quant.scale_rules import ScaleRule, TrainedScaleRule, absmax_scale, affine_grid
from qbench.quant.scaled_quantizer import ScaledQuantizer
from qbench.quant.site import Site
from qbench.quant.straight_through import straight_through
from qbench.quant.weight_stack import Bundle, beside
from qbench.runs.config import Metric, Recipe

__all__ = [
    "Batch",
    "Bundle",
    "Format",
    "Granularity",
    "Grid",
    "InputRange",
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
    "ScaleRule",
    "ScaledQuantizer",
    "Site",
    "Split",
    "Task",
    "Tokenizer",
    "TrainedScaleRule",
    "UsageError",
    "absmax_scale",
    "affine_grid",
    "beside",
    "beside_as_laid_out",
    "by_run",
    "cross_entropy",
    "generator",
    "key_of",
    "lines",
    "load_method",
    "load_task",
    "one_by_one",
    "run_by_run",
    "send",
    "straight_through",
    "times",
    "widen",
    "with_model",
]
