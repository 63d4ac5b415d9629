"""Exported runs: what others load is what was scored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from qbench_tasks.transformer import Shape, Transformer
from safetensors.torch import load_file

from qbench.artefact.decoder import decode
from qbench.artefact.export_folder import export_run
from qbench.artefact.pack import ARTEFACT
from qbench.downstream.hf_folder import hash_folder, open_folder
from qbench.errors import QbenchError, UsageError
from tests.language_runs import LanguageRuns, language_runs, load_problem

__all__ = ["language_runs"]


RUN_WITH_NUMPY_ONLY = (
    "import sys, runpy; "
    "sys.modules |= dict.fromkeys(('qbench', 'torch', 'safetensors')); "
    "sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""A program that runs a script where importing qbench, torch or safetensors fails."""
LOGITS_TOLERANCE = 3e-5
"""For logits up to ten: the same float32 products are summed in another order."""


def test_the_exported_decoder_reads_every_tensor_with_nothing_but_numpy(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    files = export_run(language_runs.results, language_runs.int4_int8, "packed", tmp_path / "out")
    assert [file.name for file in files] == ["README.md", "decode.py", "qbench.json", ARTEFACT]
    artefact = language_runs.folder(language_runs.int4_int8) / "export" / ARTEFACT
    assert (tmp_path / "out" / ARTEFACT).read_bytes() == artefact.read_bytes()
    # With -I, Python ignores this directory and PYTHONPATH.
    command = [
        sys.executable,
        "-I",
        "-c",
        RUN_WITH_NUMPY_ONLY,
        "decode.py",
        ARTEFACT,
        "tensors.npz",
    ]
    subprocess.run(command, cwd=tmp_path / "out", check=True, capture_output=True)
    expected = decode(artefact)[0]
    with np.load(tmp_path / "out" / "tensors.npz") as found:
        assert set(found) == set(expected)
        assert all(
            np.array_equal(found[name], tensor) and found[name].dtype == tensor.dtype
            for name, tensor in expected.items()
        )


@pytest.mark.parametrize(
    "file", [None, b"", b"\xff" * 64, b"\2\0\0\0\0\0\0\0{}", b"\2\0\0\0\0\0\0\0[]"]
)
def test_a_file_that_the_decoder_cannot_read_is_an_error_of_one_line(
    file: bytes | None, tmp_path: Path
) -> None:
    if file is not None:
        (tmp_path / "w.safetensors").write_bytes(file)
    decoder = Path(str(sys.modules[decode.__module__].__file__))
    done = subprocess.run(
        [sys.executable, "-I", decoder, "w.safetensors", "t.npz"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 1
        and len(done.stderr.splitlines()) == 1
        and done.stderr.startswith("w.safetensors: ")
    ), done.stderr
    assert not (tmp_path / "t.npz").exists()


@pytest.mark.parametrize("to", ["packed", "hf"])
def test_every_file_has_the_permissions_that_the_umask_leaves(
    to: str, language_runs: LanguageRuns, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        files = export_run(language_runs.results, language_runs.int4, to, tmp_path / "out")
        assert {file.name: oct(file.stat().st_mode & 0o777) for file in files} == {
            file.name: "0o640" for file in files
        }
    finally:
        os.umask(before)
    artefact = language_runs.folder(language_runs.int4) / "export" / ARTEFACT
    assert artefact.stat().st_mode == (artefact.parent.parent / "result.json").stat().st_mode


def test_a_folder_that_cannot_be_created_is_an_error_of_one_line(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QbenchError, match=r"/file/out: Not a directory$"):
        export_run(language_runs.results, language_runs.int4, "packed", tmp_path / "file" / "out")


def test_the_readme_names_the_run(language_runs: LanguageRuns, tmp_path: Path) -> None:
    export_run(language_runs.results, language_runs.int4[:8], "packed", tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert (
        "rtn int4 on grammar/xs, seed 0" in text
        and language_runs.int4 in text
        and len(text.splitlines()) <= 10
    )
    known = json.loads((tmp_path / "qbench.json").read_text())
    assert (
        known["run"] == language_runs.int4
        and known["spec"]["method"] == "rtn"
        and known["scores"]["packed"] > 0
    )


def test_the_hash_of_a_folder_covers_what_decides_its_answers_and_pickles_are_refused(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    pytest.importorskip(
        "transformers",
        reason="Hugging Face's transformers are not installed: pip install 'qbench[hf]'",
    )
    export_run(language_runs.results, language_runs.int4, "hf", tmp_path)
    hashes = [hash_folder(tmp_path)]
    (tmp_path / "downstream.json").write_text("{}")
    assert hash_folder(tmp_path) == hashes[0], "answers are kept in the folder"
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        hashes.append(hash_folder(tmp_path))
    assert len(set(hashes)) == 3
    weights = load_file(tmp_path / "model.safetensors")
    (
        tmp_path / "model.safetensors"
    ).unlink()  # unlinked first, because the file is mapped into memory
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(
        QbenchError, match="transformers cannot load it: Error while deserializing header"
    ):
        open_folder(tmp_path, torch.device("cpu"))
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(QbenchError, match=r"transformers cannot load it: .*safetensors") as caught:
        open_folder(tmp_path, torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_transformers_load_the_folder_and_compute_the_same_logits(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    pytest.importorskip(
        "transformers",
        reason="Hugging Face's transformers are not installed: pip install 'qbench[hf]'",
    )
    export_run(language_runs.results, language_runs.int4, "hf", tmp_path)
    problem = load_problem(language_runs, language_runs.int4)
    model, words = open_folder(tmp_path, torch.device("cpu"))
    batch = next(iter(problem.batches("test"))).inputs
    with torch.no_grad():
        torch.testing.assert_close(
            model(batch), problem.model(batch), atol=LOGITS_TOLERANCE, rtol=0
        )
    tokenizer = problem.tokenizer
    assert tokenizer is not None
    text = "let golf five the gatta near lupi nata soon"
    assert words.encode(text) == tokenizer.encode(text) and words.decode(words.encode(text)) == text
    assert (words.start, words.context) == (tokenizer.start, tokenizer.context)
    assert words.tokenizer(text)["input_ids"] == [tokenizer.start, *tokenizer.encode(text)], (
        "the tokenizer begins texts as the task does"
    )


def test_transformers_load_the_other_variant_of_the_transformer_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers",
        reason="Hugging Face's transformers are not installed: pip install 'qbench[hf]'",
    )
    model = Transformer(
        Shape(vocab=11, width=32, depth=2, heads=4, mlp=48, context=16, qk_norm=True),
        torch.Generator().manual_seed(1),
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(
                    0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
                )
    layout = model.layout()
    config = transformers.AutoConfig.for_model(**layout.config)
    with torch.random.fork_rng():
        theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    state = model.state_dict()
    theirs.load_state_dict({name: state[ours] for name, ours in layout.names.items()})
    tokens = torch.arange(32).view(2, 16) % 11
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(tokens).logits, model(tokens), atol=LOGITS_TOLERANCE, rtol=0
        )


def test_quantized_inputs_are_refused_for_transformers(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"rounds the inputs of its layers.*--to packed"):
        export_run(language_runs.results, language_runs.int4_int8, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_no_language_model_is_refused_for_transformers(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError, match="task digits has no network that Hugging Face's transformers know"
    ):
        export_run(language_runs.results, language_runs.digits, "hf", tmp_path)


def test_a_folder_that_is_not_empty_is_left_alone(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="already exists"):
        export_run(language_runs.results, language_runs.fp, "packed", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
