"""A language model on real text.

The default text is the source of the running Python's own library, which every machine has. The
score is bits per byte, so that vocabularies can be compared; the loss that is trained is in nats
per token. `corpus` reads the text, `tokens` keeps it on disk, and the network is `transformer`'s.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from qbench.api import (
    Layout,
    Metric,
    QuantLayer,
    Quiz,
    Recipe,
    Task,
    UsageError,
    generator,
)
from qbench_tasks import cloze
from qbench_tasks.corpus import parse_source
from qbench_tasks.tokens import DATA_HASH_SCHEME, Tokens, prepare_tokens, read_corpus
from qbench_tasks.transformer import Shape, Transformer
from qbench_tasks.vocabulary import Bytes
from qbench_tasks.windows import WindowProblem, check_lengths

BYTES = Bytes.size
# The last two are LOTION's (arXiv 2510.08757), as far as its authors' public configurations tell.
SHAPES = {
    "xs": Shape(BYTES, width=64, depth=2, heads=4, mlp=224, context=128),
    "s": Shape(BYTES, width=128, depth=2, heads=4, mlp=384, context=128),
    "1m": Shape(BYTES, width=128, depth=4, heads=4, mlp=448, context=256),
    "10m": Shape(BYTES, width=384, depth=6, heads=6, mlp=896, context=512),
    "30m": Shape(BYTES, width=512, depth=10, heads=8, mlp=1280, context=512),
    "50m": Shape(BYTES, width=640, depth=10, heads=10, mlp=1728, context=1024),
    "100m": Shape(BYTES, width=768, depth=14, heads=12, mlp=2048, context=1024),
    "150m": Shape(
        BYTES, width=1024, depth=12, heads=16, mlp=4096, context=1024, qk_norm=True, gated=False
    ),
    "300m": Shape(
        BYTES, width=1024, depth=24, heads=16, mlp=4096, context=1024, qk_norm=True, gated=False
    ),
}
# From 1m on a recipe trains on about twenty tokens a parameter.
RECIPES = {
    "xs": Recipe(steps=400, batch=8, lr=0.01),
    "s": Recipe(steps=1000, batch=16, lr=0.003),
    "1m": Recipe(steps=2500, batch=32, lr=0.003),
    "10m": Recipe(steps=6000, batch=64, lr=0.003, floor=0.1),
    "30m": Recipe(steps=9000, batch=128, lr=0.003, floor=0.1),
    "50m": Recipe(steps=7500, batch=128, lr=0.001, floor=0.1),
    "100m": Recipe(steps=7500, batch=256, lr=0.001, floor=0.1),
    "150m": Recipe(steps=12_500, batch=256, lr=0.001, floor=0.1),
    "300m": Recipe(steps=12_500, batch=256, lr=0.001, floor=0.1),
}
BPE_VOCAB, LARGEST_VOCAB = 4096, 2**16
CORPUS, FIELD = "stdlib", "text"


@dataclass
class Text(Task):
    """Language modelling on real text."""

    name = "text"
    title = "Language model, real text"
    metric = Metric("bits_per_byte", "bits/byte", better="lower", effect=0.01)
    sizes = {
        name: {"parameters": shape.parameters, **asdict(shape)} for name, shape in SHAPES.items()
    }
    activations = True

    corpus: str = CORPUS
    """`stdlib`, `path:FILE-OR-FOLDER` (text, .jsonl, .parquet, packed by .gz or .zst) or
    `hf:OWNER/NAME[/CONFIG][@REVISION]`."""
    field: str = FIELD
    """The field of a record that holds its text."""
    limit: int = 0
    """How many documents are read; 0 for all."""
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    vocab: int = 0
    """Tokens of the BPE's vocabulary; 0 for 4096. Bytes are 256."""

    def recipe(self, size: str) -> Recipe:
        return RECIPES[size]

    def check(self) -> str | None:
        if self.limit < 0:
            return f"limit must not be negative, not {self.limit}"
        if self.tokenizer == "bytes" and self.vocab not in (0, BYTES):
            return f'vocab = {self.vocab} belongs to tokenizer = "bpe"; bytes are {BYTES}'
        if self.tokenizer == "bpe" and not BYTES < self.vocabulary <= LARGEST_VOCAB:
            return f"vocab must be from {BYTES + 1} to {LARGEST_VOCAB}, not {self.vocab}"
        if not self.corpus.startswith(f"{DATA_HASH_SCHEME}:"):
            try:
                parse_source(self.corpus)
            except UsageError as error:
                return str(error)
        return None

    @property
    def default_vocabulary(self) -> int:
        """The size of the vocabulary where the option `vocab` is 0."""
        return BYTES if self.tokenizer == "bytes" else BPE_VOCAB

    @property
    def vocabulary(self) -> int:
        """The size of the vocabulary, separator included."""
        return self.vocab or self.default_vocabulary

    @property
    def portable(self) -> bool:
        return not self.corpus.startswith("path:")

    def key_options(self) -> dict[str, Any]:
        """Return the options for a key, with the hash of the text instead of the files' names."""
        # 0 and the default's own number are the same vocabulary and get the same key.
        vocab = 0 if self.vocab == self.default_vocabulary else self.vocab
        params = {**super().key_options(), "vocab": vocab}
        if self.corpus.startswith("path:"):
            corpus_hash = read_corpus(self.corpus, self.field, self.limit).hash
            params |= {
                "corpus": f"{DATA_HASH_SCHEME}:{corpus_hash}",
                "field": FIELD,
                "limit": 0,
            }
        return params

    def tokens(self) -> Tokens:
        """Return the corpus in tokens."""
        return prepare_tokens(self.corpus, self.field, self.limit, self.tokenizer, self.vocabulary)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"text {self.version} {self.tokens().hash}".encode()).hexdigest()

    def quizzes(self) -> Mapping[str, Quiz]:
        """Return quizzes about the test split's documents, the same for every vocabulary."""
        return cloze.make_quizzes(
            self.name,
            lambda: (
                text.decode()
                for text in read_corpus(self.corpus, self.field, self.limit).documents("test")
            ),
        )

    def problem(self, size: str, seed: int, batch: int, device: torch.device) -> TextProblem:
        shape, tokens = dataclasses.replace(SHAPES[size], vocab=self.vocabulary), self.tokens()
        check_lengths(tokens, shape.context, self.corpus, size)
        # Planning only asks for the layers, so a large network is then built without memory.
        with device if device.type == "meta" else nullcontext():
            model = Transformer(shape, generator(self.name, seed, "start"))
        flops = shape.flops(batch * shape.context)
        return TextProblem(model.to(device), tokens, shape.context, seed, batch, device, flops)


class TextProblem(WindowProblem):
    """Next-token prediction by our transformer."""

    model: Transformer
    seeds_share_data = True

    def layers(self) -> dict[str, QuantLayer]:
        return dict(self.model.body())

    def layout(self) -> Layout | None:
        return self.model.layout() if self.model.shape.gated else None
