"""The shape of the code itself: imports go one way, room by room, and what must not cost a jax import does not."""

import ast
import pathlib
import subprocess
import sys

import pytest

import packlight

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The floors of the house, lowest first. A file may import rooms of its own floor's line and of those above it here;
# a room in braces beside another knows nothing of its neighbour. `cli` stands above `bench`, which is one of its
# commands and uses the API.
FLOORS = (
    ("common", "demo", "configs"),
    ("quant",),
    ("model.gguf",),
    ("model.text", "model.spec"),
    ("model.weights",),
    ("model.sampling", "model.network"),
    ("compile",),
    ("serve",),
    ("packlight",),
    ("bench", "server"),
    ("cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FOLDERS = ("common", "demo", "configs", "quant", "model", "compile", "serve", "bench", "src/packlight")
NO_JAX = (
    *("common.errors", "common.text", "quant.formats.table", "quant.formats.scales", "model.gguf.reader"),
    *("model.spec.config", "model.spec.cache", "model.spec.weights", "model.spec.sharding", "model.weights.load"),
    *("model.weights.mapfile", "model.weights.mapped", "model.weights.residence", "model.weights.experts"),
    *("model.weights.pinned", "common.mounts", "common.secret"),
    *("model.spec.pooling", "model.text.tokenizer", "model.text.streaming", "model.sampling.config"),
    *("model.text.replies.parser", "model.text.replies.probe", "model.text.replies.messages"),
    *("model.sampling.grammar", "model.sampling.tool_grammar"),
    *(
        "compile.config",
        "compile.counter",
        "compile.kernels",
        "compile.memory",
        "compile.origin",
        "compile.plan",
        "compile.store",
        "demo",
    ),
    *("sources.find", "sources.listing", "serve.run", "serve.scheduler", "serve.slots"),
    *("serve.driver", "server.app", "server.requests", "server.generation", "server.life"),
    *("conversing", "inspection", "llm", "prepared", "prompts", "stored", "cli.main"),
)


def sources() -> list[pathlib.Path]:
    """Every Python file of the package, under its real path."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "node_modules" not in path.parts]
    return sorted({path.resolve() for path in files})


def room_of(module: str) -> str:
    """The room of a module of the package, named without `packlight.`: the longest name that is one."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in FLOOR_OF:
            return name
    return "cli" if module == "__main__" else "packlight"


def module_of(path: pathlib.Path) -> str:
    """A file's module without `packlight.`, in the place where it is installed."""
    inside = path.relative_to(ROOT).with_suffix("").parts
    inside = inside[2:] if inside[:2] == ("src", "packlight") else inside
    return ".".join(inside).removesuffix(".__init__")


def imported(path: pathlib.Path) -> set[str]:
    """The modules that a file imports, wherever in it: of `from a.b import c` both `a.b` and `a.b.c`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda path: module_of(path))
def test_imports_go_one_way(path):
    mine = room_of(module_of(path))
    for name in imported(path):
        if not name.startswith("packlight."):
            continue
        room = room_of(name.removeprefix("packlight."))
        allowed = room == mine or FLOOR_OF[room] < FLOOR_OF[mine]
        assert allowed, f"{module_of(path)} is in {mine} and imports {name}, of {room}"


def test_every_room_is_on_a_floor():
    rooms = {room_of(module_of(path)) for path in sources()}
    assert rooms == set(FLOOR_OF)


@pytest.mark.parametrize("folder", ["src", "bench", "tests", "tools", "notebooks", *FOLDERS[:-1]])
def test_a_room_is_imported_by_its_whole_name(folder):
    """`import model` works in the repository's root, and would make second copies of modules."""
    bare = {pathlib.Path(folder).parts[0] for folder in FOLDERS[:-1]} | {"run"}
    for path in (ROOT / folder).rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & bare, path


def test_the_package_shows_its_public_names_and_no_others():
    assert dir(packlight) == sorted(packlight.__all__)
    for name in packlight.__all__:
        assert getattr(packlight, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prepar'"):
        _ = packlight.prepar
    assert (pathlib.Path(packlight.__file__).parent / "py.typed").exists()


def test_jax_free_modules_import_no_jax():
    names = ", ".join(f"packlight.{name}" for name in NO_JAX)
    code = f"import packlight, {names}, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pyright_is_told_every_folder_behind_a_link():
    """It follows none: a folder that is not named would not be checked."""
    import tomllib

    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]["include"]
    links = {path.name for path in (ROOT / "src" / "packlight").iterdir() if path.is_symlink()}
    with_code = {name for name in links if any((ROOT / name).rglob("*.py"))} - {"configs"}
    others = {"src/packlight", "tools", "tests/packlight/typed_calls.py", "run.py"}
    assert {f"src/packlight/{name}" for name in with_code} | others == set(included)


def test_the_plan_knows_which_formats_have_native_kernels():
    from packlight.compile.kernels import product_paths
    from packlight.quant.formats.table import FORMATS
    from packlight.quant.layouts import FIELDS

    native = product_paths("native")
    assert native["Q4_K"] == "native"
    assert {qtype for qtype, path in native.items() if path != "native"} == FORMATS.keys() - FIELDS.keys()
