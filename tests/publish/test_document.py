"""The document: it follows its schema, traces every number, and fits into the page."""

from __future__ import annotations

import base64
import json
from typing import Any

import pandas as pd
import pytest
from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError

from qbench.publish.document import BoardDescription, build_document, make_cell_id
from qbench.publish.embed import encode_page_data, pack_document
from qbench.publish.site import read_site_schema
from tests.synthetic_runs import make_frame, make_runs
from tests.synthetic_sites import (
    ENV,
    build_board_and_summary,
    make_hostile_runs,
    make_ranked_runs,
    make_site_files,
    make_varied_runs,
)

VALIDATOR = Draft7Validator(json.loads(read_site_schema()))


def make_document(rows: pd.DataFrame) -> dict[str, Any]:
    board, summary = build_board_and_summary(rows)
    return build_document(BoardDescription("made", "Made up"), board, rows, summary)


def list_cells(doc: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for s in doc["sections"] for row in s["rows"] for cell in row["cells"]]


def find_cell(doc: dict[str, Any], entrant: str, fmt: str) -> dict[str, Any]:
    (row,) = (row for row in doc["sections"][0]["rows"] if row["entrant"] == entrant)
    (cell,) = (cell for cell in row["cells"] if cell["format"] == fmt)
    return dict(cell)


def test_the_sweep_file_is_published_without_paths_of_the_machine() -> None:
    rows = make_frame(make_runs("fp", None, [0.1, 0.2, 0.15], **ENV))
    board, summary = build_board_and_summary(rows)
    sweep = (
        'board = "made"\n\n[[task]]\nname = "text"\n'
        'corpus = "path:/home/ada/my texts/c.txt" # see https://example.org/a/b\n'
    )
    doc = build_document(BoardDescription("made", sweep=sweep), board, rows, summary)
    assert doc["sweep"] == sweep.replace("/home/ada/my texts/", "").removesuffix("\n")


# ---- schema ----


@pytest.mark.parametrize(
    "rows",
    [
        make_ranked_runs(seeds=10),
        make_ranked_runs(seeds=1),
        make_varied_runs(),
        make_hostile_runs(),
    ],
    ids=["ranked", "one seed", "varied", "hostile"],
)
def test_the_document_follows_its_schema(rows: pd.DataFrame) -> None:
    VALIDATOR.validate(json.loads(make_site_files(rows)["board.json"]))


@pytest.mark.parametrize(
    "place",
    [
        "",
        "sections/0",
        "sections/0/rows/0",
        "sections/0/rows/0/cells/0",
        "sections/0/rows/0/cells/0/runs",
        "environments/0",
        "settings/0",
    ],
)
def test_the_schema_allows_no_unknown_field(place: str) -> None:
    doc = make_document(make_varied_runs())
    part: Any = doc
    for name in filter(None, place.split("/")):
        part = part[int(name) if name.isdigit() else name]
    part["surprise"] = 1
    with pytest.raises(ValidationError, match="surprise"):
        VALIDATOR.validate(doc)


# ---- contents ----


def test_every_run_has_its_score_seed_setting_and_machine() -> None:
    rows = make_ranked_runs(seeds=10)
    doc = make_document(rows)
    published = {}
    for cell in list_cells(doc):
        part = cell["runs"]
        assert doc["settings"][cell["setting"]]["recipe"] == {"lr": 0.003, "steps": 300}
        commits = {doc["environments"][place]["commit_id"] for place in part["environment"]}
        assert commits == {"c" * 40}
        for key, seed, score in zip(part["key"], part["seed"], part["score"], strict=True):
            published[key] = seed, score
    assert published == {row.key: (row.seed, row.packed) for row in rows.itertuples()}


def test_of_several_attempts_the_one_that_the_board_counts_is_shown() -> None:
    rows = make_varied_runs()
    first = rows[rows["method"] == "ste"].iloc[0].to_dict()
    merged = pd.DataFrame([{**first, "attempt": 2, "packed": 0.7, "trust": "claimed"}])
    both = pd.concat([rows, merged], ignore_index=True)
    own = find_cell(make_document(both), "ste", first["weights_format"])["runs"]
    assert own["score"][0] == first["packed"] and own["trust"] == ["own"] * 3
    without = pd.concat([rows[rows["key"] != first["key"]], merged], ignore_index=True)
    claimed = find_cell(make_document(without), "ste", first["weights_format"])["runs"]
    assert claimed["score"][0] == 0.7 and claimed["trust"] == ["claimed", "own", "own"]


def test_links_to_cells_stay_the_same_when_entrants_join() -> None:
    few = make_document(make_ranked_runs(seeds=3, methods=("rtn", "ste")))
    many = make_document(make_ranked_runs(seeds=3, methods=("rtn", "ste", "lsq", "gdnsq")))
    few_ids, many_ids = ({cell["id"] for cell in list_cells(doc)} for doc in (few, many))
    assert few_ids < many_ids
    assert len(many_ids) == len(list_cells(many))


def test_names_that_look_alike_have_different_links() -> None:
    board, _ = build_board_and_summary(make_ranked_runs(seeds=3))
    section, row = board.sections[0], board.sections[0].rows[0]
    assert make_cell_id(section, row, "int 2") != make_cell_id(section, row, "int-2")


# ---- the data inside the page ----


def test_the_data_cannot_leave_its_element() -> None:
    doc = make_document(make_hostile_runs())
    written = encode_page_data(doc)
    assert not set(written) & set("<>&\u2028\u2029")
    assert json.loads(written) == pack_document(doc)


def test_a_page_of_a_thousand_runs_is_smaller_than_300_kilobytes() -> None:
    rows = make_ranked_runs(seeds=10, tasks=[f"task{n}" for n in range(7)])
    assert len(rows) == 1050 and 100_000 < len(make_site_files(rows)["index.html"]) < 300_000


def test_the_page_has_whole_keys_and_scores_to_nine_digits() -> None:
    rows = make_ranked_runs(seeds=10)
    doc = make_document(rows)
    embedded = list_cells(json.loads(encode_page_data(doc)))
    scores_by_key = {}
    for packed, cell in zip(embedded, list_cells(doc), strict=True):
        _, keys, scores, _ = packed["runs"]
        digits = base64.b64decode(keys).hex()
        unpacked = [digits[32 * n : 32 * n + 32] for n in range(len(scores))]
        assert unpacked == cell["runs"]["key"]
        scores_by_key |= dict(zip(unpacked, scores, strict=True))
    assert scores_by_key == {
        row.key: pytest.approx(row.packed, rel=1e-8, abs=0) for row in rows.itertuples()
    }
