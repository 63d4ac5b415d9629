"""Who may import whom, read off the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "qbench").rglob("*.py"))
METHODS, TASKS = (
    sorted((ROOT / kind / f"qbench_{kind}").glob("*.py")) for kind in ("methods", "tasks")
)

ONLY = {
    "duckdb": {"store"},
    "lm_eval": {"downstream"},
    "rich": {"render", "overview", "listing", "progress", "cli.common"},
    "ray": {"engines.raydriver"},
    "fastjsonschema": {"submissions.strict"},
    "pyarrow": {"publish.archive"},
}
"""Who alone may import a library."""
METHOD_MAY = {
    "formats",
    "grid",
    "method",
    "noise",
    "quantizer",
    "rounding",
    "run",
    "scales",
    "schedule",
}
LIGHT = (
    "cli",
    "config",
    "errors",
    "frames",
    "intake",
    "leaderboard",
    "plaintext",
    "progress",
    "record",
    "registry",
    "render",
    "roster",
    "schema",
)
"""Modules that must not bring in torch; with those below, nor anything that they import."""
LIGHT += (
    "equaltime",
    "summary",
    "overview",
    "stats",
    "store",
    "table",
    "compare",
    "sweep",
    "sweepfile",
    "standing",
    "text",
    "tidy",
    "upkeep",
    "plan",
    "board",
    "listing",
    "axes",
    "lock",
    "outlook",
    "processes",
    "retired",
    "values",
    "withdrawn",
    "search",
    "trials",
    "tuning",
    "catalogue",
    "scaffold",
    "publish",
    "answers",
    "asking",
    "grades",
    "marks",
    "shard",
    "gather",
    "source",
    "places",
    "definition",
)
LIGHT += tuple(
    f"submissions.{name}"
    for name in (
        "artefact",
        "boards",
        "bundle",
        "checks",
        "merge",
        "refused",
        "strict",
        "verify",
        "zipped",
    )
)


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT / "qbench").with_suffix("").parts)


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether only for the type checker."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = {
        n
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for n in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module
            yield node.module, node in typing
            if node.module == "qbench":
                yield from ((f"qbench.{alias.name}", node in typing) for alias in node.names)


@pytest.mark.parametrize("file", CORE, ids=name_of)
def test_the_core_knows_no_method_and_no_task(file: Path) -> None:
    for module, _ in imports(file):
        assert module.partition(".")[0] not in ("qbench_methods", "qbench_tasks")


@pytest.mark.parametrize("file", CORE, ids=name_of)
def test_libraries_have_one_home(file: Path) -> None:
    for module, typing_only in imports(file):
        homes = ONLY.get(module.partition(".")[0])
        assert homes is None or typing_only or name_of(file) in homes, (
            f"{name_of(file)} imports {module}"
        )


@pytest.mark.parametrize("file", METHODS, ids=lambda f: f.stem)
def test_methods_import_their_contract_and_no_other_method(file: Path) -> None:
    for module, _ in imports(file):
        package, _, rest = module.partition(".")
        assert package not in ("qbench_tasks", "qbench_methods"), f"{file.name} imports {module}"
        assert package != "qbench" or not rest or rest in METHOD_MAY, (
            f"{file.name} imports {module}"
        )


@pytest.mark.parametrize("file", TASKS, ids=lambda f: f.stem)
def test_tasks_import_their_contract_and_no_method(file: Path) -> None:
    for module, _ in imports(file):
        package, _, rest = module.partition(".")
        assert package != "qbench_methods" and (package != "qbench" or rest in ("", "task")), (
            f"{file.name} imports {module}"
        )


@pytest.mark.parametrize("file", [*CORE, *METHODS, *TASKS], ids=lambda f: f.stem)
def test_no_module_is_long(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_do_without_torch(module: str) -> None:
    assert not loaded_by(f"import qbench.{module}") & {
        "torch",
        "scipy.stats",
        "sklearn",
        "lm_eval",
        "matplotlib",
    }


def test_the_command_line_starts_with_click_alone() -> None:
    heavy = {"torch", "pandas", "numpy", "duckdb", "rich", "scipy", "jinja2"}
    assert not loaded_by("import qbench.cli") & heavy
    assert not loaded_by("import qbench") & {*heavy, "click"}
