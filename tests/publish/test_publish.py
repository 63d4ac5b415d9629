"""The site: the same to the byte, whole or not at all, nothing hostile, nothing asked of the network, and a board that is not fit is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError

from qbench.boards.build import build_board
from qbench.errors import QbenchError
from qbench.publish import site_folder
from qbench.publish.admission import admit
from qbench.publish.document import About, cell_id, document
from qbench.publish.embed import SCORE, embedded, packed, rounded
from qbench.publish.latex import latex, to_latex
from qbench.publish.page import breakable
from qbench.publish.site import schema
from qbench.stats.comparisons import paired_test
from qbench.store.database import Store
from tests.made_runs import config, make, roster
from tests.made_sites import ENV, board, files, one_of_everything, ranked
from tests.synthetic_runs import DEFAULTS, frame, runs, unborn
from tests.terminal.test_board import HOSTILE

VALIDATOR = Draft7Validator(json.loads(schema()))
NASTY = (
    "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "<!--", "]]>", "\x1b[31mred\x1b]8;;http://x\x07", "a\u202eb\u2066c", "\u2028\u2029", '"><svg onload=alert(3)>',
    "=HYPERLINK(1)", "{{ 7*7 }}", "&lt;b&gt;", "javascript:alert(4)", "العربية", "x" * 10_000, "' or 1=1 --", "\\input{/etc/passwd}", "a|b`c$d",
)  # fmt: skip


def doc_of(rows: pd.DataFrame, **more: Any) -> dict[str, Any]:
    built, summary = board(rows, **more)
    return document(About("made", "Made up"), built, rows, summary)


def test_the_sweep_file_is_published_without_the_places_of_a_machine() -> None:
    built, summary = board(frame(runs("fp", None, [0.1, 0.2, 0.15], **ENV)))
    text = 'board = "made"\n\n[[task]]\nname = "text"\ncorpus = "path:/home/ada/my texts/c.txt" # see https://example.org/a/b\n'
    found = document(
        About("made", sweep=text), built, frame(runs("fp", None, [0.1, 0.2, 0.15], **ENV)), summary
    )["sweep"]
    assert found == text.replace("/home/ada/my texts/", "").removesuffix("\n")


def nasty() -> pd.DataFrame:
    """Every word that a plugin or a submission chooses is one of the nasty ones."""
    rows = [
        *runs("fp", None, [0.1, 0.2, 0.15], **ENV),
        *runs("rtn", "int2", [0.9, 0.8, 0.85], **ENV),
    ]
    for n, word in enumerate(NASTY):
        more = {
            **ENV,
            "label": word,
            "message": word,
            "params": {"p": word},
            "cpu": word,
            "commit_id": word,
            "provenance": "paper",
        }
        rows += runs(f"m{n}{word}", "int2", [0.5, 0.6, 0.55], **more)
    return frame([{**r, "task": NASTY[1], "metric": NASTY[0], "unit": NASTY[7]} for r in rows])


# ---- the same, whole ----


def test_the_site_is_the_same_to_the_byte_whatever_the_order_of_rows() -> None:
    rows = ranked(seeds=10)
    first, second = files(rows), files(rows.sample(frac=1, random_state=3))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_the_sums_are_what_sha256sum_checks(tmp_path: Path) -> None:
    site_folder.place(files(one_of_everything()), tmp_path / "site")
    done = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"],
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(list((tmp_path / "site").iterdir())) - 1


def test_a_site_replaces_a_site_and_nothing_else(tmp_path: Path) -> None:
    out, made = tmp_path / "site", files(one_of_everything())
    (out).mkdir()
    site_folder.place(made, out)
    site_folder.place({**made, "index.html": b"new"}, out)
    assert (out / "index.html").read_bytes() == b"new"
    (out / "CNAME").write_text("example.org")
    with pytest.raises(QbenchError, match="CNAME that qbench publish did not write"):
        site_folder.place(made, out)
    assert [p.name for p in tmp_path.iterdir()] == ["site"]


@pytest.mark.parametrize("there", ["index.html", "board.json"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("{}")
    with pytest.raises(QbenchError, match="did not write"):
        site_folder.place(files(one_of_everything()), tmp_path)
    assert (tmp_path / there).read_text() == "{}" and len(list(tmp_path.iterdir())) == 1


def test_a_site_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    out, made = tmp_path / "site", files(one_of_everything())
    site_folder.place(made, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(OSError, match="too long"):
        site_folder.place({**made, "x" * 300: b""}, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["site"]


# ---- what is refused ----


def admitted(rows: pd.DataFrame) -> None:
    admit("made", build_board(rows, defaults=DEFAULTS), rows)


@pytest.mark.parametrize("control", ["fp", "rtn"])
def test_a_board_without_a_control_is_refused(control: str) -> None:
    rows = ranked(seeds=3)
    with pytest.raises(
        QbenchError,
        match=rf'the control {control} .* is missing; add "{control}" to `methods` in the sweep file and run',
    ) as error:
        admitted(rows[rows["method"] != control])
    assert "\n" not in str(error.value)
    admitted(rows)


def test_a_control_that_never_ran_is_missing_too() -> None:
    rows = one_of_everything()
    planned = frame(
        [
            unborn("rtn", fmt, s, **{**ENV, "effect": None})
            for fmt in ("int2", "int4")
            for s in range(3)
        ]
    )
    built = build_board(rows[rows["method"] != "rtn"], planned=planned, defaults=DEFAULTS)
    with pytest.raises(
        QbenchError, match=r"the control rtn .* has no finished run; `qbench sweep FILE` trains it"
    ):
        admit("made", built, rows)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("method_version", "method ste 1, 2"),
        ("task_version", "task digits 1, 2"),
        ("board_version", "board 1, 2"),
    ],
)
def test_mixed_versions_are_refused_and_listed(column: str, said: str) -> None:
    rows = one_of_everything()
    rows.loc[(rows["method"] == "ste") & (rows["seed"] == 1), column] = 2
    with pytest.raises(QbenchError, match=f"mixes versions, which do not compare: {said};"):
        admitted(rows)


def test_a_board_without_a_finished_run_is_refused() -> None:
    rows = one_of_everything()
    for part in (rows[:0], rows[rows["state"] != "ok"]):
        with pytest.raises(QbenchError, match="no finished run"):
            admit("made", build_board(part, defaults=DEFAULTS), part)


@pytest.mark.parametrize("seeds", [1, 3])
def test_few_seeds_are_published_unranked(seeds: int) -> None:
    rows = ranked(seeds=seeds)
    admitted(rows)
    page = files(rows)["index.html"].decode()
    assert f"Unranked ({seeds} seed" in page and "Unranked: ranks need 10" in page
    assert bool(re.search(r">\d\.\d+ ± \d", page)) == (seeds > 1)


# ---- the document ----


@pytest.mark.parametrize(
    "rows",
    [ranked(seeds=10), ranked(seeds=1), one_of_everything(), nasty()],
    ids=["ranked", "one seed", "everything", "nasty"],
)
def test_the_document_is_what_the_schema_says(rows: pd.DataFrame) -> None:
    VALIDATOR.validate(json.loads(files(rows)["board.json"]))


def test_the_schema_lets_nothing_else_in() -> None:
    for place in (
        "",
        "sections/0",
        "sections/0/rows/0",
        "sections/0/rows/0/cells/0",
        "sections/0/rows/0/cells/0/runs",
        "environments/0",
        "settings/0",
    ):
        doc = doc_of(one_of_everything())
        part: Any = doc
        for word in filter(None, place.split("/")):
            part = part[int(word) if word.isdigit() else word]
        part["surprise"] = 1
        with pytest.raises(ValidationError, match="surprise"):
            VALIDATOR.validate(doc)


def test_every_number_of_a_run_is_traced() -> None:
    rows = ranked(seeds=10)
    doc = doc_of(rows)
    found = {}
    for section in doc["sections"]:
        for row in section["rows"]:
            for cell in row["cells"]:
                part = cell["runs"]
                assert doc["settings"][cell["setting"]]["recipe"] == {"lr": 0.003, "steps": 300}
                assert {doc["environments"][e]["commit_id"] for e in part["environment"]} == {
                    "c" * 40
                }
                found |= dict(
                    zip(part["key"], zip(part["seed"], part["score"], strict=True), strict=True)
                )
    assert found == {r.key: (r.seed, r.packed) for r in rows.itertuples()}


def test_of_several_attempts_the_one_of_the_board_is_shown() -> None:
    rows = one_of_everything()
    first = rows[rows["method"] == "ste"].iloc[0].to_dict()
    merged = {**first, "attempt": 2, "packed": 0.7, "trust": "claimed"}
    again = pd.concat([rows, pd.DataFrame([merged])], ignore_index=True)
    doc = doc_of(again)
    cell = next(
        c
        for row in doc["sections"][0]["rows"]
        if row["entrant"] == "ste"
        for c in row["cells"]
        if c["format"] == first["weights_format"]
    )
    assert cell["runs"]["score"][0] == first["packed"] and cell["runs"]["trust"] == ["own"] * 3
    only = pd.concat([rows[rows["key"] != first["key"]], pd.DataFrame([merged])], ignore_index=True)
    cell = next(
        c
        for row in doc_of(only)["sections"][0]["rows"]
        if row["entrant"] == "ste"
        for c in row["cells"]
        if c["format"] == first["weights_format"]
    )
    assert cell["runs"]["score"][0] == 0.7 and cell["runs"]["trust"] == ["claimed", "own", "own"]


def test_links_to_cells_stay_what_they_are_when_others_join() -> None:
    few, many = (
        doc_of(ranked(seeds=3, methods=m)) for m in (("rtn", "ste"), ("rtn", "ste", "lsq", "gdnsq"))
    )
    ids = [
        {c["id"] for s in doc["sections"] for row in s["rows"] for c in row["cells"]}
        for doc in (few, many)
    ]
    assert ids[0] < ids[1]
    assert len(ids[1]) == sum(len(row["cells"]) for s in many["sections"] for row in s["rows"])


def test_names_that_look_alike_have_links_of_their_own() -> None:
    built, _ = board(ranked(seeds=3))
    section, row = built.sections[0], built.sections[0].rows[0]
    assert cell_id(section, row, "int 2") != cell_id(section, row, "int-2")


# ---- nothing hostile ----


class Reader(HTMLParser):
    """Elements with their attributes, as a browser would find them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements(page: str) -> list[tuple[str, dict[str, str | None]]]:
    reader = Reader()
    reader.feed(page)
    return reader.found


