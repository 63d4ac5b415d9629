"""Downstream tasks of lm-eval, asked of a language model. This is the only module that imports lm_eval.

A task is one that qbench's own task makes (a `Quiz`), a task file of lm-eval's, or a name that lm-eval knows, whose data it fetches from the
hub. Every task is evaluated alone, so that its numbers do not depend on its company. Left out on purpose: lm-eval's response cache (its key
leaves out the model), its bootstrap (it opens a pool of processes and prints), and `simple_evaluate` (it seeds the global generators).
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import bits_per_byte, mean
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn

from qbench.api.language_model import Quiz, Tokenizer
from qbench.downstream import quiz_definition
from qbench.downstream.likelihood import batch_tokens, continued, likelihoods
from qbench.downstream.quiz_definition import digest, rows
from qbench.errors import QbenchError, UsageError, unknown

__all__ = ["Asked", "ask", "find"]


FEWSHOT_SEED = 1234
"""lm-eval's own."""
NEAR = 0.75
"""How alike a wrong name is to one of our own for it to be taken for a slip of the pen, without asking lm-eval for its ten thousand names."""
GENERATED_TOKENS = 256


@dataclass(frozen=True)
class Asked:
    """A downstream task, ready to be asked."""

    name: str
    task: Any
    sha256: str
    """Of what it asks and how: its definition, its documents and those of its examples."""
    asked_as: str = ""
    """The name, file or group that it was found by."""
    quiz: Quiz | None = None


# ---- finding ----


def find(names: Sequence[str], quizzes: Mapping[str, Quiz]) -> list[Asked]:
    """Downstream tasks by name or path, a group as its tasks."""
    found: dict[str, Asked] = {}
    with quiet():
        for name in names:
            found |= {asked.name: asked for asked in load(name, quizzes)}
    return list(found.values())


def check(names: Sequence[str], quizzes: Mapping[str, Quiz]) -> None:
    if not names:
        raise UsageError(f"no downstream task is named; here are {', '.join(quizzes) or 'none'}")
    for name in names:
        if name in quizzes or is_path(name):
            continue
        if difflib.get_close_matches(name, quizzes, n=1, cutoff=NEAR):
            raise unknown("downstream task", name, quizzes)
        if name not in hub().all_tasks:
            alike = [known for known in hub().all_tasks if known[:2] == name[:2]]
            raise unknown("downstream task", name, [*quizzes, *alike])


def is_path(name: str) -> bool:
    """Whether a file or folder is meant. A plain word is a name, even where a folder is called like it."""
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        return False
    if not Path(name).exists():
        raise UsageError(f"{name}: no such task file or folder")
    return True


@cache
def hub() -> TaskManager:
    """Every name that lm-eval knows. Reading its files takes five seconds."""
    return TaskManager()


def load(name: str, quizzes: Mapping[str, Quiz]) -> list[Asked]:
    if name in quizzes:
        quiz = quizzes[name]
        items = rows(name, quiz)
        task = TaskManager(include_defaults=False).load([config_of(name, quiz, items)])["tasks"][
            name
        ]
        return [Asked(name, task, quiz_definition.sha256(name, quiz, items), name, quiz)]
    try:
        tasks = from_path(Path(name)) if is_path(name) else hub().load([name])["tasks"]
    except QbenchError:
        raise
    except Exception as error:
        raise QbenchError(f"downstream task {name}: {why(error)}") from error
    if not tasks:
        raise UsageError(f"{name}: no task of lm-eval's in there")
    return [Asked(own, task, fingerprint(task), name) for own, task in sorted(tasks.items())]


def from_path(path: Path) -> dict[str, Any]:
    """The tasks of a file, or of all files below a folder."""
    if path.is_file():
        return dict(TaskManager(include_defaults=False).load([str(path)])["tasks"])
    manager = TaskManager(include_defaults=False, include_path=path)
    return dict(manager.load(manager.all_subtasks)["tasks"]) if manager.all_subtasks else {}


