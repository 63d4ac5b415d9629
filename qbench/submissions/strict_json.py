"""JSON from a stranger: parsed under caps, with one meaning, and of exactly the shape that `qbench/schemas` describes.

Refused before anything looks at it: what is not UTF-8, constants and numbers that are not finite, endless numbers, a name twice in one
object, half a surrogate pair, nesting that exhausts the parser.

The schemas are JSON Schema (draft 7), checked by fastjsonschema: pure Python without dependencies, which turns a schema into a function. A
submission of ten thousand runs has a million lines of curves; it takes 0.05 ms for a result where jsonschema takes 0.7 ms and needs a compiled
extension. The tests hold the two against each other.
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
from qbench.util.text import plain


class Refused(QbenchError):
    """Not a bundle, or not one whose parts agree. One line, free of whatever was in it."""

    code = 5

    def __init__(self, message: str) -> None:
        super().__init__(plain(message, 400))


Check = Callable[[Any], Any]
_ENDLESS = re.compile(rb"[0-9]{200}")
_HUGE = re.compile(rb"[eE][+]?[0-9]{3}")
"""Only a number with such an exponent can overflow a double: 199 digits and an exponent of 99 do not."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(data: bytes, where: str) -> Any:
    """The value, or why it is none."""
    if _ENDLESS.search(data):
        raise Refused(f"{where}: a number without end")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant
        )
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where}: {error if isinstance(error, _Odd) else 'not JSON'}") from None
    if _HUGE.search(data):
        _all_finite(value, where)
    return value


def lines(data: bytes, where: str) -> list[Any]:
    """A value a line."""
    if data and not data.endswith(b"\n"):
        raise Refused(f"{where}: its last line is cut short")
    if b"\r" in data:
        raise Refused(f"{where}: not JSON")
    return [loads(line, f"{where}: line {n}") for n, line in enumerate(data.split(b"\n")[:-1], 1)]


def conforms(value: Any, schema: str, where: str) -> None:
    """Refuse what is not of a schema's shape."""
    from fastjsonschema import JsonSchemaValueException

    try:
        check(schema)(value)
    except JsonSchemaValueException as error:
        raise Refused(f"{where}: {error.message.removeprefix('data').lstrip('.')}") from None


@cache
def check(schema: str) -> Check:
    from fastjsonschema import compile as compile_schema

    return compile_schema(read_schema(schema), use_default=False)


def read_schema(name: str) -> dict[str, Any]:
    """A schema of `qbench/schemas` by name: spec, env, result, curve, manifest, artefact."""
    text = (files("qbench") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


class _Odd(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Odd("a name twice in one object")
    return found


def _constant(word: str) -> Any:
    raise _Odd(f"{word} is not a number that JSON has")


def _all_finite(value: Any, where: str) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _all_finite(item, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise Refused(f"{where}: a number too large for a double")