@pytest.mark.parametrize("rows", [nasty(), ranked(seeds=10)], ids=["nasty", "ranked"])
def test_the_page_holds_no_element_attribute_or_address_but_its_own(rows: pd.DataFrame) -> None:
    made = files(rows)
    found = elements(made["index.html"].decode())
    assert {tag for tag, _ in found} <= {
        "html", "head", "meta", "title", "link", "style", "body", "a", "header", "div", "span", "main", "h1", "h2", "h3", "p", "section", "small", "table", "caption", "thead", "tbody",
        "tr", "th", "td", "bdi", "sup", "i", "ol", "ul", "li", "figure", "figcaption", "b", "svg", "g", "path", "rect", "text", "wbr", "noscript", "code", "pre", "details", "summary", "dialog", "script",
    }  # fmt: skip
    for tag, attributes in found:
        assert not [
            a
            for a in attributes
            if a.startswith("on") or a in ("style", "src", "srcdoc", "formaction", "xlink:href")
        ], (
            tag,
            attributes,
        )
        target = attributes.get("href") or "#"
        assert (
            target.startswith(("#", "data:image/svg+xml,"))
            or target in made
            or target == site_folder.SUMS
        ), target
    assert sum(tag == "script" for tag, _ in found) == 2


def test_the_policy_names_the_one_style_and_the_one_script() -> None:
    page = files(one_of_everything())["index.html"].decode()
    policy = next(
        a["content"]
        for tag, a in elements(page)
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy and policy.startswith("default-src 'none'") and "unsafe" not in policy
    for kind, pattern in (
        ("style", r"<style>(.*?)</style>"),
        ("script", r"<script>(.*?)</script>"),
    ):
        (inside,) = re.findall(pattern, page, re.DOTALL)
        assert (
            f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
            in policy
        )


def test_data_cannot_leave_its_element() -> None:
    doc = doc_of(nasty())
    written = embedded(doc)
    assert not set(written) & set("<>&\u2028\u2029")
    assert json.loads(written) == packed(doc)


def test_figures_cannot_leave_the_noscript_that_they_wait_in() -> None:
    """Where scripts run it is read as text up to its end tag, so that a name with one would let the rest out."""
    page = files(nasty())["index.html"].decode()
    parts = re.findall(r"<noscript>(.*?)</noscript>", page, re.DOTALL)
    assert len(parts) == page.count("<noscript") == page.count("</noscript") > 0
    for part in parts:
        assert {tag for tag, _ in elements(part)} <= {
            "ul",
            "li",
            "i",
            "bdi",
            "figure",
            "figcaption",
            "b",
            "div",
            "svg",
            "g",
            "path",
            "rect",
            "text",
            "title",
        }


def test_names_break_at_blanks_and_punctuation_only() -> None:
    assert breakable("ewgs (delta=adaptive, on/off)") == "ewgs (delta=adaptive, on/<wbr>off)"
    assert (
        breakable("a_b|c;d,e:f") == "a_<wbr>b|<wbr>c;<wbr>d,<wbr>e:<wbr>f"
        and breakable("x" * 60) == "x" * 60
    )
    assert breakable("<img/onerror=1>,b") == "&lt;img/<wbr>onerror=1&gt;,<wbr>b"


# ---- what the page carries ----


def test_a_thousand_runs_take_less_than_three_hundred_kilobytes() -> None:
    rows = ranked(seeds=10, tasks=[f"task{n}" for n in range(7)])
    assert len(rows) == 1050 and 100_000 < len(files(rows)["index.html"]) < 300_000


def test_keys_and_scores_are_carried_whole() -> None:
    """Keys to the bit; scores to what leaves ranks as they are."""
    rows = ranked(seeds=10)
    doc = doc_of(rows)
    carried = json.loads(embedded(doc))
    found = {}
    for section, own in zip(carried["sections"], doc["sections"], strict=True):
        for row, its in zip(section["rows"], own["rows"], strict=True):
            for cell, whole in zip(row["cells"], its["cells"], strict=True):
                _, keys, scores, _ = cell["runs"]
                raw = base64.b64decode(keys).hex()
                assert [raw[32 * n : 32 * n + 32] for n in range(len(scores))] == whole["runs"][
                    "key"
                ]
                found |= dict(zip(whole["runs"]["key"], scores, strict=True))
    assert found == {r.key: pytest.approx(r.packed, rel=1e-13, abs=0) for r in rows.itertuples()}
    rounded = rows.assign(packed=rows["key"].map(found))
    assert [row.rank for s in board(rounded)[0].sections for row in s.rows] == [
        row.rank for s in board(rows)[0].sections for row in s.rows
    ]


def test_scores_that_differ_by_a_constant_still_do_so_when_carried() -> None:
    """No spread, no test: fourteen digits stay far within what `stats` takes for none, where ten would make a rank of it."""
    chance = random.Random(3)
    first = {seed: chance.uniform(0.1, 90) for seed in range(12)}
    second = {seed: value + 1 / 3 for seed, value in first.items()}
    ends = [
        paired_test(
            *({s: rounded(v, digits) for s, v in scores.items()} for scores in (first, second))
        ).p
        for digits in (SCORE, 10)
    ]
    assert ends[0] is None and ends[1] is not None and ends[1] < 1e-6


@pytest.mark.parametrize(
    "name", ["board.json", "cells.csv", "leaderboard.md", "leaderboard.tex", "index.html"]
)
def test_no_file_holds_what_acts_in_a_terminal_or_turns_text_round(name: str) -> None:
    written = files(nasty())[name].decode()
    assert not re.findall(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]", written
    )


