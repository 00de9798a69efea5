"""A file imports only from floors below it."""

import ast
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "spiketrain"
NETWORK = {"functional", "kernels", "neurons", "layers", "models"}
ALLOWED = {
    "errors": set(),
    "allocator": set(),
    "signals": set(),
    "placement": set(),
    "processes": {"errors", "placement"},
    "sync": {"functional", "processes"},
    "files": {"errors"},
    "record_check": set(),
    "functional": {"errors"},
    "kernels": {"allocator", "errors", "functional"},
    "neurons": {"errors", "functional", "kernels"},
    "saving": {"functional", "kernels"},
    "layers": {"errors", "functional", "kernels", "neurons", "processes", "saving", "sync"},
    "models": {"errors", "functional", "kernels", "neurons", "saving", "layers"},
    "data": {"errors", "files", "processes"},
    "objective": {"errors"},
    "recipes": {"errors"},
    "record": {"errors", "files", "record_check"},
    "report": {"errors", "files", "record"},
    "page": {"errors", "recipes", "record", "report"},
    "tables": {"errors", "bench", "files", "models", "operations", "recipes", "record", "report"},
    "progress": {"errors"},
    "checkpoint": {"errors"},
    "evaluate": {"errors", "kernels", "models", "neurons", "objective", "processes"},
    "faults": {"functional", "processes"},
    "folders": {"errors", "checkpoint", "processes", "recipes", "record"},
    "state": {"errors", "checkpoint", "data", "faults", "models", "processes", "progress", "recipes"},
    "graphs": {"errors", "models"},
    "initial": {"errors", "models"},
    "unroll": {"errors", "models", "neurons", "saving"},
    "optimizers": {"kernels"},
    "assemble": {"optimizers", "errors", "data", "initial", "models", "recipes", "kernels", "neurons"},
    "operations": {"errors", "layers", "models", "neurons"},
    "corrupt": set(),
    "pictures": set(),
    "trained": {"errors", "assemble", "checkpoint", "data", "evaluate", "models", "recipes", "record", "unroll"},
    "verify": {"errors", "checkpoint", "models", "record", "trained"},
    "analyze": {"corrupt", "functional", "operations", "evaluate", "neurons", "objective", "record", "trained"},
    "bench": {"errors", "files", "assemble", "models", "recipes", "record", "report"},
    "train": {
        "errors", "data", "graphs", "models", "objective", "recipes", "record", "progress", "checkpoint", "evaluate", "assemble", "faults",
        "folders", "processes", "signals", "state",
    },
}
FILES = sorted(PACKAGE.rglob("*.py"))


def floor(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(file: Path) -> set[str]:
    """Parts of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "spiketrain":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("spiketrain.")}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_imports_only_from_floors_below(file):
    name = floor(file)
    if name in ("__init__", "__main__", "cli", "cli_data", "cli_bench", "cli_analyze"):
        return
    assert imported(file) - {name} <= ALLOWED[name]


def test_data_and_records_know_nothing_of_networks():
    for name in ("data", "objective", "recipes", "record", "report"):
        assert not ALLOWED[name] & NETWORK


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_is_short(file):
    assert len(file.read_text().splitlines()) <= 400


def test_what_is_no_python_is_installed_too():
    told = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for file in PACKAGE.rglob("*"):
        if file.is_file() and file.suffix not in (".py", ".pyc"):
            owners = [(PACKAGE.parent / name.replace(".", "/"), patterns) for name, patterns in told.items()]
            assert any(file in folder.glob(pattern) for folder, patterns in owners for pattern in patterns), file
