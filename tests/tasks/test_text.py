"""The task text: its score, its order of windows, and its keys.

The score is bits per byte, counted exactly. Batches are windows without repetition. A key has the
hash of a corpus and not its path.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qbench_tasks.shards import Shards
from qbench_tasks.text import RECIPES, SHAPES, Text, TextProblem
from qbench_tasks.transformer import Shape, Transformer
from qbench_tasks.windows import WINDOWS
from torch import Tensor, nn

from qbench.engines.dispatch import run_one
from qbench.errors import UsageError
from qbench.execution.assignment import Assignment
from qbench.plugins import registry
from qbench.runs.config import RunConfig
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.cells import Plan
from qbench.sweeps.plan import make_plan

CPU, META = torch.device("cpu"), torch.device("meta")
WORDS = ["the", "cat", "sat", "on", "a", "größer", "mat", "while", "文字", "ran", "away\n"]


def texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [f"{i} {' '.join(draw.choices(WORDS, k=draw.randint(1, 60)))}" for i in range(count)]


def write_corpus(path: Path, documents: list[str], field: str = "text") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in documents))
    return f"path:{path}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "a.jsonl", texts(3000))


@pytest.fixture(params=["bytes", "bpe"])
def task(request: Any, corpus: str) -> Text:
    if request.param == "bpe":
        pytest.importorskip("tokenizers")
    return Text(corpus=corpus, tokenizer=request.param, vocab=512 if request.param == "bpe" else 0)


def problem(task: Text, seed: int = 0, batch: int = 4) -> TextProblem:
    return task.problem("xs", seed, batch, CPU)


def list_windows(batch: Any) -> list[tuple[int, ...]]:
    return [tuple(row) for row in torch.cat((batch.inputs, batch.targets[:, -1:]), 1).tolist()]


def take_windows(problem: TextProblem, count: int, outside: bool = False) -> list[tuple[int, ...]]:
    """Return the first `count` windows of the order, or of those outside it."""
    batches = range(-(-count // problem.count))
    windows = [
        window for i in batches for window in list_windows(problem.batch(-1 - i if outside else i))
    ]
    return windows[:count]


class UniformModel(nn.Module):
    """A model that finds all tokens equally likely."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, self.vocab)


# ---- the score ----


def test_a_model_that_knows_nothing_pays_the_vocabulary_for_every_token(task: Text) -> None:
    p = problem(task)
    scores = p.score(UniformModel(task.vocabulary), "test")
    targets = torch.cat(
        [batch.targets.flatten() for batch in p.batches("test") if batch.targets is not None]
    )
    size = len(
        p.tokenizer.decode(targets.tolist()).replace("<|end|>", "").encode(errors="surrogateescape")
    )
    assert scores["loss"] == pytest.approx(math.log(task.vocabulary), rel=1e-6)
    assert scores["bits_per_byte"] == pytest.approx(
        math.log2(task.vocabulary) * len(targets) / size, rel=1e-3
    )
    assert scores["bytes_per_token"] == pytest.approx(size / len(targets), rel=1e-3), (
        "a character cut by the end may count three bytes"
    )


