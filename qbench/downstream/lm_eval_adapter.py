"""The interface through which lm-eval asks a language model of qbench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn

from qbench.api.language_model import Tokenizer
from qbench.downstream.likelihood import compute_likelihoods, generate_greedily
from qbench.errors import QbenchError

GENERATED_TOKENS = 256
"""Largest number of tokens of a generated answer if the task sets no limit."""


class LanguageModelAdapter(TemplateLM):  # type: ignore[misc]
    """A model and its tokenizer with the interface of lm-eval."""

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, heartbeat: Callable[[], None]
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.heartbeat = model, tokenizer, heartbeat
        self.cut_requests = 0
        """Number of requests whose context was too long and lost its beginning."""

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.start

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        try:
            return list(self.tokenizer.encode(string))
        except ValueError as error:
            raise QbenchError(str(error)) from error

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each request, and whether its continuation is greedy."""
        return self._loglikelihood_tokens(
            [((), *self.encode_pair(*request.args)) for request in requests]
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        context = self.tokenizer.context
        pairs = [(before, after) for _, before, after in requests]
        # The last token is predicted and not read, so one more token fits.
        self.cut_requests += sum(len(before) + len(after) - 1 > context for before, after in pairs)
        answers = compute_likelihoods(self.model, pairs, context, self.heartbeat)
        return [(answer.nats, answer.greedy) for answer in answers]

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a context and of its continuation.

        The method of lm-eval encodes both together and moves the blank between them to the
        continuation. It cannot be used without a context.
        """
        if context.strip():
            before, after = self._encode_pair(context, continuation)
        else:
            before, after = [], self.tok_encode(context + continuation)
        return self.add_start(before), after

    def add_start(self, tokens: list[int]) -> list[int]:
        """Return tokens with the start token in front, once."""
        start = self.tokenizer.start
        return tokens if tokens[:1] == [start] else [start, *tokens]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of each text.

        A long text is cut into windows as long as the model's context. Each token is predicted in
        one of them.
        """
        context, start = self.tokenizer.context, self.tokenizer.start
        pairs, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, start, context, 1):
                pairs.append(make_disjoint_window(window))
                owners.append(number)
        sums = [0.0] * len(requests)
        # The windows of all texts share forward passes.
        answers = compute_likelihoods(self.model, pairs, context, self.heartbeat)
        for number, answer in zip(owners, answers, strict=True):
            sums[number] += answer.nats
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return a generated answer to each request."""
        answers = []
        for request in requests:
            answers.append(self.generate_answer(*request.args))
            self.heartbeat()
        return answers

    def generate_answer(self, context: str, options: Mapping[str, Any]) -> str:
        """Return the greedy continuation of a context.

        It ends before a stop word, before the token that begins a new text, or at the largest
        number of tokens that the task allows.
        """
        if options.get("do_sample") or options.get("temperature"):
            raise QbenchError("it samples its answers, and here only the likeliest one is taken")
        until = options.get("until") or ()
        stop_words = [until] if isinstance(until, str) else list(until)
        prompt = self.add_start(self.tok_encode(context))
        limit = int(options.get("max_gen_toks", GENERATED_TOKENS))
        tokens: list[int] = []
        text = ""
        for token in generate_greedily(self.model, prompt, self.tokenizer.context, limit):
            if token == self.tokenizer.start:
                break
            tokens.append(token)
            # All tokens are decoded each time, because a stop word may cross their borders.
            text = self.tokenizer.decode(tokens)
            if ends := [text.index(word) for word in stop_words if word and word in text]:
                return text[: min(ends)]
        return text
