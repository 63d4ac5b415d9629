"""Run configurations have one spelling, and so one key."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench.errors import QbenchError, UsageError
from qbench.runs.config import Quantization, Recipe, RunConfig, canonical_json
from qbench.util.checked_values import check_type

CONFIG = RunConfig(
    board_version=1,
    method="ste",
    method_version=1,
    method_params={"scale": "absmax", "clip_gradient": False},
    task="linreg",
    task_version=1,
    task_params={"alpha": 1.1},
    data="abc",
    size="xs",
    weights=Quantization("int4", "channel"),
    activations=None,
    recipe=Recipe(),
    start="scratch",
    seed=3,
)

GOLDEN = (
    '{"activations":null,"base":null,"board_version":1,"data":"abc","key_version":1,'
    '"method":"ste","method_params":{"clip_gradient":false,"scale":"absmax"},"method_version":1,'
    '"recipe":{"batch":64,"beta1":0.9,"beta2":0.95,"clip":1,"decay":0.2,"floor":0,"lr":0.003,'
    '"momentum":0.9,"optimizer":"adamw","precision":"float32","schedule":"cosine","steps":300,'
    '"warmup":0.1,"weight_decay":0},"seed":3,"size":"xs","start":"scratch","task":"linreg",'
    '"task_params":{"alpha":1.1},"task_version":1,'
    '"weights":{"format":"int4","granularity":"channel"}}'
)


def test_the_bytes_of_a_key_are_pinned() -> None:
    """Other bytes would mean that no stored run is found: restore them, or raise KEY_VERSION."""
    assert canonical_json(CONFIG.to_json()) == GOLDEN
    assert CONFIG.key == "934fa8b6dcf5f2129413295def1296eb"


def test_a_config_survives_a_round_trip_through_json() -> None:
    assert RunConfig.from_json(json.loads(json.dumps(CONFIG.to_json()))) == CONFIG
    with pytest.raises(QbenchError, match="key version 99"):
        RunConfig.from_json({**CONFIG.to_json(), "key_version": 99})


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(RunConfig)])
def test_every_field_changes_the_key(field: str) -> None:
    other: dict[str, Any] = {
        "board_version": 2,
        "method": "rtn",
        "method_version": 2,
        "method_params": {"scale": "mse"},
        "task": "digits",
        "task_version": 2,
        "task_params": {"alpha": 1.5},
        "data": "abd",
        "size": "s",
        "weights": Quantization("int4", "tensor"),
        "activations": Quantization("int8", "tensor"),
        "recipe": Recipe(lr=1e-3),
        "start": "fp:0.5",
        "seed": 4,
        "base": "0" * 32,
    }
    assert dataclasses.replace(CONFIG, **{field: other[field]}).key != CONFIG.key


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_whole_number_has_one_spelling(n: int) -> None:
    if float(n) == n:
        assert canonical_json({"x": n}) == canonical_json({"x": float(n)})


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_digit_of_a_number_is_lost(x: float) -> None:
    assert json.loads(canonical_json([x])) == [x]


def test_negative_zero_is_zero_and_nan_is_refused() -> None:
    assert canonical_json(-0.0) == canonical_json(0) == "0"
    for bad in (float("nan"), float("inf")):
        with pytest.raises(UsageError):
            canonical_json({"x": bad})


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.booleans(), st.integers(-99, 99), st.text(max_size=5)),
        max_size=5,
    )
)
def test_the_order_of_keys_does_not_matter(data: dict[str, Any]) -> None:
    assert canonical_json(dict(reversed(data.items()))) == canonical_json(data)


@pytest.mark.parametrize(
    ("value", "like"),
    [("3", int), (True, int), (1.5, int), ("x", float), (1, bool), (float("nan"), float)],
)
def test_wrong_types_are_refused(value: object, like: type) -> None:
    with pytest.raises(UsageError, match="here"):
        check_type(value, like, "here")


def test_a_whole_number_is_accepted_as_a_float() -> None:
    assert check_type(1, float, "") == 1.0 and isinstance(check_type(1, float, ""), float)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch", 0),
        ("lr", -1.0),
        ("lr", 0.0),
        ("warmup", 1.0),
        ("optimizer", "adamm"),
        ("floor", 2.0),
        ("clip", -1.0),
    ],
)
def test_a_value_out_of_its_domain_is_named(field: str, value: object) -> None:
    assert Recipe().find_problem() is None
    recipe = dataclasses.replace(Recipe(), **{field: value})  # type: ignore[arg-type]
    problem = recipe.find_problem()
    assert problem and field in problem
