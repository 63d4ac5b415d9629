"""The task hf-causal: a checkpoint of transformers becomes a task.

A checkpoint that does not fit is an error of one line. The corpora are small, because every
tokenizer encodes them anew.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from qbench_tasks.hf_causal import CausalProblem, HFCausal
from qbench_tasks.text import Text
from qbench_tasks.vocabulary import learn_bpe
from safetensors.torch import save_file
from torch import nn

from qbench.engines.dispatch import run_one
from qbench.errors import UsageError
from qbench.execution.assignment import Assignment
from qbench.plugins import registry
from qbench.quant.layers import QuantLinear
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.plan import make_plan

transformers = pytest.importorskip("transformers")
CPU, META = torch.device("cpu"), torch.device("meta")
VOCAB = 300
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SHAPE |= {
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": VOCAB - 1,
    "bos_token_id": VOCAB - 1,
}


def save_checkpoint(folder: Path, tied: bool = False, seed: int = 0) -> Path:
    """Save a small Llama with a tokenizer of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**SHAPE, tie_word_embeddings=tied)
        ).save_pretrained(folder)
    lines = (f"{i} the cat sat on a größer mat, {i * i} dogs ran away\n" for i in range(400))
    (folder / "tokenizer.json").write_text(json.dumps(learn_bpe(lines, VOCAB, "x").to_json()))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small corpus, of which each split has some windows."""
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    texts = (
        f"{i} the cat sat on a größer mat\n{i * i} dogs ran away, {i % 7} came back\n" * 8
        for i in range(600)
    )
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"path:{path}"


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model"), request.param)


def problem(folder: Path, corpus: str, seed: int = 0, **params: Any) -> CausalProblem:
    return HFCausal(model=str(folder), corpus=corpus, **params).problem("xs", seed, 2, CPU)


def test_the_network_is_the_checkpoints(folder: Path, corpus: str) -> None:
    p = problem(folder, corpus)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = p.batch(0).inputs
    with torch.no_grad():
        torch.testing.assert_close(p.model(tokens), theirs(tokens).logits)
    assert p.model.state_dict().keys() == dict(p.model.named_parameters()).keys(), (
        "a tied weight is there once"
    )
    assert not [
        name
        for name, module in p.model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("lm_head")
    ]


def test_layers_are_those_of_the_body(folder: Path, corpus: str) -> None:
    layers = problem(folder, corpus).layers()
    parts = {name.rpartition(".")[2] for name in layers}
    assert (
        parts == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        and len(layers) == 14
    )
    assert all(isinstance(layer, QuantLinear) for layer in layers.values())
    planned = HFCausal(model=str(folder), corpus=corpus).problem("xs", 0, 1, META)
    assert {n: x.matrix().shape for n, x in planned.layers().items()} == {
        n: x.matrix().shape for n, x in layers.items()
    }
    assert all(tensor.is_meta for tensor in planned.model.parameters())


def test_text_is_scored_by_the_byte(folder: Path, corpus: str) -> None:
    p = problem(folder, corpus)
    with torch.no_grad():
        scores = p.score(p.model.eval(), "test")
    targets = torch.cat(
        [batch.targets.flatten() for batch in p.batches("test") if batch.targets is not None]
    )
    text = p.tokenizer.decode(targets.tolist()).replace("<|end|>", "")
    assert scores["bits_per_byte"] == pytest.approx(
        scores["loss"] * len(targets) / math.log(2) / len(text.encode()), rel=1e-3
    )
    assert (targets != p.tokenizer.start).all() or p.tokenizer.start == VOCAB - 1
    assert p.tokenizer.decode(p.tokenizer.encode("a <|end|> größer\n")) == "a <|end|> größer\n"
    assert p.tokenizer.start not in p.tokenizer.encode("a <|end|> b"), (
        "in a text these letters are letters"
    )


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_an_exported_model_of_the_task_text_scores_the_same(
    kind: Any, corpus: str, tmp_path: Path
) -> None:
    task = Text(corpus=corpus, tokenizer=kind, vocab=400 if kind == "bpe" else 0)
    ours = task.problem("xs", 0, 2, CPU)
    layout, state = ours.layout(), ours.model.state_dict()
    assert layout is not None
    save_file(
        {theirs: state[name] for theirs, name in layout.names.items()},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    (tmp_path / "config.json").write_text(
        json.dumps({**layout.config, "eos_token_id": ours.tokenizer.start})
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(ours.tokenizer.to_json()))
    theirs = problem(tmp_path, corpus)
    with torch.no_grad():
        assert theirs.score(theirs.model.eval(), "val") == pytest.approx(
            ours.score(ours.model.eval(), "val"), rel=1e-5
        )


def test_new_weights_come_from_the_seed(folder: Path, corpus: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    start, same, other = (
        problem(folder, corpus, seed, fresh=True).model.state_dict() for seed in (0, 0, 1)
    )
    given = problem(folder, corpus).model.state_dict()
    assert torch.equal(before, torch.get_rng_state()), "the task leaves the global generator alone"
    name = next(name for name in start if name.endswith("q_proj.weight"))
    assert (
        torch.equal(start[name], same[name])
        and not torch.equal(start[name], other[name])
        and not torch.equal(start[name], given[name])
    )


def test_the_key_has_hashes_and_no_path(tmp_path: Path, corpus: str) -> None:
    one, other = save_checkpoint(tmp_path / "a"), tmp_path / "b"
    shutil.copytree(one, other)
    a, b = (HFCausal(model=str(path), corpus=corpus) for path in (one, other))
    assert (
        a.key_options() == b.key_options()
        and a.fingerprint() == b.fingerprint()
        and a.key_options()["model"].startswith("model:")
    )
    c = HFCausal(model=str(save_checkpoint(tmp_path / "c", seed=1)), corpus=corpus)
    assert c.key_options() != a.key_options() and c.fingerprint() != a.fingerprint()
    again = registry.build("tasks", "hf-causal", a.key_options())
    assert again.fingerprint() == a.fingerprint() and again.key_options() == a.key_options()


SWEEP = """
board = "x"
methods = ["ste"]
formats = ["int4"]
start = "{}"
recipe = {{ steps = 2, batch = 2 }}
[[task]]
name = "hf-causal"
model = "{}"
fresh = {}
corpus = "{}"
"""


@pytest.mark.parametrize(
    ("start", "fresh"), [("scratch", "false"), ("scratch", "true"), ("fp:0.5", "false")]
)
def test_a_planned_run_trains_and_ships(
    start: str, fresh: str, corpus: str, tmp_path: Path
) -> None:
    model = save_checkpoint(tmp_path / "m", tied=True)
    plan = make_plan(parse_sweep(SWEEP.format(start, model, fresh, corpus), "s.toml"))
    done: dict[str, Path] = {}
    for key, run in plan.runs.items():
        written = json.dumps(run.config.to_json())
        assert str(tmp_path) not in written and corpus not in written
        done[key] = tmp_path / key / "1"
        result = run_one(
            Assignment(run.config, done[key], base=done[run.base] if run.base else None)
        )
        assert result["state"] == "ok" and result["audit"]["passed"], result["message"]
        assert 0 < result["metrics"]["bits_per_byte"] < 10
    assert len(done) == (2 if start != "scratch" else 1)


def test_a_plan_names_checkpoints_by_their_hashes(tmp_path: Path, corpus: str) -> None:
    one, other = (save_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    text = SWEEP.format("scratch", "X", "false", corpus).replace('"X"', f'["{one}", "{other}"]')
    cells = make_plan(parse_sweep(text, "s.toml")).cells
    assert [cell.variant for cell in cells] == [
        f"model=model:{HFCausal(model=str(folder)).checkpoint.hash()}" for folder in (one, other)
    ]


def change_json(folder: Path, file: str, **values: Any) -> Path:
    data = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**data, **values}))
    return folder


def save_gpt2(folder: Path) -> Path:
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=2, eos_token_id=VOCAB - 1
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda at: (at / "config.json").unlink(), "no config.json in"),
    "no tokenizer": (lambda at: (at / "tokenizer.json").unlink(), "no tokenizer.json in"),
    "no safetensors": (
        lambda at: (at / "model.safetensors").rename(at / "pytorch_model.bin"),
        "no *.safetensors in",
    ),
    "larger tokenizer": (
        lambda at: change_json(at, "config.json", vocab_size=290),
        "its tokenizer does not fit",
    ),
    "no end": (
        lambda at: change_json(at, "config.json", eos_token_id=None),
        "names no eos_token_id",
    ),
    "another width": (lambda at: change_json(at, "config.json", intermediate_size=96), "m: "),
    "another architecture": (
        lambda at: change_json(at, "config.json", model_type="qwen3"),
        "its weights are not those of a qwen3",
    ),
    "no language model": (
        lambda at: change_json(at, "config.json", model_type="vit"),
        "is no causal language model",
    ),
    "unknown architecture": (
        lambda at: change_json(at, "config.json", model_type="mine"),
        "m: ValueError",
    ),
    "convolutions": (save_gpt2, "a gpt2 keeps matrices outside linear layers"),
    "words": (
        lambda at: change_json(
            at, "tokenizer.json", model={"type": "WordLevel", "vocab": {}, "unk_token": ""}
        ),
        "its tokenizer is no byte-level BPE",
    ),
    "short": (
        lambda at: change_json(at, "config.json", max_position_embeddings=64),
        "sees 64 tokens, and the windows of xs have 128",
    ),
}


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.replace(" ", "-"))
def test_a_checkpoint_that_does_not_fit_is_one_line(case: str, corpus: str, tmp_path: Path) -> None:
    spoil, message = WRONG[case]
    spoil(save_checkpoint(tmp_path / "m"))
    task = HFCausal(model=str(tmp_path / "m"), corpus=corpus)
    with pytest.raises(UsageError) as caught:
        task.fingerprint()
        task.problem("xs", 0, 2, CPU)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_one_line() -> None:
    with pytest.raises(UsageError, match="name a checkpoint"):
        registry.build("tasks", "hf-causal", {})
    with pytest.raises(UsageError, match="no such folder; write model ="):
        HFCausal(model="./nothing/here/at/all").fingerprint()
    with pytest.raises(UsageError, match="no checkpoint with the hash 123 is known here"):
        HFCausal(model="model:123").fingerprint()