def test_every_byte_that_is_scored_is_scored_once(task: Text) -> None:
    p = problem(task)
    for split in ("val", "test"):
        batches = list(p.batches(split))
        targets = np.concatenate(
            [batch.targets.numpy().ravel() for batch in batches if batch.targets is not None]
        )
        stream = p.data.shards.tokens(split)
        assert targets.tolist() == stream[1 : len(targets) + 1].tolist()
        assert len(targets) == p.context * min(WINDOWS[split], (len(stream) - 1) // p.context)
        first = batches[0]
        assert (
            first.inputs is not None
            and first.targets is not None
            and first.inputs[0, 0] == p.tokenizer.start
        )
        assert torch.equal(first.inputs[:, 1:], first.targets[:, :-1])


def test_bits_do_not_depend_on_how_windows_are_batched(
    task: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(task)
    p.model.eval()
    with torch.no_grad():
        whole = p.score(p.model, "val")
        monkeypatch.setattr("qbench_tasks.windows.SCORED_AT_ONCE", 3 * p.context)
        assert p.score(p.model, "val") == pytest.approx(whole, rel=1e-6)


# ---- the order ----


def test_an_epoch_has_every_window_once(task: Text) -> None:
    p = problem(task, batch=37)  # so that a batch crosses the end of the epoch
    windows = p.count_windows("train")
    assert windows > 300 and p.ordered + p.outside == windows
    both = take_windows(p, 2 * p.ordered)
    first, second = both[: p.ordered], both[p.ordered :]
    outside = take_windows(p, p.outside, outside=True)
    everything = sorted(list_windows(p.load(p.read_windows("train", np.arange(windows)))))
    assert sorted(first + outside) == sorted(second + outside) == everything
    assert len(set(everything)) == windows
    assert first != second and first != take_windows(problem(task, 1, 37), p.ordered)


def test_the_order_does_not_depend_on_the_batch_size(task: Text) -> None:
    one, seven = problem(task, batch=1), problem(task, batch=7)
    assert take_windows(one, 210) == take_windows(seven, 210)


def test_scored_windows_are_not_trained_on(task: Text) -> None:
    p = problem(task, batch=32)
    train = {*take_windows(p, p.ordered), *take_windows(p, p.outside, outside=True)}
    assert len(train) == p.count_windows("train")
    held_out = [
        window
        for split in ("val", "test")
        for batch in p.batches(split)
        for window in list_windows(batch)
    ]
    assert held_out and not train & set(held_out) and len(set(held_out)) == len(held_out)


# ---- sizes ----

NAMES = {
    "xs": 0.15e6,
    "s": 0.5e6,
    "1m": 1e6,
    "10m": 10e6,
    "30m": 30e6,
    "50m": 50e6,
    "100m": 100e6,
    "150m": 150e6,
    "300m": 300e6,
}


def test_sizes_hold_what_their_names_say() -> None:
    assert list(NAMES) == list(Text.sizes) == list(SHAPES) == list(RECIPES)
    for size, parameters in NAMES.items():
        shape, recipe = SHAPES[size], RECIPES[size]
        model = Text().problem(size, 0, 1, META).model
        assert (
            Text.sizes[size]["parameters"]
            == shape.parameters
            == sum(p.numel() for p in model.parameters())
        )
        assert shape.parameters == pytest.approx(parameters, rel=0.025)
        assert shape.width % 32 == shape.mlp % 32 == shape.width % shape.heads == 0, "blocks fit"
        if parameters >= 1e6:
            assert 10 < recipe.steps * recipe.batch * shape.context / shape.parameters < 25, (
                "tokens a parameter"
            )


def test_the_largest_sizes_are_those_of_lotion() -> None:
    for size, depth in (("150m", 12), ("300m", 24)):
        assert SHAPES[size] == Shape(256, 1024, depth, 16, 4096, 1024, qk_norm=True, gated=False)
        recipe = RECIPES[size]
        assert (
            recipe.steps,
            recipe.batch,
            recipe.floor,
            recipe.warmup,
            recipe.clip,
            recipe.weight_decay,
        ) == (12_500, 256, 0.1, 0.1, 1, 0)
        assert (recipe.beta1, recipe.beta2) == (0.9, 0.95)


def test_planning_a_large_size_takes_no_memory() -> None:
    p = Text().problem("300m", 0, 1, META)
    assert all(tensor.is_meta for tensor in (*p.model.parameters(), *p.model.buffers()))
    assert len(p.layers()) == 24 * 6 and p.batch(0).inputs is not None


def test_without_a_gate_an_mlp_is_two_matmuls_around_gelu() -> None:
    shape = Shape(256, width=32, depth=1, heads=2, mlp=64, context=16, qk_norm=True, gated=False)
    model = Transformer(shape, torch.Generator().manual_seed(0))
    assert [name.rpartition(".")[2] for name, _ in model.body()] == [
        "q",
        "k",
        "v",
        "o",
        "up",
        "down",
    ]
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    mlp, x = model.blocks[0].mlp, torch.randn(3, 32)
    expected = nn.functional.linear(
        nn.functional.gelu(nn.functional.linear(x, mlp.up.weight)), mlp.down.weight
    )
    torch.testing.assert_close(mlp(x), expected)


def test_a_model_without_a_gate_has_no_name_elsewhere(corpus: str) -> None:
    assert problem(Text(corpus=corpus)).layout() is not None
    assert Text(corpus=corpus).problem("150m", 0, 1, META).layout() is None


# ---- options, and what is wrong with them ----


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"corpus": "stdlb"}, "unknown corpus 'stdlb'"),
        ({"limit": -1}, "limit must not be negative"),
        ({"vocab": 512}, 'belongs to tokenizer = "bpe"'),
        ({"tokenizer": "bpe", "vocab": 256}, "vocab must be from 257 to 65536, not 256"),
        ({"tokenizer": "bpe", "vocab": 65537}, "vocab must be from 257 to 65536"),
        ({"tokenizer": "words"}, "unknown value 'words'"),
    ],
)
def test_options_out_of_their_domain_are_one_line(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.build("tasks", "text", params)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_too_short_for_a_window_is_one_line(
    split: str, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Text(corpus=corpus)
    needed = 257 if split == "train" else 129
    shorten_split(monkeypatch, split, needed - 1)
    with pytest.raises(
        UsageError,
        match=f"too short for xs: its split {split} holds {needed - 1} tokens and needs {needed}$",
    ):
        task.problem("xs", 0, 4, META)
    shorten_split(monkeypatch, split, needed)
    assert (
        len(list(problem(task, batch=2).batches(split))) == 1
        and problem(task, batch=2).batch(5).count == 2
    )


def shorten_split(monkeypatch: pytest.MonkeyPatch, split: str, tokens: int) -> None:
    """Make all shards say that a split holds so many tokens."""
    original = Shards.__init__

    def shortened(self: Shards, folder: Path) -> None:
        original(self, folder)
        self.streams[split] = replace(self.streams[split], tokens=tokens)  # type: ignore[index]

    monkeypatch.undo()
    monkeypatch.setattr(Shards, "__init__", shortened)


def test_a_default_vocabulary_has_the_same_key_as_its_number() -> None:
    assert Text().key_options() == Text(vocab=256).key_options() == vars(Text())
    assert (
        Text(tokenizer="bpe").key_options()
        == Text(tokenizer="bpe", vocab=4096).key_options()
        != Text(tokenizer="bpe", vocab=512).key_options()
    )


# ---- the key ----

SWEEP = """
board = "x"
methods = ["rtn", "ste"]
formats = ["int4"]
recipe = {{ steps = 2, batch = 4 }}
[[task]]
name = "text"
corpus = "{}"
"""


def plan_sweep(corpus: str, more: str = "") -> Plan:
    return make_plan(parse_sweep(SWEEP.format(corpus) + more, "sweep.toml"))


def test_a_key_has_the_hash_of_the_text_and_not_its_path(tmp_path: Path) -> None:
    here = plan_sweep(write_corpus(tmp_path / "a.jsonl", texts(600)))
    assert len(here.runs) == 3
    assert (
        here.runs.keys()
        == plan_sweep(write_corpus(tmp_path / "b" / "other.jsonl", texts(600)[::-1])).runs.keys()
    ), "another path, another order"
    assert (
        here.runs.keys()
        == plan_sweep(
            write_corpus(tmp_path / "c.jsonl", texts(600), "body"), 'field = "body"'
        ).runs.keys()
    )
    assert (
        here.runs.keys()
        == plan_sweep(write_corpus(tmp_path / "d.jsonl", texts(700)), "limit = 600").runs.keys()
    )
    assert (
        not here.runs.keys()
        & plan_sweep(write_corpus(tmp_path / "a.jsonl", texts(601))).runs.keys()
    ), "the same path, another text"
    configs = [run.config for run in here.runs.values()]
    assert not [config for config in configs if str(tmp_path) in json.dumps(config.to_json())]
    assert {config.task_params["corpus"] for config in configs} == {
        f"data:{Text(corpus=f'path:{tmp_path}/b/other.jsonl').tokens().hash}"
    }


def test_a_cells_name_has_the_hash_of_the_text_and_not_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, corpora = write_corpus(tmp_path / "a.jsonl", texts(600)), []
    real = Text.key_options

    def key_options(task: Text) -> dict[str, Any]:
        corpora.append(task.corpus)
        return real(task)

    monkeypatch.setattr(Text, "key_options", key_options)
    found = make_plan(
        parse_sweep(SWEEP.format("").replace('""', f'["{path}", "stdlib"]'), "s.toml")
    )
    keyed = f"data:{Text(corpus=path).tokens().hash}"
    assert {cell.variant for cell in found.cells} == {f"corpus={keyed}", "corpus=stdlib"}
    assert str(tmp_path) not in json.dumps([cell.title for cell in found.cells])
    assert sorted(corpora) == sorted([path, "stdlib"]), (
        "files are read once a plan, not once a cell"
    )


@pytest.mark.parametrize("name", ["../../x", "/tmp", "", "0" * 31, "G" * 32])
def test_a_hash_names_no_other_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="a hash is 32 digits from 0 to f"):
        Text(corpus=f"data:{name}").fingerprint()
    assert not list(tmp_path.rglob("*"))


def test_an_unknown_home_is_one_line() -> None:
    with pytest.raises(UsageError, match="~nobody-of-this-name/x: there is no such home folder"):
        registry.build("tasks", "text", {"corpus": "path:~nobody-of-this-name/x"}).fingerprint()


def test_options_that_decide_the_tokens_are_in_the_key(corpus: str) -> None:
    keys = [
        frozenset(plan_sweep(corpus, more).runs)
        for more in ("", 'tokenizer = "bpe"\nvocab = 300', 'tokenizer = "bpe"\nvocab = 400')
    ]
    assert len(keys[0] | keys[1] | keys[2]) == 9
    assert (
        Text(corpus=corpus).fingerprint()
        != Text(corpus=corpus, tokenizer="bpe", vocab=300).fingerprint()
    )


def test_the_library_keeps_its_name() -> None:
    assert (
        Text().key_options()["corpus"] == "stdlib" and Text().fingerprint() == Text().fingerprint()
    )


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.write_text(""), "the corpus is empty"),
        (
            lambda path: path.write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n'),
            "too short for xs: its split train holds 3 tokens",
        ),
        (
            lambda path: path.write_text('{"text": "a"}\n{"body": "b"}\n'),
            "a.jsonl:2: no text in the field 'text'",
        ),
        (lambda path: path.write_bytes(b"\xff"), "not JSON"),
    ],
)
def test_a_faulty_corpus_is_an_error_of_planning(write: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    with pytest.raises(UsageError) as caught:
        plan_sweep(f"path:{tmp_path / 'a.jsonl'}")
    assert message in str(caught.value) and "\n" not in str(caught.value)


# ---- a run ----


def test_a_planned_run_trains_and_ships(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    planned = next(
        run.config
        for run in plan_sweep(write_corpus(path, texts(600))).runs.values()
        if run.config.method == "ste"
    )
    config = RunConfig.from_json(json.loads(json.dumps(planned.to_json())))
    path.unlink()
    result = run_one(Assignment(config, tmp_path / "run" / "1"))
    assert result["state"] == "ok" and result["audit"]["passed"], result["message"]
    assert 4 < result["metrics"]["bits_per_byte"] < 9 and result["metrics"][
        "loss"
    ] == pytest.approx(
        math.log(2) * result["metrics"]["bits_per_byte"] * result["metrics"]["bytes_per_token"]
    )


def test_a_run_without_its_text_fails_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = next(
        iter(plan_sweep(write_corpus(tmp_path / "a.jsonl", texts(600))).runs.values())
    ).config
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "elsewhere"))
    result = run_one(Assignment(config, tmp_path / "run" / "1"))
    assert (
        result["state"] == "failed"
        and result["reason"] == "data"
        and result["message"].startswith("no corpus with the hash")
    )
