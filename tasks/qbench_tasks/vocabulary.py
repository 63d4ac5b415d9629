"""What tokens stand for: bytes, or pieces of text of a byte-level BPE.

In every vocabulary one more token, the separator, stands between texts.
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.api import UsageError

# The separator's name in another library's file. In a text these letters are ordinary letters.
SEPARATOR = "<|end|>"
# Bytes that UTF-8 never uses.
UNUSED_BYTES = {0xC0, 0xC1, *range(0xF5, 0x100)}
NOT_INSTALLED = "{} is not installed: pip install 'qbench[hf]'"


class Vocabulary(ABC):
    """The meaning of tokens 0 … size − 1.

    The last one is the separator, unless a subclass says otherwise.
    """

    size: int
    text: str = ""
    """The content of its file, where it has one."""

    @property
    def separator(self) -> int:
        """The token between texts."""
        return self.size - 1

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The smallest type on disk that holds every token."""
        return np.dtype(np.uint16 if self.size <= 2**16 else np.uint32)

    @cached_property
    @abstractmethod
    def sizes(self) -> NDArray[np.int64]:
        """How many bytes of text each token stands for. The separator stands for none."""

    @abstractmethod
    def encode_all(self, documents: Sequence[bytes]) -> Iterator[NDArray[np.integer[Any]]]:
        """Yield the tokens of each document."""

    @abstractmethod
    def decode_document(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens without a separator."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the vocabulary as a `tokenizer.json` of Hugging Face's tokenizers."""

    def encode(self, text: str) -> list[int]:
        return next(self.encode_all([text.encode()])).tolist()  # type: ignore[no-any-return]

    def decode(self, tokens: Sequence[int]) -> str:
        texts: list[list[int]] = [[]]
        for token in tokens:
            texts.append([]) if token == self.separator else texts[-1].append(token)
        return SEPARATOR.join(map(self.decode_document, texts))


class Bytes(Vocabulary):
    """Each byte of UTF-8 is a token. UTF-8 never uses the byte 255, so that is the separator."""

    size = 256

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        return np.array([1] * self.separator + [0])

    def encode_all(self, documents: Sequence[bytes]) -> Iterator[NDArray[np.integer[Any]]]:
        return (np.frombuffer(document, np.uint8) for document in documents)

    def decode_document(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    def to_json(self) -> dict[str, Any]:
        return describe_bpe(
            {letter: byte for byte, letter in enumerate(byte_letters()) if byte != self.separator},
            [],
            words=False,
        )


class BPE(Vocabulary):
    """A byte-level BPE of GPT-2's kind, made from its file."""

    def __init__(self, text: str) -> None:
        self.text, self.model = text, json.loads(text)["model"]
        self.size = len(self.model["vocab"]) + 1

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        sizes = np.zeros(self.size, np.int64)
        for spelling, token in self.model["vocab"].items():
            sizes[token] = len(spelling)  # one letter a byte
        return sizes

    def encode_all(self, documents: Sequence[bytes]) -> Iterator[NDArray[np.integer[Any]]]:
        texts = [document.decode() for document in documents]
        return (
            np.array(found.ids, self.dtype)
            for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        )

    def decode_document(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))

    def to_json(self) -> dict[str, Any]:
        return describe_bpe(self.model["vocab"], self.model["merges"], words=True)

    @cached_property
    def _tokenizer(self) -> Any:
        return import_tokenizers().Tokenizer.from_str(self.text)


class CheckpointVocabulary(Vocabulary):
    """A checkpoint's own byte-level BPE, as GPT-2, Llama 3, Qwen and most other models have.

    What would change a text before it is cut (a normal form, a blank in front) is not used. So
    every byte is in one token, and bits per byte are exact.
    """

    def __init__(self, text: str, size: int, separator: int, label: str) -> None:
        try:
            self.file = json.loads(text)
            self.size, self._separator = size, separator
            self.text = json.dumps({**self.file, "normalizer": None, "post_processor": None})
            words = {
                **self.file["model"]["vocab"],
                **{token["content"]: token["id"] for token in self.file["added_tokens"]},
            }
            level = [
                part
                for part in _pre_tokenizers(self.file["pre_tokenizer"])
                if part["type"] == "ByteLevel"
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{label}: its tokenizer.json is of another kind ({type(error).__name__}: {error})"
            ) from None
        if (
            self.file["model"]["type"] != "BPE"
            or not level
            or any(
                letter not in words
                for byte, letter in enumerate(byte_letters())
                if byte not in UNUSED_BYTES
            )
        ):
            raise UsageError(
                f"{label}: its tokenizer is no byte-level BPE, "
                f"the only kind of which the bytes of each token are known"
            )
        if level[0].get("add_prefix_space"):
            raise UsageError(f"{label}: its tokenizer puts a blank in front of every text")
        if (largest := max(words.values())) >= size or not 0 <= separator < size:
            raise UsageError(
                f"{label}: its tokenizer does not fit: it has tokens up to "
                f"{max(largest, separator)}, the model {size}"
            )

    @property
    def separator(self) -> int:
        return self._separator

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        sizes = np.zeros(self.size, np.int64)
        for spelling, token in self.file["model"]["vocab"].items():
            sizes[token] = len(spelling)
        for token in self.file["added_tokens"]:
            sizes[token["id"]] = len(token["content"].encode())
        sizes[self.separator] = 0
        return sizes

    def encode_all(self, documents: Sequence[bytes]) -> Iterator[NDArray[np.integer[Any]]]:
        texts = [document.decode() for document in documents]
        return (
            np.array(found.ids, self.dtype)
            for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        )

    def decode_document(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def to_json(self) -> dict[str, Any]:
        return dict(self.file)

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = import_tokenizers().Tokenizer.from_str(self.text)
        tokenizer.encode_special_tokens = True  # in a text they are letters
        return tokenizer


def _pre_tokenizers(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the parts of a pre-tokenizer, which may be a sequence, a single one or none."""
    return list(
        (pre_tokenizer or {"type": ""}).get("pretokenizers", [pre_tokenizer or {"type": ""}])
    )


@dataclass(frozen=True)
class TextTokenizer:
    """The tokenizer of a model that sees `context` tokens."""

    vocabulary: Vocabulary
    context: int

    @property
    def start(self) -> int:
        return self.vocabulary.separator

    def encode(self, text: str) -> list[int]:
        return self.vocabulary.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.vocabulary.decode(tokens)

    def to_json(self) -> dict[str, Any]:
        return self.vocabulary.to_json()


def learn_bpe(texts: Iterator[str], size: int, label: str) -> BPE:
    """Return the BPE that is learned from texts, which does not depend on the number of cores."""
    library = import_tokenizers()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size - 1, initial_alphabet=byte_letters(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (learned := tokenizer.get_vocab_size() + 1) < size:
        raise UsageError(
            f"{label}: vocab = {size} is too large: the training split teaches {learned} tokens"
        )
    return BPE(tokenizer.to_str())


def import_tokenizers() -> Any:
    """Return the library tokenizers, or raise a UsageError that says how to install it."""
    try:
        import tokenizers
    except ImportError:
        raise UsageError(NOT_INSTALLED.format("tokenizers, which BPE needs,")) from None
    return tokenizers


def byte_letters() -> list[str]:
    """Return GPT-2's letter for each byte.

    It is the byte's own letter where that is visible, and otherwise one from 256 on.
    """
    visible = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = itertools.count(256)
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def describe_bpe(vocab: dict[str, int], merges: list[Any], words: bool) -> dict[str, Any]:
    """Return the `tokenizer.json` of a byte-level BPE whose separator is the token after the last.

    Args:
        vocab: The token of each spelling.
        merges: The merges in their order.
        words: Whether a token never crosses the end of a word.
    """
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": words,
    }
    return {
        "version": "1.0",
        "added_tokens": [{"id": len(vocab), "content": SEPARATOR, "special": True, **flags}],
        "pre_tokenizer": level,
        "decoder": {**level, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
