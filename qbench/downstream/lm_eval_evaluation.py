"""Asking a language model a downstream task with lm-eval.

Each task is evaluated alone, so that its numbers do not depend on which other tasks are asked.
Three parts of lm-eval are not used on purpose: its cache of answers (its key does not contain the
model), its bootstrap (it opens a pool of processes and prints), and `simple_evaluate` (it seeds the
global random generators).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.metrics import bits_per_byte, mean
from lm_eval.evaluator import evaluate
from torch import nn

from qbench.api.language_model import Tokenizer
from qbench.downstream.likelihood import tokens_per_batch
from qbench.downstream.lm_eval_adapter import LanguageModelAdapter
from qbench.downstream.lm_eval_tasks import (
    FEWSHOT_SEED,
    LoadedTask,
    describe_error,
    silenced_libraries,
)
from qbench.errors import QbenchError

__all__ = ["evaluate_task"]


def evaluate_task(
    loaded: LoadedTask,
    model: nn.Module,
    tokenizer: Tokenizer,
    heartbeat: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask a model a downstream task.

    Args:
        loaded: The task.
        model: Maps tokens (batch, time) to logits (batch, time, vocab).
        tokenizer: The model's tokenizer.
        heartbeat: Called after every batch.

    Returns:
        A summary with the metrics, and one line of data for each item.
    """
    adapter = LanguageModelAdapter(model, tokenizer, heartbeat)
    results = run_lm_eval(loaded, adapter)
    samples = results["samples"][loaded.name]
    metrics = dict(iterate_metrics(loaded, results["results"][loaded.name], samples))
    # The first metric of a task is the one that boards show.
    main_metric = next(iter(metrics))
    summary = {
        "sha256": loaded.sha256,
        "version": loaded.task.VERSION,
        "title": loaded.quiz.title if loaded.quiz else None,
        "chance": loaded.quiz.chance if loaded.quiz else None,
        "ceiling": loaded.quiz.ceiling if loaded.quiz else None,
        # With several filters, lm-eval lists an item once for each of them.
        "items": len({sample["doc_id"] for sample in samples}),
        "fewshot": int(loaded.task.config.num_fewshot or 0),
        "cut": adapter.cut_requests,
        "metric": main_metric,
        "metrics": metrics,
        "lm_eval": lm_eval.__version__,
        "batch_tokens": tokens_per_batch(next(model.parameters()).device),
    }
    return summary, [make_item_line(sample, main_metric) for sample in samples]


def run_lm_eval(loaded: LoadedTask, adapter: LanguageModelAdapter) -> Mapping[str, Any]:
    """Return the results of lm-eval, or raise a QbenchError of one line."""
    loaded.task.set_fewshot_seed(FEWSHOT_SEED)
    with silenced_libraries():
        try:
            # Without iterations lm-eval computes no standard errors, and so runs no bootstrap.
            # `standard_error` computes them.
            results = evaluate(adapter, {"tasks": {loaded.name: loaded.task}}, bootstrap_iters=0)
        except QbenchError as error:
            raise QbenchError(f"downstream task {loaded.name}: {error}") from error
        except Exception as error:
            message = f"downstream task {loaded.name}: {describe_error(error)}"
            raise QbenchError(message) from error
    # It returns None only in processes that are not the first of several.
    assert results is not None
    return results  # type: ignore[no-any-return]


def iterate_metrics(
    loaded: LoadedTask, values: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each metric with its value, standard error and direction.

    lm-eval names its results `metric,filter`. The filter stays in the name unless it is `none`.
    """
    higher_is_better = loaded.task.higher_is_better()
    for key, value in values.items():
        name, comma, filter_name = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        item_values = [
            sample[name] for sample in samples if sample["filter"] == filter_name and name in sample
        ]
        error = standard_error(item_values, loaded.task.aggregation().get(name, mean))
        yield (
            name if filter_name == "none" else key,
            {
                "value": finite_or_none(value),
                "stderr": finite_or_none(error),
                "better": "higher" if higher_is_better.get(name, True) else "lower",
            },
        )


def standard_error(values: Sequence[Any], aggregation: Any) -> float:
    """Return the standard error of a metric over items.

    Args:
        values: The metric of each item. For bits per byte, its log-likelihood and its bytes.
        aggregation: How lm-eval aggregates the items.

    Returns:
        The standard error of a mean, or of a ratio of sums (bits per byte); otherwise NaN.
    """
    n = len(values)
    if n < 2:
        return math.nan
    if aggregation is mean:
        return float(np.std(np.asarray(values, float), ddof=1)) / math.sqrt(n)
    if aggregation is bits_per_byte:
        # The delta method for the ratio R = sum(nats) / sum(bytes): to first order, its error is
        # that of sum(nats - R * bytes) / sum(bytes). The residuals have the mean zero, and
        # n / (n - 1) corrects for R being estimated from the same items. ln 2 converts to bits.
        nats, sizes = np.asarray(values, float).T
        residual = nats - nats.sum() / sizes.sum() * sizes
        return float(np.sqrt((residual**2).sum() * n / (n - 1)) / sizes.sum() / math.log(2))
    return math.nan


def finite_or_none(value: Any) -> float | None:
    """Return a number that JSON can hold. lm-eval says "N/A" where it has no number."""
    is_number = isinstance(value, int | float | np.generic)
    return float(value) if is_number and math.isfinite(value) else None


def make_item_line(sample: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return the data of an item: enough to pair two models by items, and to read an answer."""
    name = metric.partition(",")[0]
    answers = [answer[0] if isinstance(answer, list) else answer for answer in sample["resps"]]
    line = {"item": sample["doc_id"], "document": sample["doc_hash"], "target": sample["target"]}
    if sample["filter"] != "none":
        line["filter"] = sample["filter"]
    if isinstance(answers[0], str):
        line["answer"] = answers[0]
    else:
        # A log-likelihood, or a pair of it and whether the answer is greedy.
        line["nats"] = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
    if len(answers) > 1:
        line["choice"] = int(np.argmax(line["nats"]))
    value = sample.get(name)
    if isinstance(value, tuple | list):
        line["value"] = value
    else:
        line["right"] = None if value is None else float(value)
    return line