def why(error: Exception) -> str:
    """The first line of an error, and what to do where it is the network's."""
    line = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:300]
    if (
        isinstance(error, ConnectionError)
        or "Offline" in line
        or "offline" in line
        or "reach" in line
    ):
        return "its data is not on this machine, and the hub cannot be reached (or HF_HUB_OFFLINE is set); once it is there no network is needed"
    return line


def config_of(name: str, quiz: Quiz, items: list[dict[str, Any]]) -> dict[str, Any]:
    """A task of lm-eval's from a quiz. Fields are named, not templates: those are a thousand times slower."""
    shared = {
        "task": name,
        "test_split": "test",
        "metadata": {"version": quiz.version},
        "num_fewshot": 0,
    }
    if "choices" in items[0]:
        shared |= {
            "output_type": "multiple_choice",
            "doc_to_text": "context",
            "doc_to_choice": "choices",
            "doc_to_target": "right",
        }
        metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    else:
        shared |= {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "nothing",
            "doc_to_target": "text",
        }
        metric = {
            "metric": "bits_per_byte",
            "aggregation": "bits_per_byte",
            "higher_is_better": False,
        }
    return shared | {
        "metric_list": [metric],
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(items)},
    }


def fingerprint(task: Any) -> str:
    """Of a task file of lm-eval's. Where the file lies does not matter, nor where its data does: the documents are hashed."""
    config = task.dump_config()
    config.pop("metadata", None)
    config.pop("dataset_kwargs", None)
    return digest(
        [
            config,
            task.VERSION,
            FEWSHOT_SEED,
            list(task.eval_docs),
            list(task.fewshot_docs() or ()) if config.get("num_fewshot") else [],
        ],
        plain,
    )


def plain(value: Any) -> Any:
    """What JSON does not know: NumPy's numbers and arrays; anything else by its bytes or its name."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value.hex() if isinstance(value, bytes) else str(value)


# ---- asking ----


def ask(
    asked: Asked, model: nn.Module, tokenizer: Tokenizer, beat: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What comes of it in numbers, and a line for every item. `beat` is called now and then."""
    task, adapter = asked.task, Adapter(model, tokenizer, beat)
    task.set_fewshot_seed(FEWSHOT_SEED)
    with quiet():
        try:
            # Without iterations it computes no standard errors, and so runs no bootstrap; `stderr` does.
            results = evaluate(adapter, {"tasks": {asked.name: task}}, bootstrap_iters=0)
        except QbenchError as error:
            raise QbenchError(f"downstream task {asked.name}: {error}") from error
        except Exception as error:
            raise QbenchError(f"downstream task {asked.name}: {why(error)}") from error
    assert results is not None
    samples = results["samples"][asked.name]
    metrics = dict(metrics_of(asked, results, samples))
    summary = {
        "sha256": asked.sha256,
        "version": task.VERSION,
        "title": asked.quiz.title if asked.quiz else None,
        "chance": asked.quiz.chance if asked.quiz else None,
        "ceiling": asked.quiz.ceiling if asked.quiz else None,
        "items": len({sample["doc_id"] for sample in samples}),
        "fewshot": int(task.config.num_fewshot or 0),
        "cut": adapter.cut,
        "metric": next(iter(metrics)),
        "metrics": metrics,
        "lm_eval": lm_eval.__version__,
        "batch_tokens": batch_tokens(next(model.parameters()).device),
    }
    return summary, [line_of(sample, next(iter(metrics))) for sample in samples]