def test_long_names_do_not_flood_the_page() -> None:
    page = re.sub(
        r'<script type="application/json".*?</script>',
        "",
        files(nasty())["index.html"].decode(),
        flags=re.DOTALL,
    )
    assert max(map(len, re.findall("x+", page))) < 100


# ---- LaTeX ----


@given(HOSTILE)
def test_latex_reads_a_name_as_a_name(name: str) -> None:
    written = latex(name)
    bare = re.sub(
        r"\\text[a-z]+\{\}|\\dots\{\}|\\textsuperscript\{2\}|\$\\?[a-z]+\$|\$-\$|\\[{}$&#_%]",
        "",
        written,
    )
    assert not set(bare) & set('\\{}$&#_%~^<>|"`'), (name, written)
    assert all(ord(char) < 0x180 for char in written)


def test_latex_has_a_table_a_section_with_as_many_cells_in_each_line() -> None:
    built, _ = board(ranked(seeds=10))
    written = to_latex(built)
    assert (
        written.count(r"\begin{tabular}") == written.count(r"\end{tabular}") == len(built.sections)
    )
    for line in written.splitlines():
        if line.endswith(r"\\"):
            spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert line.count(" & ") + spanned == 4, line
    assert r"\textbf{" in written and r"$\pm$" in written


