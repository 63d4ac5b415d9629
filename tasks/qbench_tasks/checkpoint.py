"""Find, check and hash a causal language model of Hugging Face's transformers, and put our layers
in it.

No code of a checkpoint is executed: weights are read from safetensors only, and a model that needs
code of its own is refused.
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
from qbench_tasks.corpus import HUB_TIMEOUT_S, describe_error, read_stamps, resolve_path
from qbench_tasks.shards import cache_path
from qbench_tasks.tokens import is_settled, read_record, record_path, write_record
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
READ_BYTES = 1 << 24  # bytes that are read and hashed at a time


@dataclass(frozen=True)
class Checkpoint:
    """A folder as transformers writes it."""

    folder: Path
    label: str  # the checkpoint as errors name it

    @cached_property
    def config(self) -> Any:
        """The configuration object of transformers, so that an unknown architecture is an error."""
        import transformers

        path = self.folder / "config.json"
        if not path.is_file():
            raise UsageError(f"{self.label}: no config.json in {self.folder}")
        try:
            config = transformers.AutoConfig.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
        except (ValueError, KeyError, OSError) as error:
            raise UsageError(f"{self.label}: {describe_error(error)}") from None
        if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UsageError(
                f"{self.label}: a {config.model_type} is no causal language model "
                f"that transformers knows"
            )
        return config

    @cached_property
    def vocabulary(self) -> CheckpointVocabulary:
        """The tokenizer, with the token by which the model ends a text as the separator."""
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise UsageError(f"{self.label}: no tokenizer.json in {self.folder}")
        end = self.config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        if end is None:
            raise UsageError(
                f"{self.label}: its config.json names no eos_token_id, which stands between texts"
            )
        text = path.read_text(encoding="utf-8")
        return CheckpointVocabulary(text, self.config.vocab_size, end, self.label)

    def hash(self) -> str:
        """Return the hash of the configuration, the tokenizer and the weights.

        Gigabytes are read once: the hash of files that have not changed since is on record.
        """
        files = sorted({path for pattern in CHECKPOINT_FILES for path in self.folder.glob(pattern)})
        if not any(path.suffix == ".safetensors" for path in files):
            raise UsageError(
                f"{self.label}: no *.safetensors in {self.folder}; "
                f"other formats of weights are not read"
            )
        signature = read_stamps(files)
        path = record_path("models", signature)
        record = read_record(path)
        if record and record["settled"]:
            return str(record["hash"])
        # Asked before the files are read: they may change while they are.
        settled = is_settled(signature)
        found = _hash_files(files)
        write_record(path, {"hash": found, "folder": str(self.folder), "settled": settled})
        return found

    def build_network(self, weights: bool) -> nn.Module:
        """Return the network in float32.

        Args:
            weights: Whether to load the checkpoint's weights. Otherwise they are drawn from the
                global generator, and on the device `meta` there are none.
        """
        import transformers

        auto: Any = transformers.AutoModelForCausalLM
        options = {
            "attn_implementation": "sdpa",
            "dtype": torch.float32,
            "trust_remote_code": False,
        }
        if not weights:
            model: nn.Module = auto.from_config(self.config, **options)
            return model
        try:
            model, info = auto.from_pretrained(
                self.folder,
                config=self.config,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise UsageError(f"{self.label}: {describe_error(error)}") from None
        wrong = {*info["missing_keys"], *info["mismatched_keys"], *info["unexpected_keys"]}
        if wrong:
            raise UsageError(
                f"{self.label}: its weights are not those of a {self.config.model_type}: "
                f"{min(map(str, wrong))} and {len(wrong) - 1} more"
            )
        return model


def _hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
    return digest.hexdigest()[:32]


def find_checkpoint(model: str) -> Checkpoint:
    """Return the checkpoint that an option names.

    It is a folder on this machine, `model:HASH` for one that was hashed here before, or a
    repository on the hub.
    """
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
    for path in sorted(cache_path("models", "_").parent.glob("*.json")):
        record = read_record(path)
        if record and record["hash"] == name and Path(record["folder"]).is_dir():
            checkpoint = Checkpoint(Path(record["folder"]), f"{MODEL_HASH_SCHEME}:{name}")
            # The folder may hold something else since the record was written.
            if checkpoint.hash() == name:
                return checkpoint
    raise UsageError(
        f"no checkpoint with the hash {name} is known here: "
        f"ask once for model = with the folder that holds it"
    )


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(CHECKPOINT_FILES),
                etag_timeout=HUB_TIMEOUT_S,
            )
        )
    except RepositoryNotFoundError:
        raise UsageError(
            f"{name}: the hub has no such model, or it is not open to you, "
            f"and no folder here has this name"
        ) from None
    except Exception as error:
        raise UsageError(
            f"{name}: no folder here, and the hub cannot be reached ({describe_error(error)})"
        ) from error


# ---- our layers in it ----


class CausalNetwork(nn.Module):
    """A network from tokens (batch, time) to logits.

    The linear layers of its body are QuantLinears with the checkpoint's weights.
    """

    def __init__(self, model: Any, label: str) -> None:
        super().__init__()
        self.model = model
        head = model.get_output_embeddings()
        if head.weight is model.get_input_embeddings().weight:
            model.set_output_embeddings(TiedHead(model.get_input_embeddings()))
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and layer is not head:
                model.set_submodule(name, to_quant_linear(layer))
        _check_body(model, label)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits  # type: ignore[no-any-return]

    def body(self) -> Iterator[tuple[str, QuantLinear]]:
        """Yield the layers of the body by name."""
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
        # In a tuple the module does not register, so its weight is in the state only once.
        self.embedding = (embedding,)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embedding[0].weight)  # type: ignore[arg-type]


def to_quant_linear(layer: nn.Linear) -> QuantLinear:
    """Return a QuantLinear with the weight and the bias of a linear layer."""
    # On the device `meta`, because the new layer's own weight is not needed.
    with torch.device("meta"):
        quantized = QuantLinear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    quantized.weight, quantized.bias = nn.Parameter(layer.weight.data), layer.bias
    return quantized


def _check_body(model: Any, label: str) -> None:
    """Raise a UsageError unless every matrix belongs to a QuantLinear, an embedding or the head.

    Otherwise a part of the body would silently stay in full precision.
    """
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
            f"{label}: a {model.config.model_type} keeps matrices outside linear layers "
            f"({(other or ['all'])[0]}), which is not supported"
        )
