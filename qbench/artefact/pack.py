"""The packed artefact of a run: writing it, and loading it into a model.

`export_artefact` writes packed codes and scales. `load_into_model` reads them with the independent
decoder. A run is scored on the loaded model, so that a score can use no number that is not in the
file.
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
from torch import Tensor, nn

from qbench.artefact.decoder import decode, pack_codes
from qbench.quant.formats import Granularity
from qbench.quant.grid import Grid
from qbench.quant.layers import QuantLayer
from qbench.quant.levels import Levels
from qbench.quant.site import INPUT
from qbench.training.run import TrainingRun
from qbench.util.json_files import apply_default_permissions

ARTEFACT = "weights.safetensors"
GRID_NUMBERS = ("scale", "offset", "decode_scale", "decode_offset")


@dataclass(frozen=True)
class Artefact:
    """A written artefact and what it contains."""

    path: Path
    sha256: str
    parameters: int
    quantized: int
    """Parameters that are quantized."""
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
def export_artefact(run: TrainingRun, folder: Path) -> Artefact:
    """Pack the model as it would ship, and write it into a folder."""
    # The CPU copies are packed by NumPy. Every parameter that is not quantized is kept whole.
    tensors = {name: tensor.detach().cpu() for name, tensor in run.model.state_dict().items()}
    quantized, bits, payload = 0, 0, 0
    weights, inputs = {}, {}
    for site, layer, grid in run.network.grids():
        name, matrix = f"{site}.weight", layer.matrix()
        weights[name] = {
            "shape": list(matrix.shape),
            "full_shape": list(layer.weight.shape),
            "granularity": grid.grouping.name,
            "block": grid.grouping.block,
            **_describe_levels(grid.levels),
        }
        del tensors[name]
        packed = _pack_weight(matrix, grid)
        tensors |= {f"{name}.{kind}": tensor for kind, tensor in packed.items()}
        payload += sum(tensor.nbytes for tensor in packed.values())
        quantized += matrix.numel()
        # Counted by the grid; the audit compares it with the bytes of the file.
        bits += grid.bits(matrix.numel())
    for layer_name, quantizer in run.inputs.items():
        # The grid of an input does not depend on the input: its range was calibrated.
        grid = quantizer.grid(torch.zeros(1, 1, device=quantizer.key.device))
        inputs[layer_name] = {"granularity": grid.grouping.name, **_describe_levels(grid.levels)}
        for kind in GRID_NUMBERS:
            if (number := getattr(grid, kind)) is not None:
                tensors[f"{layer_name}{INPUT}.{kind}"] = number.float().cpu()
    path = _write_file(folder, tensors, weights, inputs)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    parameters = sum(p.numel() for p in run.model.parameters())
    return Artefact(path, sha256, parameters, quantized, bits, payload)


def load_into_model(path: Path, model: nn.Module) -> dict[str, NDArray[Any]]:
    """Load an artefact into a model, and return the decoded tensors.

    Weights are the decoded ones, and quantized inputs are rounded by the grids of the header.
    """
    arrays, header = decode(path)
    device = next(model.parameters()).device
    grids = {}
    for layer, entry in header["inputs"].items():
        numbers = {}
        for kind in GRID_NUMBERS:
            array = arrays.pop(f"{layer}{INPUT}.{kind}", None)
            numbers[kind] = None if array is None else torch.from_numpy(array).to(device)
        levels = Levels(entry["bits"], entry["low"], entry["high"], tuple(entry["codebook"]))
        grouping = Granularity.named(entry["granularity"])
        grids[layer] = Grid(levels, grouping, **numbers)  # type: ignore[arg-type]
    # What is left are the tensors of the model, and strict loading refuses any other.
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    for layer, grid in grids.items():
        module = model.get_submodule(layer)
        assert isinstance(module, QuantLayer)
        module.set_input_quantizer(grid.snap)
    return arrays


def _pack_weight(matrix: Tensor, grid: Grid) -> dict[str, Tensor]:
    """Return the packed codes of a weight, and the float32 numbers of its groups."""
    codes = pack_codes(grid.codes(matrix).cpu().numpy(), grid.levels.bits)
    scale, offset = grid.decoding()
    packed = {"codes": torch.from_numpy(codes), "scale": scale.float().cpu()}
    if offset is not None:
        packed["offset"] = offset.float().cpu()
    return packed


def _write_file(
    folder: Path, tensors: dict[str, Tensor], weights: dict[str, Any], inputs: dict[str, Any]
) -> Path:
    """Write tensors and header as one safetensors file."""
    header = {"artefact_version": 1, "weights": weights, "inputs": inputs}
    folder.mkdir(exist_ok=True)
    path = folder / ARTEFACT
    # Sorted keys, so that the same model always gives the same bytes.
    metadata = {"qbench": json.dumps(header, sort_keys=True)}
    save_file({name: x.contiguous() for name, x in tensors.items()}, path, metadata=metadata)
    # save_file ignores the umask.
    apply_default_permissions(path)
    return path


def _describe_levels(levels: Levels) -> dict[str, object]:
    """Return the levels as the header holds them."""
    return {
        "bits": levels.bits,
        "low": levels.low,
        "high": levels.high,
        "codebook": list(levels.codebook),
    }
