"""A causal language model of Hugging Face's transformers: found, checked, hashed, and made of our layers.

Nothing that a checkpoint brings along is executed: weights are safetensors, and code of its own is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.api import Layout, QuantLinear, UsageError
from qbench_tasks.corpus import HUB_TIMEOUT_S, describe_error, resolve_path, read_stamps
from qbench_tasks.shards import cache_path
from qbench_tasks.tokens import find_record, noted, is_settled
from qbench_tasks.vocabulary import NOT_INSTALLED, CheckpointVocabulary

HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "*.safetensors",
    "*.safetensors.index.json",
)
MODEL_HASH_SCHEME = "model"
READ_BYTES = 1 << 24


@dataclass(frozen=True)
class Checkpoint:
    """A folder as transformers writes it."""

    folder: Path
    called: str

    @cached_property
    def config(self) -> Any:
        """transformers' own, so that what it does not know is an error here."""
        import transformers

        path = self.folder / "config.json"
        if not path.is_file():
            raise UsageError(f"{self.called}: no config.json in {self.folder}")
        try:
            config = transformers.AutoConfig.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
        except (ValueError, KeyError, OSError) as error:
            raise UsageError(f"{self.called}: {describe_error(error)}") from None
        if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UsageError(
                f"{self.called}: a {config.model_type} is no causal language model that transformers knows"
            )
        return config

    @cached_property
    def vocabulary(self) -> CheckpointVocabulary:
        """The tokenizer, and as the separator the token by which the model ends a text."""
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise UsageError(f"{self.called}: no tokenizer.json in {self.folder}")
        end = self.config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        if end is None:
            raise UsageError(
                f"{self.called}: its config.json names no eos_token_id, which stands between texts"
            )
        return CheckpointVocabulary(path.read_text(encoding="utf-8"), self.config.vocab_size, end, self.called)

    def hash(self) -> str:
        """Of the configuration, the tokenizer and the weights. Gigabytes are read once: files that have not changed since are known."""
        files = sorted({path for pattern in CHECKPOINT_FILES for path in self.folder.glob(pattern)})
        if not any(path.suffix == ".safetensors" for path in files):
            raise UsageError(
                f"{self.called}: no *.safetensors in {self.folder}; other formats of weights are not read"
            )
        record, signature = find_record("models", read_stamps(files))
        if (known := noted(record)) and known["settled"]:
            return str(known["hash"])
        digest, trusted = hashlib.sha256(), is_settled(signature)
        for path in files:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(READ_BYTES):
                    digest.update(block)
        found = digest.hexdigest()[:32]
        noted(record, {"hash": found, "folder": str(self.folder), "settled": trusted})
        return found

    def build(self, weights: bool) -> nn.Module:
        """The network in float32; without `weights`, of the global generator's, or of none on the device `meta`."""
        import transformers

        auto: Any = transformers.AutoModelForCausalLM
        keep = {"attn_implementation": "sdpa", "dtype": torch.float32, "trust_remote_code": False}
        if not weights:
            model: nn.Module = auto.from_config(self.config, **keep)
            return model
        try:
            model, info = auto.from_pretrained(
                self.folder,
                config=self.config,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **keep,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise UsageError(f"{self.called}: {describe_error(error)}") from None
        if wrong := sorted(
            map(str, {*info["missing_keys"], *info["mismatched_keys"], *info["unexpected_keys"]})
        ):
            raise UsageError(
                f"{self.called}: its weights are not those of a {self.config.model_type}: {wrong[0]} and {len(wrong) - 1} more"
            )
        return model


def find_checkpoint(model: str) -> Checkpoint:
    """The checkpoint that an option names: a folder here, one that was hashed here before, or one of the hub's."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UsageError(NOT_INSTALLED.format("transformers, which reads checkpoints,")) from None
    scheme, _, rest = model.partition(":")
    if scheme == MODEL_HASH_SCHEME:
        return _find_by_hash(rest)
    if (folder := resolve_path(model)).is_dir():
        return Checkpoint(folder, model)
    if match := HUB_NAME.fullmatch(model):
        return Checkpoint(_download(match["name"], match["revision"]), model)
    raise UsageError(f'{model}: no such folder; write model = "FOLDER" or "OWNER/NAME[@REVISION]"')


def _find_by_hash(name: str) -> Checkpoint:
    for record in sorted(cache_path("models", "_").parent.glob("*.json")):
        known = noted(record)
        if known and known["hash"] == name and Path(known["folder"]).is_dir():
            found = Checkpoint(Path(known["folder"]), f"{MODEL_HASH_SCHEME}:{name}")
            if found.hash() == name:
                return found
    raise UsageError(
        f"no checkpoint with the hash {name} is known here: ask once for model = with the folder that holds it"
    )


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(CHECKPOINT_FILES), etag_timeout=HUB_TIMEOUT_S
            )
        )
    except RepositoryNotFoundError:
        raise UsageError(
            f"{name}: the hub has no such model, or it is not open to you, and no folder here is called so"
        ) from None
    except Exception as error:
        raise UsageError(
            f"{name}: no folder here, and the hub cannot be reached ({describe_error(error)})"
        ) from error


# ---- our layers in it ----


class CausalNetwork(nn.Module):
    """Tokens (batch, time) to logits. The body's linear layers are QuantLinears with the checkpoint's weights."""

    def __init__(self, model: Any, called: str) -> None:
        super().__init__()
        self.model = model
        head = model.get_output_embeddings()
        if head.weight is model.get_input_embeddings().weight:
            model.set_output_embeddings(TiedHead(model.get_input_embeddings()))
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and layer is not head:
                model.set_submodule(name, to_quant_linear(layer))
        _check_body(model, called)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits  # type: ignore[no-any-return]

    def body(self) -> Iterator[tuple[str, QuantLinear]]:
        return (
            (name, module)
            for name, module in self.named_modules()
            if isinstance(module, QuantLinear)
        )

    def layout(self) -> Layout:
        config = {
            **json.loads(self.model.config.to_json_string(use_diff=False)),
            "torch_dtype": "float32",
        }
        return Layout(config, {name.removeprefix("model."): name for name in self.state_dict()})


class TiedHead(nn.Module):
    """An output layer whose weight is the embedding's, which alone is in the state."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = (embedding,)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embedding[0].weight)  # type: ignore[arg-type]


def to_quant_linear(layer: nn.Linear) -> QuantLinear:
    with torch.device("meta"):
        made = QuantLinear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.weight, made.bias = nn.Parameter(layer.weight.data), layer.bias
    return made


def _check_body(model: Any, called: str) -> None:
    """Every matrix is a QuantLinear's, the embedding's or the head's: otherwise part of the body would silently stay as it is."""
    owners = {
        id(p)
        for m in model.modules()
        if isinstance(m, (QuantLinear, nn.Embedding))
        for p in m.parameters(recurse=False)
    }
    owners |= {id(p) for p in model.get_output_embeddings().parameters()}
    other = [name for name, p in model.named_parameters() if p.dim() > 1 and id(p) not in owners]
    if other or not any(isinstance(m, QuantLinear) for m in model.modules()):
        raise UsageError(
            f"{called}: a {model.config.model_type} keeps matrices outside linear layers ({(other or ['all'])[0]}), as is not supported"
        )
