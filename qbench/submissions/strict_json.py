"""JSON from an untrusted source, with one meaning and exactly the shape that a schema describes.

Before anything else looks at the data, these are refused: bytes that are not UTF-8, constants and
numbers that are not finite, numbers of hundreds of digits, a name that occurs twice in one object,
half of a surrogate pair, and nesting that exhausts the parser.

The schemas in `qbench/schemas` are JSON Schema (draft 7), checked by fastjsonschema: pure Python
without dependencies, which compiles a schema to a function. A submission of ten thousand runs has
a million lines of curves; fastjsonschema takes 0.05 ms for a result where jsonschema takes 0.7 ms
and needs a compiled extension. The tests compare the two.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from qbench.errors import QbenchError
from qbench.util.text import clean_line


class SubmissionError(QbenchError):
    """A file is not a bundle, or parts of it disagree.

    The message is one line without control characters, although it may quote the file.
    """

    code = 5

    def __init__(self, message: str) -> None:
        super().__init__(clean_line(message, 400))


Validator = Callable[[Any], Any]
# No honest number has 200 digits. Refusing them bounds the parser's work, and leaves the exponent
# as the only way to write a number that is not finite.
_LONG_NUMBER = re.compile(rb"[0-9]{200}")
# Only an exponent of three digits can overflow a double: 199 digits and an exponent of 99 cannot.
_LARGE_EXPONENT = re.compile(rb"[eE][+]?[0-9]{3}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes, where: str) -> Any:
    """Return the parsed value; `where` names the file in the message of a refusal."""
    # This must come before the parser sees the digits.
    if _LONG_NUMBER.search(data):
        raise SubmissionError(f"{where}: a number has 200 digits or more")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_build_object, parse_constant=_reject_constant
        )
        if _SURROGATE.search(data):
            # A lone surrogate is legal in JSON but cannot be encoded: this raises a ValueError.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _AmbiguousJsonError as error:
        raise SubmissionError(f"{where}: {error}") from None
    except (ValueError, RecursionError):
        raise SubmissionError(f"{where}: not valid JSON") from None
    if _LARGE_EXPONENT.search(data):
        _require_finite(value, where)
    return value


def parse_json_lines(data: bytes, where: str) -> list[Any]:
    """Return the values of a file that has one JSON value on each line."""
    if data and not data.endswith(b"\n"):
        raise SubmissionError(f"{where}: the last line is cut short")
    if b"\r" in data:
        raise SubmissionError(f"{where}: a carriage return is not allowed")
    lines = data.split(b"\n")[:-1]
    return [parse_json(line, f"{where}: line {n}") for n, line in enumerate(lines, 1)]


def require_schema(value: Any, schema: str, where: str) -> None:
    """Refuse a value that does not have the shape of a schema in `qbench/schemas`."""
    from fastjsonschema import JsonSchemaValueException

    try:
        compile_validator(schema)(value)
    except JsonSchemaValueException as error:
        # The library calls the value "data"; "data.scores.packed must be…" becomes a path in it.
        message = error.message.removeprefix("data").lstrip(".")
        raise SubmissionError(f"{where}: {message}") from None


@cache
def compile_validator(schema: str) -> Validator:
    """Return the function that checks a value against a schema."""
    from fastjsonschema import compile as compile_schema

    # Defaults are not filled in: what is checked must stay what the file says.
    return compile_schema(read_schema(schema), use_default=False)


def read_schema(name: str) -> dict[str, Any]:
    """Return a schema by its name: spec, env, result, curve, manifest or artefact."""
    text = (files("qbench") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


class _AmbiguousJsonError(ValueError):
    """Python's parser accepts this JSON, but another parser would read it differently or fail."""


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _AmbiguousJsonError("an object contains the same name twice")
    return value


def _reject_constant(word: str) -> Any:
    raise _AmbiguousJsonError(f"{word} is not a JSON number")


def _require_finite(value: Any, where: str) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _require_finite(item, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise SubmissionError(f"{where}: a number is too large for a double")
