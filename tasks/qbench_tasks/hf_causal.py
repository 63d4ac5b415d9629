"""Further training of a causal language model of Hugging Face's transformers.

The model may be any whose body is linear layers and whose tokenizer is a byte-level BPE. A size is
the length of the windows; the network is the checkpoint's. It starts from the checkpoint's weights,
or with `fresh` from new ones; the board's `start` goes on from there. The corpora are those of the
task `text`.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from qbench.api import Layout, Metric, QuantLayer, Recipe, Task, UsageError, key_of
from qbench_tasks.checkpoint import MODEL_HASH_SCHEME, CausalNetwork, Checkpoint, find_checkpoint
from qbench_tasks.corpus import parse_source
from qbench_tasks.tokens import DATA_HASH_SCHEME, Tokens, encode_with_vocabulary, read_corpus
from qbench_tasks.windows import WindowProblem, check_lengths

CONTEXTS = {"xs": 128, "s": 512, "m": 1024, "l": 2048}
RECIPES = {
    "xs": Recipe(steps=200, batch=8, lr=1e-4),
    "s": Recipe(steps=1000, batch=16, lr=3e-5),
    "m": Recipe(steps=2000, batch=32, lr=3e-5),
    "l": Recipe(steps=2000, batch=64, lr=3e-5),
}


@dataclass
class HFCausal(Task):
    """Language modelling with a checkpoint of transformers."""

    name = "hf-causal"
    title = "Language model, a given checkpoint"
    metric = Metric("bits_per_byte", "bits/byte", better="lower", effect=0.01)
    sizes = {name: {"context": context} for name, context in CONTEXTS.items()}
    activations = True

    model: str = ""
    """A folder as transformers writes it, or `OWNER/NAME[@REVISION]` on the hub."""
    fresh: bool = False
    """New weights of the same architecture."""
    corpus: str = "stdlib"
    """The corpus, named as in the task `text`."""
    field: str = "text"
    limit: int = 0

    def recipe(self, size: str) -> Recipe:
        return RECIPES[size]

    def check(self) -> str | None:
        if not self.model:
            return 'name a checkpoint: model = "FOLDER" or "OWNER/NAME[@REVISION]"'
        if self.limit < 0:
            return f"limit must not be negative, not {self.limit}"
        try:
            self.corpus.startswith(f"{DATA_HASH_SCHEME}:") or parse_source(self.corpus)
        except UsageError as error:
            return str(error)
        return None

    @property
    def portable(self) -> bool:
        return self.model.startswith(f"{MODEL_HASH_SCHEME}:") and not self.corpus.startswith(
            "path:"
        )

    def key_options(self) -> dict[str, Any]:
        """Return the options for a key, with hashes in place of names of files."""
        params = {**super().key_options(), "model": f"{MODEL_HASH_SCHEME}:{self.checkpoint.hash()}"}
        if self.corpus.startswith("path:"):
            corpus_hash = read_corpus(self.corpus, self.field, self.limit).hash
            params |= {
                "corpus": f"{DATA_HASH_SCHEME}:{corpus_hash}",
                "field": "text",
                "limit": 0,
            }
        return params

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that the option `model` names."""
        return find_checkpoint(self.model)

    def tokens(self, checkpoint: Checkpoint) -> Tokens:
        """Return the corpus in the checkpoint's tokens."""
        return encode_with_vocabulary(
            read_corpus(self.corpus, self.field, self.limit), checkpoint.vocabulary, self.corpus
        )

    def fingerprint(self) -> str:
        checkpoint = self.checkpoint
        return hashlib.sha256(
            f"hf-causal {self.version} {checkpoint.hash()} {self.tokens(checkpoint).hash}".encode()
        ).hexdigest()

    def problem(self, size: str, seed: int, batch: int, device: torch.device) -> CausalProblem:
        checkpoint, context = self.checkpoint, CONTEXTS[size]
        longest = getattr(checkpoint.config, "max_position_embeddings", context)
        if longest < context:
            raise UsageError(
                f"{self.model}: sees {longest} tokens, and the windows of {size} have {context}"
            )
        # transformers draws new weights from the global generator, so that is seeded, and forked so
        # that nobody else's draws change. For planning the network is built without memory.
        tokens = self.tokens(checkpoint)
        check_lengths(tokens, context, self.corpus, size)
        planning = device.type == "meta"
        with torch.random.fork_rng(devices=[]), device if planning else nullcontext():
            torch.manual_seed(key_of(self.name, seed, "start"))
            network = CausalNetwork(
                checkpoint.build_network(weights=not (self.fresh or planning)), self.model
            )
        flops = count_flops(network, batch * context)
        return CausalProblem(network.to(device), tokens, context, seed, batch, device, flops)


class CausalProblem(WindowProblem):
    """Next-token prediction by a checkpoint's network."""

    model: CausalNetwork

    def layers(self) -> dict[str, QuantLayer]:
        return dict(self.model.body())

    def layout(self) -> Layout:
        return self.model.layout()


def count_flops(model: CausalNetwork, labels: int) -> float:
    """Return the arithmetic of a step's matrix products, without those of attention itself."""
    head: int = model.model.get_input_embeddings().weight.numel()
    weights = sum(layer.weight.numel() for _, layer in model.body())
    return 6.0 * labels * (weights + head)