# ---- Parquet ----


def test_parquet_holds_every_run_and_its_kinds() -> None:
    rows = one_of_everything()
    table = pq.read_table(BytesIO(files(rows)["runs.parquet"]))
    back = table.to_pandas().set_index("key").sort_index()
    expected = rows.set_index("key").sort_index()
    assert back["packed"].tolist() == pytest.approx(expected["packed"].tolist(), nan_ok=True, rel=0)
    assert back["message"].dropna().tolist() == expected["message"].dropna().tolist()
    kinds = {field.name: str(field.type) for field in table.schema}
    assert (kinds["seed"], kinds["packed"], kinds["audit_passed"], kinds["message"]) == (
        "int64",
        "double",
        "bool",
        "string",
    )


# ---- the command ----


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Path]:
    """A store with a board of real run folders."""
    folder = tmp_path / "results"
    cells = [
        (config(method=m, fmt=f), None) for m, f in (("fp", None), ("rtn", "int4"), ("ste", "int4"))
    ]
    for spec, _ in cells:
        for seed in range(3):
            make(
                folder,
                config(seed, spec.method, spec.weights.format if spec.weights else None),
                score=0.5 + 0.01 * seed,
            )
    members = roster("b", cells, 3)
    with Store(folder) as store:
        store.set_board(
            {**members, "defaults": {m: {"scale": "absmax"} for m in ("fp", "rtn", "ste")}}
        )
        store.snapshot()
    yield folder


