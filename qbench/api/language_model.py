"""What a task says about its language models: tokenizer, quizzes and Hugging Face layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Layout", "Question", "Quiz", "Tokenizer"]


class Tokenizer(Protocol):
    """The tokenizer of a language model.

    The model takes int64 tokens (batch, time) and returns logits (batch, time, vocab). It sees only
    the tokens up to each position.
    """

    @property
    def context(self) -> int:
        """The number of tokens that the model can see at once."""

    @property
    def start(self) -> int:
        """The token that every text begins with.

        It also stands in front of a question without a context, and may end a generated text.
        """

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without `start`.

        Raises:
            ValueError: In one line, if the vocabulary cannot express the text.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, which is the inverse of `encode`.

        A `start` inside the text is written out, too.
        """

    def to_json(self) -> dict[str, Any] | None:
        """Return the content of a `tokenizer.json` for Hugging Face's tokenizers.

        Return None if that format cannot describe this tokenizer.
        """


@dataclass(frozen=True)
class Layout:
    """How a model is written for Hugging Face's transformers."""

    config: Mapping[str, Any]
    """The content of its `config.json`."""
    names: Mapping[str, str]
    """For each tensor's name in transformers, the name in our model."""


@dataclass(frozen=True)
class Question:
    """A text and its possible continuations, of which one is right."""

    context: str
    """The beginning of the text. A blank stands between it and the continuation."""
    choices: tuple[str, ...]
    right: int = 0
    """The index of the right choice."""


@dataclass(frozen=True)
class Quiz:
    """A test of a task's language models after training.

    Its items are questions, scored by accuracy, or texts, scored by bits per byte.
    """

    title: str
    make: Callable[[], Sequence[Question] | Sequence[str]]
    """Returns the items, the same at every call, on every machine and for every problem."""
    version: int = 1
    chance: float | None = None
    """The accuracy of guessing, where it is known."""
    ceiling: float | None = None
    """The accuracy of a perfect model, where it is known."""
