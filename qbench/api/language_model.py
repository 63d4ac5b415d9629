"""Tokenizer, Quiz and the Hugging Face layout of a language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Layout", "Question", "Quiz", "Tokenizer"]


class Tokenizer(Protocol):
    """What a language model reads. It takes int64 tokens (batch, time) and gives logits (batch,
    time, vocab), the past alone seen.
    """

    @property
    def context(self) -> int:
        """Tokens that the model can see at once."""

    @property
    def start(self) -> int:
        """The token that every text begins with, and that stands in front of a question without a
        context. It may end a generated text, too.
        """

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without `start`; ValueError, in one line, for a text that the model
        has no words for.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """The inverse of `encode`; `start` in the midst of a text is rendered, too."""

    def to_json(self) -> dict[str, Any] | None:
        """The same as a `tokenizer.json` of Hugging Face's tokenizers, where one can say it."""


@dataclass(frozen=True)
class Layout:
    """How a model is written for Hugging Face's transformers: its `config.json`, and for each of
    their tensors the name of ours.
    """

    config: Mapping[str, Any]
    names: Mapping[str, str]


@dataclass(frozen=True)
class Question:
    """A beginning and the ways in which it may go on, of which one is right. Between the two stands
    a blank.
    """

    context: str
    choices: tuple[str, ...]
    right: int = 0


@dataclass(frozen=True)
class Quiz:
    """What a task asks its language models after training: questions (scored by accuracy), or texts
    (by bits per byte).
    """

    title: str
    make: Callable[[], Sequence[Question] | Sequence[str]]
    """The same items at every call, on every machine. Every problem of the task gets the same."""
    version: int = 1
    chance: float | None = None
    """The accuracy of guessing, and that of a perfect model, where they are known."""
    ceiling: float | None = None
