"""A run's artefact, handed on: packed with a decoder that needs NumPy alone, or as a folder of Hugging Face's transformers.

Both come from the file that was scored. The packed one is that file, byte for byte. The other holds the decoded weights in float32 under
other names, so it is as large as the network in full precision: it is there to be run by other programs, not to be small.
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
from qbench.artefact.finished import finished, the_artefact
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

gives every tensor of the network as NumPy arrays. `decode.py` needs NumPy and Python 3.10, says how the file is laid out,
and can be imported: `decode("{artefact}")` returns the tensors by name, and the header.
`{provenance}` holds the run's whole configuration. The artefact's SHA-256 is {sha256}.
"""


def export_run(results: Path, beginning: str, to: str, out: Path) -> list[Path]:
    """Write a finished run into a folder of its own; returns the files."""
    record = read_latest_attempt(results, beginning)
    attempt, config = finished(record)
    artefact = the_artefact(attempt, record["result"])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already; name a folder that is new or empty")
    files = packed(artefact, record) if to == "packed" else hugging_face(artefact, config)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in {**files, PROVENANCE: provenance(record)}.items():
            put(out / name, content)
    except OSError as error:
        raise QbenchError(f"{error.filename or out}: {error.strerror or error}") from error
    return sorted(out.iterdir())


def put(path: Path, content: Any) -> None:
    """A file of text, of JSON, of tensors, or one that is copied."""
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    elif path.suffix == ".safetensors":
        save_file(content, path, metadata={"format": "pt"})
        apply_default_permissions(path)
    else:
        path.write_text(
            content
            if isinstance(content, str)
            else json.dumps(content, indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )


def provenance(record: Mapping[str, Any]) -> dict[str, Any]:
    """Where it comes from: enough to train it again, and to know what it scored."""
    result, env = record["result"], record["env"] or {}
    known = {name: result[name] for name in ("artefact_sha256", "metric", "scores", "size")}
    return {
        "run": record["key"],
        "spec": record["spec"],
        **known,
        "qbench": env.get("qbench"),
        "commit": env.get("commit"),
    }


# ---- packed ----


def packed(artefact: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    result, spec = record["result"], record["spec"]
    text = README.format(
        label=" ".join(filter(None, (spec["method"], (spec["weights"] or {}).get("format")))),
        task=spec["task"], size=spec["size"], seed=spec["seed"], key=record["key"], version=(record["env"] or {}).get("qbench", "?"),
        metric=result["metric"]["name"], score=result["scores"]["packed"], bits=result["size"]["bits_per_weight"],
        artefact=ARTEFACT, provenance=PROVENANCE, sha256=result["artefact_sha256"],
    )  # fmt: skip
    return {ARTEFACT: artefact, "decode.py": Path(str(decoder.__file__)), "README.md": text}


# ---- Hugging Face ----


def hugging_face(artefact: Path, config: RunConfig) -> dict[str, Any]:
    """The files of a folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` read."""
    arrays, header = decode(artefact)
    if header["inputs"]:
        raise UsageError(
            "this run rounds the inputs of its layers, which transformers' networks do not: export it with --to packed"
        )
    problem = language_model(config)
    layout, tokenizer = problem.layout(), problem.tokenizer
    assert layout is not None and tokenizer is not None
    if missing := arrays.keys() ^ layout.names.values():
        raise UsageError(
            f"task {config.task} says for no tensor called {min(missing)} what transformers call it"
        )
    tensors = {theirs: np.ascontiguousarray(arrays[ours]) for theirs, ours in layout.names.items()}
    tokens = {
        "bos_token_id": tokenizer.start,
        "eos_token_id": tokenizer.start,
        "pad_token_id": None,
    }
    return {
        "config.json": {**layout.config, **tokens},
        "model.safetensors": tensors,
        **tokenizer_files(tokenizer),
    }


def language_model(config: RunConfig) -> Problem:
    problem = open_problem(config, torch.device("cpu"))[1]
    if problem.tokenizer is None or problem.layout() is None:
        raise UsageError(
            f"task {config.task} has no network that Hugging Face's transformers know: export the run with --to packed"
        )
    return problem


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, Any]:
    """None where Hugging Face's tokenizers cannot say it. Every text begins with `start`, so theirs puts it there, too."""
    data = tokenizer.to_json()
    if data is None:
        return {}
    start = tokenizer.decode([tokenizer.start])
    if data.get("post_processor") is None:
        begun = [
            {"SpecialToken": {"id": start, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ]
        known = {start: {"id": start, "ids": [tokenizer.start], "tokens": [start]}}
        pair = [*begun, {"Sequence": {"id": "B", "type_id": 0}}]
        data = {
            **data,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": begun,
                "pair": pair,
                "special_tokens": known,
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
