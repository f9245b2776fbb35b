"""Which test files a change can reach: those that import a changed file, directly or through others."""

import ast
import functools
import pathlib
import subprocess
from collections.abc import Iterable

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "packlight"
ROOTS = (ROOT / "src", ROOT / "tests" / "helpers", ROOT / "tests" / "goldens", ROOT / "tests", ROOT)  # of modules
SOURCES = ("src", "common", "quant", "model", "compile", "serve", "configs", "demo", "bench", "tools", "tests")
ALWAYS = ROOT / "tests" / "project"  # what other files than Python's can break: documents, links, what is packed


class Changed:
    """A plugin that leaves out the test files which no changed file can reach."""

    def __init__(self) -> None:
        self._kept = reached(changed_files())

    def pytest_ignore_collect(self, collection_path: pathlib.Path) -> bool | None:
        is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
        return True if is_test and collection_path not in self._kept else None

    def pytest_report_header(self) -> str:
        return f"changed files reach {len(self._kept)} test files"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not self._kept:
            session.exitstatus = pytest.ExitCode.OK


def changed_files() -> set[pathlib.Path]:
    """Files that differ from the last commit, new ones too."""
    said = subprocess.run(
        ["git", "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {ROOT / line[3:] for line in said.split("\0") if line}


def reached(changed: Iterable[pathlib.Path]) -> set[pathlib.Path]:
    """The test files among the changed ones and those that import them; tests of the project for any other change."""
    users = importers()
    found, left = set[pathlib.Path](), list(changed)
    if ROOT / "tests" / "conftest.py" in left:
        left += users
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += users.get(path, ())
    tests = {path for path in found if path.name.startswith("test_") and path.suffix == ".py" and path.exists()}
    others = any(path.suffix != ".py" for path in found)
    return tests | (set(ALWAYS.glob("test_*.py")) if others else set())


@functools.cache
def importers() -> dict[pathlib.Path, set[pathlib.Path]]:
    """Every Python file of the repository, and the files that import it."""
    files = {path.resolve() for folder in SOURCES for path in (ROOT / folder).rglob("*.py")}
    users: dict[pathlib.Path, set[pathlib.Path]] = {path: set() for path in files}
    for path in files:
        for used in imports(path):
            users.setdefault(used, set()).add(path)
    return users


def imports(path: pathlib.Path) -> set[pathlib.Path]:
    """The files of the repository that a file imports, wherever in it; `packlight` is all of its public names."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    found = {file for name in names if (file := file_of(name))}
    return found | (set(PACKAGE.glob("*.py")) if "packlight" in names and PACKAGE not in path.parents else set())


def file_of(module: str) -> pathlib.Path | None:
    """Where a module of the repository lies, below links too."""
    for root in ROOTS:
        place = root.joinpath(*module.split("."))
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if module and file.is_file():
                return file.resolve()
    return None
