"""A folder of Hugging Face's transformers as a language model and its tokenizer, to be asked what a run's artefact is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qbench.errors import QbenchError

FILES = (
    "*.safetensors",
    "config.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What decides the answers."""
CONTEXT = 2048
"""Where neither the network nor the tokenizer says how much it can see."""


def is_folder(path: Path) -> bool:
    return (path / "config.json").is_file()


def open_folder(path: Path, device: torch.device) -> tuple[nn.Module, Words]:
    """The network in float32 and its tokenizer. Nothing is fetched, and no code from the folder is run."""
    try:
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise QbenchError(
            f"{path}: this needs Hugging Face's transformers: pip install 'qbench[hf]' ({error})"
        ) from error
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with unchanged_generator():
            network = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise QbenchError(
            f"{path}: transformers cannot load it: {str(error).strip().splitlines()[0][:200]}"
        ) from error
    return Logits(network).to(device).eval(), Words(tokenizer, network.config)


@contextmanager
def unchanged_generator() -> Iterator[None]:
    """Building a network draws its first weights, which are then replaced."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def sha256(path: Path) -> str:
    """Of the weights, the configuration and the tokenizer."""
    digest = hashlib.sha256()
    for file in sorted(
        {file for pattern in FILES for file in path.glob(pattern) if file.is_file()}
    ):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


class Logits(nn.Module):
    """Tokens (batch, time) to logits (batch, time, vocab)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        return self.network(tokens, use_cache=False).logits  # type: ignore[no-any-return]


class Words:
    """Their tokenizer as ours."""

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self.tokenizer = tokenizer
        sights = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
        self.context = min((n for n in sights if n and n < 10**9), default=CONTEXT)
        tokens = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        if (start := next((t for t in tokens if t is not None), None)) is None:
            raise QbenchError(
                "the tokenizer has no token that begins or ends a text, so a text's first token cannot be asked for"
            )
        self.start = int(start)

    def encode(self, text: str) -> list[int]:
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        except Exception as error:  # noqa: BLE001 - the libraries below raise bare ones
            raise ValueError(f"the tokenizer cannot read {text[:40]!r}: {error}") from None

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens)))

    def to_json(self) -> dict[str, Any] | None:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return json.loads(backend.to_str()) if backend is not None else None