def metrics_of(
    asked: Asked, results: Any, samples: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each metric under its name, and under its filter's where a task has several, with the standard error of the mean where it is one."""
    found, better = results["results"][asked.name], asked.task.higher_is_better()
    for key, value in found.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        values = [sample[name] for sample in samples if sample["filter"] == kind and name in sample]
        error = stderr(values, asked.task.aggregation().get(name, mean))
        direction = "higher" if better.get(name, True) else "lower"
        yield (
            (name if kind == "none" else key),
            {"value": finite(value), "stderr": finite(error), "better": direction},
        )


def stderr(values: Sequence[Any], aggregation: Any) -> float:
    """Of a mean over items, and of a ratio of sums (bits per byte, linearised); NaN for what is neither."""
    n = len(values)
    if n < 2:
        return math.nan
    if aggregation is mean:
        return float(np.std(np.asarray(values, float), ddof=1)) / math.sqrt(n)
    if aggregation is bits_per_byte:
        nats, sizes = np.asarray(values, float).T
        residual = nats - nats.sum() / sizes.sum() * sizes
        return float(np.sqrt((residual**2).sum() * n / (n - 1)) / sizes.sum() / math.log(2))
    return math.nan


def finite(value: Any) -> float | None:
    """A number as JSON holds it; lm-eval says "N/A" where it has none."""
    return (
        float(value)
        if isinstance(value, int | float | np.generic) and math.isfinite(value)
        else None
    )


def line_of(sample: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """An item as it is kept: enough to pair two models by item, and to look at an answer."""
    name = metric.partition(",")[0]
    answers = [answer[0] if isinstance(answer, list) else answer for answer in sample["resps"]]
    line = {"item": sample["doc_id"], "document": sample["doc_hash"], "target": sample["target"]}
    if sample["filter"] != "none":
        line["filter"] = sample["filter"]
    if isinstance(answers[0], str):
        line["answer"] = answers[0]
    else:
        line["nats"] = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
    if len(answers) > 1:
        line["choice"] = int(np.argmax(line["nats"]))
    value = sample.get(name)
    line |= (
        {"value": value}
        if isinstance(value, tuple | list)
        else {"right": None if value is None else float(value)}
    )
    return line


class Adapter(TemplateLM):  # type: ignore[misc]
    """A model and its tokenizer as lm-eval asks them."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, beat: Callable[[], None]) -> None:
        super().__init__()
        self.model, self.words, self.beat = model, tokenizer, beat
        self.cut = 0
        """Requests whose context did not fit and lost its beginning."""

    @property
    def eot_token_id(self) -> int:
        return self.words.start

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        try:
            return list(self.words.encode(string))
        except ValueError as error:
            raise QbenchError(str(error)) from error

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        return self._loglikelihood_tokens([((), *self.pair(*request.args)) for request in requests])

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(before, after) for _, before, after in requests]
        self.cut += sum(
            len(before) + len(after) - 1 > self.words.context for before, after in pairs
        )
        return [
            tuple(found) for found in likelihoods(self.model, pairs, self.words.context, self.beat)
        ]  # type: ignore[misc]

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, after = (
            self._encode_pair(context, continuation)
            if context.strip()
            else ([], self.tok_encode(context + continuation))
        )
        return self.begun(before), after

    def begun(self, tokens: list[int]) -> list[int]:
        return tokens if tokens[:1] == [self.words.start] else [self.words.start, *tokens]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Texts in windows as long as the model can see, each token once."""
        pairs, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(
                tokens, self.words.start, self.words.context, 1
            ):
                pairs.append(make_disjoint_window(window))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, found in zip(
            owners, likelihoods(self.model, pairs, self.words.context, self.beat), strict=True
        ):
            sums[number] += found.nats
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers = []
        for request in requests:
            answers.append(self.generated(*request.args))
            self.beat()
        return answers

    def generated(self, context: str, options: Mapping[str, Any]) -> str:
        """The greedy continuation up to a stop word, to the token that begins a new text, or to the most tokens that a task wants."""
        if options.get("do_sample") or options.get("temperature"):
            raise QbenchError("it samples its answers, and here only the likeliest one is taken")
        stops = (
            [options["until"]]
            if isinstance(options.get("until"), str)
            else list(options.get("until") or ())
        )
        before, tokens, text = self.begun(self.tok_encode(context)), [], ""
        for token in continued(
            self.model,
            before,
            self.words.context,
            int(options.get("max_gen_toks", GENERATED_TOKENS)),
        ):
            if token == self.words.start:
                break
            tokens.append(token)
            text = self.words.decode(tokens)
            if ends := [text.index(stop) for stop in stops if stop and stop in text]:
                return text[: min(ends)]
        return text


@contextmanager
def quiet() -> Iterator[None]:
    """Its bars, its remarks and whatever a task file prints go nowhere: what went wrong is raised. What it draws from global generators is
    undone: it makes up names."""
    drawn = random.getstate(), np.random.get_state()
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
