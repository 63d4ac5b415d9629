"""Who may import whom: one table of packages, and what must start without heavy libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = sorted((ROOT / "qbench").rglob("*.py"))
METHODS = sorted((ROOT / "methods" / "qbench_methods").glob("*.py"))
TASKS = sorted((ROOT / "tasks" / "qbench_tasks").glob("*.py"))

# Everybody may import these.
COMMON = {"errors", "util", "version"}

# What each package may import besides. A package stands below everything that it imports.
MAY_IMPORT = {
    "numerics": {},
    "stats": {},
    "quant": {"numerics"},
    "plugins": {},
    "runs": {},
    "sweepfile": {"plugins", "runs"},
    "store": {"runs"},
    "api": {"numerics", "quant", "plugins", "runs"},
    "training": {"numerics", "quant", "plugins", "runs", "api"},
    "artefact": {"quant", "runs", "api", "training"},
    "execution": {"numerics", "quant", "plugins", "runs", "api", "training", "artefact"},
    "downstream": {"plugins", "runs", "api", "training", "artefact"},
    "engines": {"plugins", "runs", "sweepfile", "training", "execution", "downstream"},
    "sweeps": {
        "stats", "quant", "plugins", "runs", "sweepfile", "store", "api", "training", "execution",
        "downstream", "engines",
    },
    "boards": {"stats", "sweepfile"},
    "analysis": {"stats", "runs", "sweepfile", "store", "boards"},
    "terminal": {"stats", "boards", "analysis"},
    "publish": {"stats", "store", "boards"},
    "checks": {
        "numerics", "quant", "plugins", "runs", "store", "api", "training", "execution", "engines",
    },
    "submissions": {
        "plugins", "runs", "sweepfile", "store", "api", "training", "artefact", "checks",
    },
    "cli": {
        "plugins", "runs", "sweepfile", "store", "artefact", "execution", "downstream", "engines",
        "sweeps", "boards", "analysis", "terminal", "publish", "checks", "submissions",
    },
}  # fmt: skip

# Libraries that only some modules may import.
HOME_OF_LIBRARY = {
    "duckdb": ("store/",),
    "lm_eval": ("downstream/",),
    "rich": ("terminal/", "cli/options.py"),
    "ray": ("engines/ray_",),
    "fastjsonschema": ("submissions/strict_json.py",),
    "pyarrow": ("publish/site_folder.py",),
}

# Packages that a command imports before it knows whether anything is to be trained.
LIGHT = {
    "analysis", "boards", "cli", "plugins", "publish", "runs", "stats", "store", "submissions",
    "sweepfile", "sweeps", "terminal", "util",
}  # fmt: skip
HEAVY_MODULES = {"qbench.submissions.reevaluate", "qbench.submissions.worker"}
"""Modules of light packages that are imported only when runs are evaluated again."""


def find_imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Yield the modules that a file imports, and whether only for type checking."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: relative import"
            names = [f"qbench.{alias.name}" for alias in node.names]
            modules = names if node.module == "qbench" else [node.module]
            yield from ((module, node in typing_only) for module in modules)


def package_of(file: Path) -> str:
    parts = file.relative_to(ROOT / "qbench").parts
    return parts[0] if len(parts) > 1 else ""


def test_packages_import_only_what_the_table_allows() -> None:
    wrong = []
    for file in CORE:
        package = package_of(file)
        for module, typing_only in find_imports(file):
            top, _, rest = module.partition(".")
            assert top not in ("qbench_methods", "qbench_tasks"), f"{file} imports {module}"
            other = rest.partition(".")[0]
            allowed = {"", package, *COMMON, *MAY_IMPORT.get(package, ())}
            if top == "qbench" and package not in COMMON | {""} and not typing_only:
                wrong += [f"{file.relative_to(ROOT)}: {module}"] if other not in allowed else []
    assert not wrong


def test_the_table_has_no_cycle_and_names_every_package() -> None:
    packages = {package_of(file) for file in CORE} - {"", *COMMON}
    assert packages == set(MAY_IMPORT)
    placed: set[str] = set()
    while placed != packages:
        free = {name for name in packages - placed if set(MAY_IMPORT[name]) <= placed}
        assert free, f"a cycle among {sorted(packages - placed)}"
        placed |= free


def test_libraries_have_one_home() -> None:
    for file in CORE:
        place = file.relative_to(ROOT / "qbench").as_posix()
        for module, typing_only in find_imports(file):
            homes = HOME_OF_LIBRARY.get(module.partition(".")[0], ("",))
            assert typing_only or place.startswith(homes), f"{place} imports {module}"


def test_methods_and_tasks_import_the_api_alone() -> None:
    for file, own in [(f, "") for f in METHODS] + [(f, "qbench_tasks") for f in TASKS]:
        for module, _ in find_imports(file):
            top = module.partition(".")[0]
            if top == "qbench":
                assert module == "qbench.api", f"{file.name} imports {module}"
            assert top not in ("qbench_methods", "qbench_tasks") or top == own, file.name


def test_no_file_is_long_and_no_package_is_large() -> None:
    for file in [*CORE, *METHODS, *TASKS]:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file
    for folder in {file.parent for file in CORE}:
        files = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
        assert len(files) <= 12, folder


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after running some code."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_light_packages_do_without_torch() -> None:
    modules = []
    for file in CORE:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if package_of(file) in LIGHT and name not in HEAVY_MODULES:
            modules.append(name)
    loaded = loaded_by("import " + ", ".join(modules))
    assert not loaded & {"torch", "sklearn", "lm_eval", "matplotlib"}


def test_the_command_line_starts_with_click_alone() -> None:
    heavy = {"torch", "pandas", "numpy", "duckdb", "rich", "scipy", "jinja2"}
    assert not loaded_by("import qbench.cli") & heavy
    assert not loaded_by("import qbench") & {*heavy, "click"}
