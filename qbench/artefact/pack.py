"""The artefact: what a run ships, and the way back from it.

`export` writes packed codes and scales; `restore` reads them by the independent decoder into the model. What a run is
scored on is the restored model, so a score can only be had with numbers that are in the file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from qbench.artefact.decoder import decode, pack
from qbench.quant.formats import Granularity
from qbench.quant.grid import Grid
from qbench.quant.layers import QuantLayer
from qbench.quant.levels import Levels
from qbench.quant.site import INPUT
from qbench.training.run import TrainingRun
from qbench.util.json_files import apply_default_permissions

ARTEFACT = "weights.safetensors"
NUMBERS = ("scale", "offset", "decode_scale", "decode_offset")


@dataclass(frozen=True)
class Artefact:
    """A written artefact and what it holds."""

    path: Path
    sha256: str
    parameters: int
    quantized: int
    bits: int
    """Bits of the quantized weights, their scales and offsets included."""
    payload: int
    """Bytes that their codes, scales and offsets take in the file."""

    @property
    def bits_per_weight(self) -> float:
        return self.bits / self.quantized if self.quantized else 32.0

    @property
    def size(self) -> int:
        return self.path.stat().st_size


@torch.no_grad()
def export(run: TrainingRun, folder: Path) -> Artefact:
    """Pack the model as it would ship."""
    tensors = {name: tensor.detach().cpu() for name, tensor in run.model.state_dict().items()}
    parameters, quantized, bits, payload = sum(p.numel() for p in run.model.parameters()), 0, 0, 0
    weights, inputs = {}, {}
    for site, layer, grid in run.network.grids():
        name, matrix = f"{site}.weight", layer.matrix()
        rows, columns = matrix.shape
        weights[name] = {
            "shape": [rows, columns],
            "full_shape": list(layer.weight.shape),
            "granularity": grid.grouping.name,
            "block": grid.grouping.block,
            **_levels(grid.levels),
        }
        del tensors[name]
        codes = pack(grid.codes(matrix).cpu().numpy(), grid.levels.bits)
        scale, offset = grid.decoding()
        packed = {"codes": torch.from_numpy(codes), "scale": scale.float().cpu()} | (
            {} if offset is None else {"offset": offset.float().cpu()}
        )
        tensors |= {f"{name}.{kind}": tensor for kind, tensor in packed.items()}
        payload += sum(tensor.nbytes for tensor in packed.values())
        quantized += matrix.numel()
        bits += grid.bits(matrix.numel())
    for layer_name, quantizer in run.inputs.items():
        grid = quantizer.grid(torch.zeros(1, 1, device=quantizer.key.device))
        inputs[layer_name] = {"granularity": grid.grouping.name, **_levels(grid.levels)}
        tensors |= {
            f"{layer_name}{INPUT}.{kind}": t.float().cpu()
            for kind in NUMBERS
            if (t := getattr(grid, kind)) is not None
        }
    header = {"artefact_version": 1, "weights": weights, "inputs": inputs}
    folder.mkdir(exist_ok=True)
    path = folder / ARTEFACT
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        path,
        metadata={"qbench": json.dumps(header, sort_keys=True)},
    )
    apply_default_permissions(path)
    return Artefact(
        path, hashlib.sha256(path.read_bytes()).hexdigest(), parameters, quantized, bits, payload
    )


def _levels(levels: Levels) -> dict[str, object]:
    return {
        "bits": levels.bits,
        "low": levels.low,
        "high": levels.high,
        "codebook": list(levels.codebook),
    }


def load_into_model(path: Path, model: nn.Module) -> dict[str, NDArray[Any]]:
    """Load an artefact into a model: decoded weights, and inputs rounded by the grids of the header. Returns the decoded tensors."""
    arrays, header = decode(path)
    device = next(model.parameters()).device
    snaps = {}
    for layer, entry in header["inputs"].items():
        numbers = {kind: arrays.pop(f"{layer}{INPUT}.{kind}", None) for kind in NUMBERS}
        tensors = {
            kind: None if a is None else torch.from_numpy(a).to(device)
            for kind, a in numbers.items()
        }
        levels = Levels(entry["bits"], entry["low"], entry["high"], tuple(entry["codebook"]))
        snaps[layer] = Grid(levels, Granularity.named(entry["granularity"]), **tensors).snap  # type: ignore[arg-type]
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    for layer, snap in snaps.items():
        module = model.get_submodule(layer)
        assert isinstance(module, QuantLayer)
        module.set_input_quantizer(snap)
    return arrays
