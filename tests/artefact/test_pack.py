"""An artefact is really packed, and decodes without torch to the quantized weights, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qbench.artefact.decoder import CHUNK, decode, pack_codes, unpack_codes
from qbench.artefact.pack import export_artefact
from qbench.checks.method_kit import Kit


@given(st.integers(1, 8), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_packing_round_trips_and_wastes_nothing(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, count, dtype=np.uint8)
    packed = pack_codes(codes, bits)
    assert len(packed) == -(-count * bits // 8)
    assert np.array_equal(unpack_codes(packed, bits, count), codes)


def test_packing_across_chunks() -> None:
    codes = np.random.default_rng(0).integers(0, 8, CHUNK + 12345, dtype=np.uint8)
    assert np.array_equal(unpack_codes(pack_codes(codes, 3), 3, len(codes)), codes)


def test_the_lowest_bit_comes_first() -> None:
    assert pack_codes(np.array([1, 2, 3, 15], np.uint8), 4).tolist() == [0x21, 0xF3]


@pytest.mark.parametrize("weights", ["int1", "int2", "int3", "int4", "int5", "int8", "fp4"])
@pytest.mark.parametrize("method", ["ste", "rtn"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block-32"])
def test_decoded_weights_are_the_quantized_weights_bit_for_bit(
    weights: str, method: str, granularity: str, tmp_path: Path
) -> None:
    kit = Kit(method, tmp_path)
    run = kit.attach(kit.make_config(weights, granularity))
    artefact = export_artefact(run, tmp_path / "export")
    decoded, header = decode(artefact.path)
    with run.network.as_shipped():
        for name, layer in run.problem.layers().items():
            assert np.array_equal(decoded[f"{name}.weight"], layer.quantized_weight.numpy())
    assert set(decoded) == set(run.model.state_dict()) and set(header["weights"]) == {
        f"{n}.weight" for n in run.problem.layers()
    }
    groups = {"tensor": 3, "channel": 32 + 64 + 32, "block-32": 32 + 64 + 64}[granularity]
    bits = 4 if weights == "fp4" else int(weights[3:])
    assert artefact.bits == artefact.quantized * bits + 32 * groups == 8 * artefact.payload


def test_the_decoder_needs_numpy_and_safetensors_alone(tmp_path: Path) -> None:
    kit = Kit("rtn", tmp_path)
    run = kit.attach(kit.make_config("int3"))
    artefact = export_artefact(run, tmp_path / "export")
    program = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('torch', 'scipy', 'pandas', 'duckdb'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from qbench.artefact.decoder import decode\n"
        f"tensors, header = decode({str(artefact.path)!r})\n"
        "hidden = tensors['hidden.weight']\n"
        "print(float(hidden.astype('float64').sum()), len(set(hidden[0])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    total, distinct = done.stdout.split()
    with run.network.as_shipped():
        hidden = run.problem.layers()["hidden"].quantized_weight
        assert float(total) == float(hidden.double().sum()) and int(distinct) == len(
            hidden[0].unique()
        )


def test_a_model_loaded_from_the_file_computes_the_same(tmp_path: Path) -> None:
    """This includes quantized inputs, whose grids come from the header."""
    kit = Kit("ste", tmp_path)
    result, folder = kit.run(kit.make_config("int4", activations="int4"))
    assert result["state"] == "ok", result["message"]
    checks = {c["name"]: c for c in result["audit"]["checks"]}
    assert checks["simulated = packed"]["passed"] and checks["coverage"]["detail"] == "6 of 6 sites"
    _, header = decode(folder / "export" / "weights.safetensors")
    assert header["inputs"]["wide"] == {
        "bits": 4,
        "low": 0,
        "high": 15,
        "codebook": [],
        "granularity": "tensor",
    }


def test_the_bytes_of_an_artefact_are_reproducible(tmp_path: Path) -> None:
    kit = Kit("rtn", tmp_path)
    run = kit.attach(kit.make_config("int4"))
    before = export_artefact(run, tmp_path / "a").sha256
    assert export_artefact(run, tmp_path / "b").sha256 == before
    with torch.no_grad():
        next(iter(run.problem.layers().values())).weight.mul_(1.5)
    assert export_artefact(run, tmp_path / "c").sha256 != before
