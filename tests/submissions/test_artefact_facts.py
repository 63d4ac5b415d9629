"""An artefact is refused unless it holds exactly what its header says."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from qbench.submissions.artefact_facts import read_artefact_facts
from qbench.submissions.strict_json import SubmissionError
from tests.bundles import find_run_of_method, read_bundle_files
from tests.submissions.verified_bundles import ArtefactChange, change_artefact


def wide_weight(header: dict[str, Any]) -> dict[str, Any]:
    """Return the header's entry for the weight of the layer `wide`, which is int2."""
    entry: dict[str, Any] = header["weights"]["wide.weight"]
    return entry


ARTEFACT_CHANGES: dict[str, ArtefactChange] = {
    "more levels than the bits can encode": lambda h, t: wide_weight(h).update(high=9.0),
    "no levels": lambda h, t: wide_weight(h).update(low=5.0),
    "levels that are not one apart": lambda h, t: wide_weight(h).update(low=-1.3),
    "an unsorted codebook": lambda h, t: wide_weight(h).update(codebook=[1.0, 0.0]),
    "another shape": lambda h, t: wide_weight(h).update(shape=[64, 33]),
    "a shape of terabytes": lambda h, t: wide_weight(h).update(
        shape=[2**40, 2**10], full_shape=[2**40, 2**10]
    ),
    "another full shape": lambda h, t: wide_weight(h).update(full_shape=[64, 33]),
    "other bits": lambda h, t: wide_weight(h).update(bits=3),
    "another granularity": lambda h, t: wide_weight(h).update(granularity="tensor"),
    "a block that does not fit": lambda h, t: wide_weight(h).update(granularity="block-5", block=5),
    "a block of size zero": lambda h, t: wide_weight(h).update(granularity="block-0", block=0),
    "a block size with granularity channel": lambda h, t: wide_weight(h).update(block=4),
    "no scale": lambda h, t: t.__delitem__("wide.weight.scale"),
    "no codes": lambda h, t: t.__delitem__("wide.weight.codes"),
    "one scale too many": lambda h, t: t.update(
        {"wide.weight.scale": np.ones((65, 1), np.float32)}
    ),
    "a scale that is not finite": lambda h, t: t["wide.weight.scale"].__setitem__(0, math.nan),
    "a scale of type float64": lambda h, t: convert(t, "wide.weight.scale", np.float64),
    "codes of type float32": lambda h, t: convert(t, "wide.weight.codes", np.float32),
    "too few codes": lambda h, t: t.update({"wide.weight.codes": t["wide.weight.codes"][:-1]}),
    "codes beyond the levels": lambda h, t: t["wide.weight.codes"].__setitem__(0, 255),
    "the weight both packed and unpacked": lambda h, t: t.update(
        {"wide.weight": np.zeros((64, 32), np.float32)}
    ),
    "codes of an unlisted weight": lambda h, t: t.update({"ghost.codes": np.zeros(3, np.uint8)}),
    "the scale of an unlisted input": lambda h, t: t.update(
        {"ghost.input.scale": np.ones((1, 1), np.float32)}
    ),
    "an input without a scale": lambda h, t: h.update(
        inputs={
            "wide": {
                name: value
                for name, value in wide_weight(h).items()
                if name not in ("shape", "full_shape", "block")
            }
        }
    ),
    "an entry that is not a weight": lambda h, t: h["weights"].update(wide=wide_weight(h)),
    "another version": lambda h, t: h.update(artefact_version=2),
    "an unknown field": lambda h, t: h.update(more=1),
    "an unknown field of a weight": lambda h, t: wide_weight(h).update(more=1),
    "no weights": lambda h, t: h.update(weights={}),
}


def convert(tensors: dict[str, Any], name: str, dtype: Any) -> None:
    tensors[name] = tensors[name].astype(dtype)


@pytest.mark.parametrize("change", ARTEFACT_CHANGES)
def test_an_artefact_that_contradicts_its_header_is_refused(
    valid_bundle: bytes, change: str
) -> None:
    files = read_bundle_files(valid_bundle)[1]
    artefact = files[find_run_of_method(files)]["weights.safetensors"]
    assert read_artefact_facts(artefact, "a").levels == 3
    with pytest.raises(SubmissionError):
        read_artefact_facts(change_artefact(artefact, ARTEFACT_CHANGES[change]), "a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        b"\xff" * 8,
        b"\xff" * 100,
        (2**63).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"null",
        (100).to_bytes(8, "little") + b"[" * 100,
        (20).to_bytes(8, "little") + b'{"__metadata__":null}',
    ],
)
def test_a_file_that_is_not_a_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(SubmissionError):
        read_artefact_facts(data, "a")


def test_the_facts_of_an_artefact_are_those_that_training_recorded(valid_bundle: bytes) -> None:
    for own_files in read_bundle_files(valid_bundle)[1].values():
        facts = read_artefact_facts(own_files["weights.safetensors"], "a")
        size = json.loads(own_files["result.json"])["size"]
        assert size["quantized_parameters"] == facts.quantized_parameters
        assert size["bits_per_weight"] == facts.bits_per_weight
        assert size["levels"] == facts.levels
        assert size["artefact_bytes"] == facts.file_bytes
