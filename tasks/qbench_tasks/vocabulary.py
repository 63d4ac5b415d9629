"""What tokens stand for: bytes, or pieces of text of a byte-level BPE. In both, one more token stands between texts."""

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

SEPARATOR = "<|end|>"
"""How the separator is written in another library's file; in a text these letters are letters."""
UNUSED_BYTES = {0xC0, 0xC1, *range(0xF5, 0x100)}
"""Bytes that UTF-8 has no use for."""
NOT_INSTALLED = "{} is not installed: pip install 'qbench[hf]'"


class Vocabulary(ABC):
    """Tokens 0 … size − 1; the last is the separator, unless another is."""

    size: int
    text: str = ""
    """Its file, where it has one."""

    @property
    def separator(self) -> int:
        return self.size - 1

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        return np.dtype(np.uint16 if self.size <= 2**16 else np.uint32)

    @cached_property
    @abstractmethod
    def sizes(self) -> NDArray[np.int64]:
        """How many bytes of text each token stands for; the separator stands for none."""

    @abstractmethod
    def encode_all(self, documents: Sequence[bytes]) -> Iterator[NDArray[np.integer[Any]]]: ...

    @abstractmethod
    def decode_document(self, tokens: Sequence[int]) -> str:
        """The text of tokens without a separator."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """As a `tokenizer.json` of Hugging Face's tokenizers."""

    def encode(self, text: str) -> list[int]:
        return next(self.encode_all([text.encode()])).tolist()  # type: ignore[no-any-return]

    def decode(self, tokens: Sequence[int]) -> str:
        texts: list[list[int]] = [[]]
        for token in tokens:
            texts.append([]) if token == self.separator else texts[-1].append(token)
        return SEPARATOR.join(map(self.decode_document, texts))


class Bytes(Vocabulary):
    """UTF-8 has no use for the byte 255, which leaves it for the separator: bytes need no vocabulary beyond themselves."""

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
    """A byte-level BPE of GPT-2's kind, from its file."""

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
    """A model's own byte-level BPE, which is GPT-2's, Llama 3's, Qwen's and most others' kind. What would change a text before it is cut
    (a normal form, a blank in front) is left away: every byte is in one token, and bits per byte are exact."""

    def __init__(self, text: str, size: int, separator: int, called: str) -> None:
        try:
            self.file = json.loads(text)
            self.size, self._separator, self.text = (
                size,
                separator,
                json.dumps({**self.file, "normalizer": None, "post_processor": None}),
            )
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
                f"{called}: its tokenizer.json is of another kind ({type(error).__name__}: {error})"
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
                f"{called}: its tokenizer is no byte-level BPE, of which alone bytes can be counted token by token"
            )
        if level[0].get("add_prefix_space"):
            raise UsageError(f"{called}: its tokenizer puts a blank in front of every text")
        if (largest := max(words.values())) >= size or not 0 <= separator < size:
            raise UsageError(
                f"{called}: its tokenizer does not fit: it has tokens up to {max(largest, separator)}, the model {size}"
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


def learn_bpe(texts: Iterator[str], size: int, called: str) -> BPE:
    """The vocabulary that texts teach: the same from the same texts, however many cores count."""
    found = import_tokenizers()
    tokenizer = found.Tokenizer(found.models.BPE())
    tokenizer.pre_tokenizer = found.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = found.decoders.ByteLevel()
    trainer = found.trainers.BpeTrainer(
        vocab_size=size - 1, initial_alphabet=byte_letters(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (there := tokenizer.get_vocab_size() + 1) < size:
        raise UsageError(
            f"{called}: vocab = {size} is too large: the training split teaches {there} tokens"
        )
    return BPE(tokenizer.to_str())


def import_tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UsageError(NOT_INSTALLED.format("tokenizers, which BPE needs,")) from None
    return tokenizers


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: its own where that can be seen, and from 256 on where it cannot."""
    seen = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = itertools.count(256)
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def describe_bpe(vocab: dict[str, int], merges: list[Any], words: bool) -> dict[str, Any]:
    """A byte-level BPE whose separator is the token behind the last. `words`: whether a token never crosses the end of a word."""
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
