"""Export of a finished run into a folder, for others to use.

A run is exported packed, with a decoder that needs nothing but NumPy, or as a folder for Hugging
Face's transformers. Both come from the file that was scored. The packed export is that file, byte
for byte. The other one holds the decoded weights in float32, under the names that transformers use.
It is as large as the full-precision network, and is meant for running the model in other programs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from qbench.api.language_model import Tokenizer
from qbench.api.problem import Problem
from qbench.artefact import decoder
from qbench.artefact.decoder import decode
from qbench.artefact.finished_run import require_artefact, require_finished
from qbench.artefact.pack import ARTEFACT
from qbench.errors import QbenchError, UsageError
from qbench.runs.config import RunConfig
from qbench.runs.lookup import read_latest_attempt
from qbench.training.setup import open_problem
from qbench.util.json_files import apply_default_permissions

PROVENANCE = "qbench.json"

README = """# {label} on {task}/{size}, seed {seed}

Run `{key}` of qbench {version}: {metric} {score:g}, {bits:.4g} bits a quantized weight.

    python decode.py {artefact} tensors.npz

writes every tensor of the network as a NumPy array. `decode.py` needs NumPy and Python 3.10,
describes the layout of the file, and can be imported: `decode("{artefact}")` returns the tensors by
name, and the header.
`{provenance}` holds the run's whole configuration. The artefact's SHA-256 is {sha256}.
"""


def export_run(results: Path, key: str, to: str, out: Path) -> list[Path]:
    """Write a finished run into a new or empty folder, and return the files.

    Args:
        results: The results folder.
        key: The run's key, or the beginning of it.
        to: `packed` or `hf`.
        out: The folder to write.
    """
    record = read_latest_attempt(results, key)
    attempt, config = require_finished(record)
    artefact = require_artefact(attempt, record["result"])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} already exists; name a folder that is new or empty")
    if to == "packed":
        contents = make_packed_files(artefact, record)
    else:
        contents = make_transformers_files(artefact, config)
    contents[PROVENANCE] = describe_provenance(record)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_content(out / name, content)
    except OSError as error:
        raise QbenchError(f"{error.filename or out}: {error.strerror or error}") from error
    return sorted(out.iterdir())


def write_content(path: Path, content: Any) -> None:
    """Write a text, a JSON object or tensors, or copy a file."""
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    elif path.suffix == ".safetensors":
        save_file(content, path, metadata={"format": "pt"})
        apply_default_permissions(path)
    else:
        if not isinstance(content, str):
            content = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        path.write_text(content, encoding="utf-8")


def describe_provenance(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is needed to train the run again and to know its scores."""
    result, env = record["result"], record["env"] or {}
    return {
        "run": record["key"],
        "spec": record["spec"],
        **{name: result[name] for name in ("artefact_sha256", "metric", "scores", "size")},
        "qbench": env.get("qbench"),
        "commit": env.get("commit"),
    }


# ---- packed ----


def make_packed_files(artefact: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the artefact, its decoder and a README, by name."""
    result, spec = record["result"], record["spec"]
    weights = spec["weights"] or {}
    text = README.format(
        label=" ".join(filter(None, (spec["method"], weights.get("format")))),
        task=spec["task"],
        size=spec["size"],
        seed=spec["seed"],
        key=record["key"],
        version=(record["env"] or {}).get("qbench", "?"),
        metric=result["metric"]["name"],
        score=result["scores"]["packed"],
        bits=result["size"]["bits_per_weight"],
        artefact=ARTEFACT,
        provenance=PROVENANCE,
        sha256=result["artefact_sha256"],
    )
    return {ARTEFACT: artefact, "decode.py": Path(str(decoder.__file__)), "README.md": text}


# ---- Hugging Face ----


def make_transformers_files(artefact: Path, config: RunConfig) -> dict[str, Any]:
    """Return what the `from_pretrained` of Hugging Face's model and tokenizer classes reads."""
    arrays, header = decode(artefact)
    if header["inputs"]:
        raise UsageError(
            "this run rounds the inputs of its layers, which the networks of transformers do not: "
            "export it with --to packed"
        )
    problem = open_transformers_problem(config)
    layout, tokenizer = problem.layout(), problem.tokenizer
    assert layout is not None and tokenizer is not None
    if missing := arrays.keys() ^ layout.names.values():
        raise UsageError(
            f"task {config.task}: its layout does not match the model at tensor {min(missing)}"
        )
    # safetensors writes an array's buffer as it lies in memory, whatever its strides.
    tensors = {theirs: np.ascontiguousarray(arrays[ours]) for theirs, ours in layout.names.items()}
    tokens = {
        "bos_token_id": tokenizer.start,
        "eos_token_id": tokenizer.start,
        "pad_token_id": None,
    }
    return {
        "config.json": {**layout.config, **tokens},
        "model.safetensors": tensors,
        **make_tokenizer_files(tokenizer),
    }


def open_transformers_problem(config: RunConfig) -> Problem:
    """Return the problem of a run whose network Hugging Face's transformers have."""
    problem = open_problem(config, torch.device("cpu"))[1]
    if problem.tokenizer is None or problem.layout() is None:
        raise UsageError(
            f"task {config.task} has no network that Hugging Face's transformers know: "
            "export the run with --to packed"
        )
    return problem


def make_tokenizer_files(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the tokenizer's files. There are none if Hugging Face's tokenizers cannot express it.

    A task begins every text with the token `start`, and the tokenizer that is written does so too.
    """
    data = tokenizer.to_json()
    if data is None:
        return {}
    start = tokenizer.decode([tokenizer.start])
    # A tokenizer that has a post-processor of its own places the start token by itself.
    if data.get("post_processor") is None:
        single = [
            {"SpecialToken": {"id": start, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ]
        pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
        special_tokens = {start: {"id": start, "ids": [tokenizer.start], "tokens": [start]}}
        data = {
            **data,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": single,
                "pair": pair,
                "special_tokens": special_tokens,
            },
        }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.context,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": data,
        "tokenizer_config.json": {**settings, "bos_token": start, "eos_token": start},
    }
