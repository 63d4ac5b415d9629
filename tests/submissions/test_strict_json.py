"""JSON is refused if it is invalid or ambiguous, or does not match its schema."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qbench.submissions import strict_json
from qbench.submissions.strict_json import SubmissionError
from tests.bundles import read_bundle_files


@pytest.mark.parametrize(
    "text",
    [
        "NaN", "Infinity", "-Infinity", '{"a": 1e999}', '{"a": -1e400}', "[" * 100_000,
        '{"a":' * 50_000, "1" * 5000, "9" * 299 + "e99", "9" * 199 + "e110", '{"a": 1, "a": 2}',
        '"\\ud800"', '{"\\udc00": 1}', "", "{", "nul",
        "\ufeff{}", "[1,]", "{'a': 1}", "01", '"\x01"',
    ],
)  # fmt: skip
def test_invalid_and_ambiguous_json_is_refused(text: str) -> None:
    with pytest.raises(SubmissionError) as refusal:
        strict_json.parse_json(text.encode("utf-8", "surrogatepass"), "file")
    assert len(str(refusal.value)) < 200


def test_json_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(SubmissionError):
        strict_json.parse_json(b'"\xff"', "file")
    with pytest.raises(SubmissionError):
        strict_json.parse_json('{"a": 1}'.encode("utf-16"), "file")


def test_valid_json_is_parsed_to_its_value() -> None:
    for value in ({"a": [1, 2.5, None, True, "é \U0001f600"]}, 1e-300, 2**53, -0.0, "1e999"):
        assert strict_json.parse_json(json.dumps(value).encode(), "file") == value
    assert strict_json.parse_json_lines(b'{"a": 1}\n{"a": 2}\n', "file") == [{"a": 1}, {"a": 2}]
    with pytest.raises(SubmissionError, match="the last line is cut short"):
        strict_json.parse_json_lines(b'{"a": 1}\n{"a": ', "file")


def test_another_validator_agrees_on_our_schemas(valid_bundle: bytes) -> None:
    """The schemas must mean the same to every implementation of JSON Schema."""
    jsonschema = pytest.importorskip("jsonschema")
    _, files = read_bundle_files(valid_bundle)
    own_files = next(iter(files.values()))
    for name in ("spec", "env", "result"):
        schema, value = strict_json.read_schema(name), json.loads(own_files[f"{name}.json"])
        other_validator = jsonschema.Draft7Validator(schema)
        jsonschema.Draft7Validator.check_schema(schema)
        for changed in make_variants(value):
            try:
                strict_json.require_schema(changed, name, "file")
                is_accepted = True
            except SubmissionError:
                is_accepted = False
            assert is_accepted == other_validator.is_valid(changed), changed
        assert other_validator.is_valid(value)


def make_variants(value: dict[str, object]) -> list[object]:
    """Return other values, and the object with each entry replaced, removed or varied in turn."""
    others: list[object] = [None, True, -1, 1.5, 2**70, "", "x" * 5000, [], {}, [None], {"x": 1}]
    variants: list[object] = [*others, {**value, "more": 1}]
    for name, inner in value.items():
        variants += [{**value, name: other} for other in others]
        variants.append({key: entry for key, entry in value.items() if key != name})
        if isinstance(inner, dict):
            variants += [{**value, name: variant} for variant in make_variants(inner)]
    return variants


def test_the_env_schema_describes_what_qbench_writes() -> None:
    """If the environment had a field that the schema lacks, no new run could be submitted."""
    # In a process of its own, whose environment no other test has changed.
    code = (
        "from qbench.runs.environment import collect_environment\n"
        "from qbench.submissions.strict_json import require_schema\n"
        "more = {'device': 'cpu', 'device_name': 'cpu', 'threads': 1, 'accumulate': 1}\n"
        "require_schema({**collect_environment(), **more, 'compiled': False}, 'env', 'env')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
