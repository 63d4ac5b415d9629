"""What the task `text` costs.

    python -m tests.bench text

A step is compared with a step of the same network in plain PyTorch. The share of loading in a step
is measured, and so is the work that is done once for a corpus. Steps are taken in turn in one
process, as in `steps`. Tokenising is measured on the corpus `stdlib` in CPU seconds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from qbench_tasks.shards import SPLITS, Shards, ingest_documents
from qbench_tasks.text import Text, TextProblem
from qbench_tasks.tokens import encode_with_learned_bpe, read_corpus
from torch import nn

from qbench.runs.config import Recipe
from qbench.training.loop import take_step
from tests.bench.steps import Contender, Plain, interleave, run_of

BATCHES = {"xs": 8, "s": 16, "1m": 8}
RECIPE = Recipe(steps=100_000, lr=1e-4)
LOADED = 2000


def ours(problem: TextProblem) -> Callable[[], None]:
    run, counter = run_of("fp", problem, RECIPE), iter(range(RECIPE.steps))

    def step() -> None:
        take_step(run, next(counter))

    return step


def plain(problem: TextProblem) -> Callable[[], None]:
    """Return a function that takes a step of the same network in plain PyTorch.

    Its batches are windows of a tensor in memory.
    """
    model, context, count = Plain(problem.model.shape), problem.context, problem.count
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    tokens = torch.from_numpy(problem.data.shards.tokens("train").astype("int64"))

    def step() -> None:
        starts = torch.randint(len(tokens) - context - 1, (count,)).tolist()
        rows = torch.stack([tokens[start : start + context + 1] for start in starts])
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, -2), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def steps(size: str, rounds: int) -> Iterator[str]:
    task = Text()
    made = task.problem(size, 0, BATCHES[size], torch.device("cpu"))
    other = task.problem(size, 0, BATCHES[size], torch.device("cpu"))
    entrants = {
        "plain PyTorch": Contender(plain(other), "plain PyTorch"),
        f"text/{size}": Contender(ours(made), "plain PyTorch"),
    }
    lines = list(interleave(entrants, BATCHES[size] * made.context, rounds))
    yield lines[1].rstrip("| ") + " | 1.05 |"


def loading(size: str) -> Iterator[str]:
    """Yield a row of the mean time to load a batch, alone and relative to the median step."""
    problem = Text().problem(size, 0, BATCHES[size], torch.device("cpu"))
    step, batches, taken = ours(problem), [], []
    for index in range(LOADED):
        began = time.perf_counter()
        problem.batch(index)
        batches.append(time.perf_counter() - began)
    for _ in range(40):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    share = 100 * statistics.mean(batches) / statistics.median(taken)
    yield f"| loading, text/{size}, {BATCHES[size]} × {problem.context} tokens, mean of {LOADED} | {1e6 * statistics.mean(batches):.0f} µs, {share:.2f} % of a step | 2 % |"


def once() -> Iterator[str]:
    """Yield rows for the work that is done when a corpus is first used, and for later uses."""
    began = time.perf_counter()
    Text().fingerprint()
    first = time.perf_counter() - began
    again = statistics.median(_seconds(lambda: Text().fingerprint()) for _ in range(20))
    documents = read_corpus("stdlib")
    size = sum(stream.bytes for stream in documents.streams.values())
    yield f"| reading stdlib ({size / 1e6:.1f} MB), dividing and writing it; its hash | {first:.2f} s | |"
    yield f"| its hash again | {1e3 * again:.1f} ms | |"
    speed = size / 1e6 / _cpu_seconds(lambda: _bytes(documents))
    yield f"| tokenising, bytes | {speed:.0f} MB/s a core | 2 MB/s |"
    # Learn the vocabulary first, so that the measurement below excludes learning.
    encode_with_learned_bpe(documents, 4096, "stdlib")
    speed = size / 1e6 / _cpu_seconds(lambda: _bpe(documents))
    yield f"| tokenising, BPE of 4096 | {speed:.1f} MB/s a core | 2 MB/s |"
    began = time.perf_counter()
    layers = Text().problem("300m", 0, 1, torch.device("meta")).layers()
    yield f"| planning: the {len(layers)} layers of text/300m | {1e3 * (time.perf_counter() - began):.0f} ms | |"


def _bytes(documents: Shards) -> None:
    ingest_documents((text for split in SPLITS for text in documents.documents(split)), "again")


def _bpe(documents: Shards) -> None:
    vocabulary = encode_with_learned_bpe(documents, 4096, "stdlib").vocabulary
    for split in SPLITS:
        for _ in vocabulary.encode_all(list(documents.documents(split))):
            pass


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _cpu_seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def table(rounds: int = 60) -> Iterator[str]:
    """Yield the lines of the report."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QBENCH_CACHE"] = folder
        yield "| step | tokens | median ms | against | ratio | quartiles | target |"
        yield "|---|---:|---:|---|---:|---|---:|"
        for size in BATCHES:
            yield from steps(size, rounds * (4 if size == "xs" else 1))
        yield ""
        yield "| what | measured | target |"
        yield "|---|---:|---:|"
        yield from once()
        for size in BATCHES:
            yield from loading(size)