def qbench(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "QBENCH_RESULTS": "results"}
    return subprocess.run(
        [sys.executable, "-m", "qbench", *words], cwd=cwd, capture_output=True, text=True, env=env
    )


def test_publish_writes_a_site_and_says_so(results: Path) -> None:
    cwd = results.parent
    done = qbench("publish", "b", "--out", "site", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"site/index\.html: b, 9 runs in 1 tables?, \d+ kB\n", done.stdout)
    names = {p.name for p in (cwd / "site").iterdir()}
    assert names == {
        "index.html",
        "board.json",
        "board.schema.json",
        "cells.csv",
        "runs.parquet",
        "leaderboard.md",
        "leaderboard.tex",
        "SHA256SUMS",
    }
    before = {p.name: p.read_bytes() for p in (cwd / "site").iterdir()}
    again = json.loads(qbench("publish", "--out", "site", "--json", cwd=cwd).stdout)
    assert again["sizes"] == {name: len(data) for name, data in before.items()}
    assert {p.name: p.read_bytes() for p in (cwd / "site").iterdir()} == before
    shown = qbench("show", "b", "--markdown", cwd=cwd).stdout
    assert before["leaderboard.md"].decode() == shown


def test_publish_refuses_in_one_line(results: Path) -> None:
    (results.parent / "mine").mkdir()
    (results.parent / "mine" / "thesis.tex").write_text("all of it")
    done = qbench("publish", "b", "--out", "mine", cwd=results.parent)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert (
        done.stderr
        == "qbench: mine holds thesis.tex that qbench publish did not write: name another folder with --out\n"
    )
    assert qbench("publish", "c", "--out", "site", cwd=results.parent).returncode == 2


def test_a_place_that_cannot_be_written_is_one_line(results: Path) -> None:
    done = qbench("publish", "b", "--out", "/proc/nowhere/site", cwd=results.parent)
    assert done.returncode == 2 and done.stderr.startswith(
        "qbench: /proc/nowhere/site: the site cannot be written there: "
    )
    assert done.stderr.count("\n") == 1
