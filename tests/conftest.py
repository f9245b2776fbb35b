"""Test setup: 8 fake CPU devices, strict JAX promotion rules, the shared fixtures' folder, and what tests record.

`pytest --record=FILE` writes what tests measured of each model file: `tests/checks.json`, for the README's table.
`pytest --changed` runs only what a change since the last commit can reach.
`pytest --budget=SECONDS` fails when the run takes more processor time than that.
`pytest --within=MINUTES` leaves out, and counts, the tests that have not begun by then.
"""

import collections
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
from changed import Changed
from peer import SHARED
from processor import Processor
from within import Within

pytest_plugins = ["client_sites"]
ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDENS_FOLDER = ROOT / "tests" / "goldens"

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))  # children
# Kept between runs: native libraries and stored executables, also of child processes, and what jax compiles here.
# Entries are named by their content, so that an old one is never taken for another.
CACHE = pathlib.Path(os.environ.get("PACKLIGHT_TEST_CACHE", ROOT / ".cache" / "tests"))
os.environ["XDG_CACHE_HOME"] = str(CACHE)
jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_platforms", "cpu")  # what the tolerances and exactness are derived for
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def shared_path(*parts: str) -> pathlib.Path:
    """A fixture under ../shared; skips the calling test, with the reason, where the folder is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"fixture {path} is absent")
    return path


@pytest.fixture(scope="session")
def native_library() -> None:
    """The native kernels, built; skips where there is no compiler."""
    from packlight.quant.kernels import native_build  # behind the settings above

    try:
        native_build.library()
    except native_build.NativeBuildError as error:
        if "no C++ compiler" not in str(error):
            raise
        pytest.skip(str(error))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SHARED.exists():
        items[:] = [item for item in items if item.get_closest_marker("shared") is None]


MEASURED: dict[str, dict[str, Any]] = collections.defaultdict(dict)  # model file -> fact -> value


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", help="JSON file for what tests measure of each model file")
    parser.addoption("--budget", type=float, help="processor seconds that the run may take, of all processes together")
    parser.addoption("--within", type=float, help="minutes after which no further test begins")
    parser.addoption("--changed", action="store_true", help="only tests that import what differs from the last commit")


def pytest_configure(config: pytest.Config) -> None:
    kept = CACHE / f"kept-{re.sub(r'[^a-z]+', '-', config.getoption('markexpr'))}"
    budget = None if hasattr(config, "workerinput") else config.getoption("budget")  # the controller judges
    config.pluginmanager.register(Processor(budget, kept))
    if config.getoption("within") is not None:
        config.pluginmanager.register(Within(config.getoption("within")))
    if config.getoption("changed"):
        config.pluginmanager.register(Changed())


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("record")  # not with -n, whose processes each measure a part
    if path is not None and session.testsfailed == 0:
        pathlib.Path(path).write_text(json.dumps(dict(sorted(MEASURED.items())), indent=1) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True, scope="module")
def _forget_executables() -> Iterator[None]:
    """A file's jitted functions go with it: those of all files together take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def record() -> Callable[..., None]:
    """record(file, fact=value, ...): what a test measured of a model file."""
    return lambda file, **facts: MEASURED[file].update(facts)
