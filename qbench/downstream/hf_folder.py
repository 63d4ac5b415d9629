"""A folder of Hugging Face's transformers, loaded as a language model and its tokenizer.

Such a folder can be asked the same downstream tasks as the artefact of a run.
"""

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

HASHED_FILES = (
    "*.safetensors",
    "config.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""The files that can change an answer."""
DEFAULT_CONTEXT = 2048
"""Length of the context if neither the network nor the tokenizer states one."""


def is_transformers_folder(path: Path) -> bool:
    """Return whether a folder holds a model of transformers."""
    return (path / "config.json").is_file()


def open_folder(path: Path, device: torch.device) -> tuple[nn.Module, FolderTokenizer]:
    """Return the network, in float32, and the tokenizer of a folder.

    Nothing is downloaded, and no code from the folder is run.
    """
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
                # A pickle file may run code when it is loaded.
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
    return LogitsModel(network).to(device).eval(), FolderTokenizer(tokenizer, network.config)


@contextmanager
def unchanged_generator() -> Iterator[None]:
    """Restore torch's random generator afterwards.

    Building a network draws initial weights from it, which are then replaced.
    """
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def hash_folder(path: Path) -> str:
    """Return the hash of a folder's weights, configuration and tokenizer."""
    # One file may match several patterns.
    files = {file for pattern in HASHED_FILES for file in path.glob(pattern) if file.is_file()}
    digest = hashlib.sha256()
    for file in sorted(files):
        # With the size in front, two files cannot be divided differently and hash the same.
        digest.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


class LogitsModel(nn.Module):
    """A network of transformers from tokens (batch, time) to logits (batch, time, vocab)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        return self.network(tokens, use_cache=False).logits  # type: ignore[no-any-return]


class FolderTokenizer:
    """A tokenizer of transformers with the interface of qbench's `Tokenizer`."""

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self.tokenizer = tokenizer
        limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
        # transformers uses a huge number for a tokenizer without a limit.
        self.context = min((n for n in limits if n and n < 10**9), default=DEFAULT_CONTEXT)
        special_tokens = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        if (start := next((t for t in special_tokens if t is not None), None)) is None:
            raise QbenchError(
                "the tokenizer has no token that begins or ends a text,"
                " so the likelihood of a text's first token cannot be computed"
            )
        self.start = int(start)

    def encode(self, text: str) -> list[int]:
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        except Exception as error:  # noqa: BLE001 - tokenizers raise plain Exceptions
            raise ValueError(f"the tokenizer cannot read {text[:40]!r}: {error}") from None

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens)))

    def to_json(self) -> dict[str, Any] | None:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return json.loads(backend.to_str()) if backend is not None else None
