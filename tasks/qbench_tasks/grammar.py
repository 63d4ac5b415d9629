"""A language model on generated text whose true entropy is known token by token.

The score is what the model loses over that floor. The text is `grammar_text`'s: agreement over
distance, nesting, and keys to be recalled. The network is `transformer`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from qbench.api import (
    Batch,
    Layout,
    Metric,
    Problem,
    QuantLayer,
    Quiz,
    Recipe,
    Split,
    Task,
    Work,
    cross_entropy,
    generator,
    send,
)
from qbench_tasks import grammar_items
from qbench_tasks import grammar_text as text
from qbench_tasks.grammar_machine import compute_fingerprint
from qbench_tasks.grammar_rules import BOS, VOCAB
from qbench_tasks.transformer import Shape, Transformer

VOCAB_SIZE = len(VOCAB)
SHAPES = {
    "xs": Shape(VOCAB_SIZE, width=64, depth=2, heads=4, mlp=128, context=64),
    "s": Shape(VOCAB_SIZE, width=128, depth=2, heads=4, mlp=256, context=64),
    "m": Shape(VOCAB_SIZE, width=128, depth=4, heads=4, mlp=384, context=128),
    "l": Shape(VOCAB_SIZE, width=256, depth=6, heads=8, mlp=768, context=128),
}
# How many windows are scored. They are the same for every run, except that the training windows
# belong to the run's seed.
WINDOWS: dict[Split, int] = {"train": 256, "val": 128, "test": 256}
SCORED_AT_ONCE = 64
