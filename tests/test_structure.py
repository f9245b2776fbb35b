"""The shape of the code itself: imports go one way, and what must not cost a jax import does not."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ORDER = ("quant", "model", "compile")  # each may import itself and those before it
NO_JAX = (
    "quant.errors", "quant.formats", "quant.scales", "model.reader", "model.config", "model.declaration", "model.load",
    "model.sharding", "model.tokenizer", "model.streaming", "model.sampling", "compile.config",
    "compile.inspection", "compile.plan", "compile.store", "demo", "packlight", "run",
)  # fmt: skip


def imported(path: pathlib.Path) -> set[str]:
    """Top-level packages a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_one_way(package):
    later = {*ORDER[ORDER.index(package) + 1 :], "packlight", "run", "bench"}
    files = list((ROOT / package).glob("**/*.py"))
    assert files
    for path in files:
        assert not imported(path) & later, path


def test_jax_free_modules_import_no_jax():
    code = f"import {', '.join(NO_JAX)}, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_plan_knows_which_formats_have_native_kernels():
    from quant.formats import path_of

    assert path_of("Q4_K", "native") == "native"
    assert path_of("IQ3_S", "native") == "xla"
