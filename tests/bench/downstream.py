"""The cost of a downstream evaluation relative to the forward passes that it needs.

The whole evaluation, lm-eval included, is compared with the bare forward passes of its tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from qbench_tasks.grammar import SHAPES, GrammarTokenizer
from qbench_tasks.grammar_items import make_quizzes
from qbench_tasks.transformer import Transformer

from qbench.api.language_model import Question
from qbench.downstream import lm_eval_evaluation, lm_eval_tasks
from qbench.downstream.likelihood import (
    compute_likelihoods,
    make_batches,
    merge_inputs,
    pad_rows,
    tokens_per_batch,
)

CPU = torch.device("cpu")
ROUNDS = 7


def table() -> Iterator[str]:
    """Yield the lines of the report."""
    torch.set_num_threads(1)
    yield "Median seconds of 400 questions on one thread, and over the bare forward passes of the same tokens. An answer at a time is what a plain loop does."
    yield ""
    yield "| size | questions | passes | likelihoods | over passes | whole evaluation | over passes | target | an answer at a time |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for size in ("s", "l"):
        model = Transformer(SHAPES[size], torch.Generator().manual_seed(0)).eval()
        for name in make_quizzes():
            yield row(size, name, model)


def row(size: str, name: str, model: Transformer) -> str:
    asked, words = (
        lm_eval_tasks.load_tasks([name], make_quizzes())[0],
        GrammarTokenizer(SHAPES[size].context),
    )
    assert asked.quiz
    requests = [
        (words.encode(f"<doc> {q.context}"), words.encode(c))
        for q in asked.quiz.make()
        if isinstance(q, Question)
        for c in q.choices
    ]
    tokens = [
        pad_rows([item.tokens for item in batch])
        for batch in make_batches(merge_inputs(requests, words.context), tokens_per_batch(CPU))
    ]
    kinds: list[Callable[[], object]] = [
        lambda: forward(model, tokens),
        lambda: compute_likelihoods(model, requests, words.context),
        lambda: lm_eval_evaluation.evaluate_task(asked, model, words),
    ]
    bare, found, whole = medians(kinds)
    began = time.perf_counter()
    for request in requests[: len(requests) // 8]:
        compute_likelihoods(model, [request], words.context)
    plain = 8 * (time.perf_counter() - began)
    return f"| {size} | {name} | {bare:.3f} | {found:.3f} | {found / bare:.2f} | {whole:.3f} | {whole / bare:.2f} | 1.1 | {plain / bare:.1f} |"


@torch.no_grad()
def forward(model: Transformer, tokens: Sequence[torch.Tensor]) -> None:
    for batch in tokens:
        model(batch)


def medians(kinds: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median seconds of each function; they are called in turn."""
    times: list[list[float]] = [[] for _ in kinds]
    for _ in range(ROUNDS):
        for kind, spent in zip(kinds, times, strict=True):
            began = time.perf_counter()
            kind()
            spent.append(time.perf_counter() - began)
    return [statistics.median(spent) for spent in times]
