"""What is installed is one name, `packlight`, with everything it needs: as a wheel, from an sdist, a zip, editable."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest
from ggufs import write_llama

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = "prefill_buckets = [16]\ndecode_batch = [1]\ncontext = 64\n"
BUILD = "import sys, hatchling.build as b; print(getattr(b, f'build_{sys.argv[1]}')(sys.argv[2]))"  # wheel, sdist, ...


def checkout(folder: pathlib.Path) -> pathlib.Path:
    """A copy of what the repository tracks, links included, in a folder named as a clone is."""
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "tests", "node_modules", "__pycache__")
    return shutil.copytree(ROOT, folder / "packlight", symlinks=True, ignore=ignored)


def build(source: pathlib.Path, kind: str, out: pathlib.Path) -> pathlib.Path:
    """What the build backend makes of `source`, without an environment of its own to download."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def contents(wheel: pathlib.Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return build(checkout(folder), "wheel", folder)


@pytest.fixture(scope="module")
def installed(wheel):
    """A folder with nothing but the wheel's files; dependencies come from the running environment."""
    site = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(installed, folder, *command, **environment) -> "subprocess.CompletedProcess[str]":
    """Runs Python in `folder` with what is installed, and nothing else of packlight, on its path."""
    variables = {**os.environ, "PYTHONPATH": str(installed), **environment}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=variables, input="", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_the_wheel_has_one_name_and_everything(wheel):
    names = contents(wheel)
    assert {name.split("/")[0] for name in names} == {"packlight", f"packlight-{version()}.dist-info"}
    assert names >= {
        "packlight/py.typed", "packlight/configs/cpu.toml", "packlight/configs/h200.txtpb",
        "packlight/demo/MODEL_CARD.md",
        "packlight/demo/packlight-demo-Q4_K_M.gguf", "packlight/demo/LICENSE-PYTHON.txt", "packlight/demo/loss.png",
        "packlight/quant/kernels/native/handler.cc", "packlight/quant/kernels/native/isa.h",
    }  # fmt: skip
    sources = {path.resolve() for path in (ROOT / "src" / "packlight").rglob("*.py")}
    for room in ("bench", "common", "compile", "configs", "demo", "model", "quant", "serve"):
        sources |= set((ROOT / room).rglob("*.py"))
    inside = {str(path.relative_to(ROOT)).removeprefix("src/packlight/") for path in sources}
    assert {name for name in names if name.endswith(".py")} == {f"packlight/{name}" for name in inside}
    assert not {name for name in names if "results/" in name or name.endswith("LOG.md")}


def version() -> str:
    (found,) = re.findall('^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return found


@pytest.mark.parametrize("kind", ["sdist", "zip without links", "zip with links as files"])
def test_wheels_of_other_sources_hold_the_same(wheel, tmp_path, kind):
    source = checkout(tmp_path)
    if kind == "sdist":
        with tarfile.open(build(source, "sdist", tmp_path)) as archive:
            assert not [member.name for member in archive if member.issym() or member.islnk()]
            archive.extractall(tmp_path / "unpacked", filter="data")
        source = tmp_path / "unpacked" / f"packlight-{version()}"
    else:
        for link in (path for path in (source / "src" / "packlight").iterdir() if path.is_symlink()):
            text = os.readlink(link)
            link.unlink()
            if "as files" in kind:  # what an unpacker that knows no links leaves
                link.write_text(text)
    out = tmp_path / "out"
    out.mkdir()
    assert contents(build(source, "wheel", out)) == contents(wheel)


def test_an_editable_install_adds_one_name_and_works_beside_the_clone(tmp_path):
    """From the clone's parent folder too, where a folder called packlight, the clone, lies on the path."""
    source = checkout(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    zipfile.ZipFile(build(source, "editable", out)).extractall(site)
    added = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    (link,) = added
    assert link.endswith(".pth")
    assert (site / link).read_text().split() == [str(source / "src")]
    assert {path.name for path in (source / "src").iterdir()} == {"packlight"}
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    code = "import packlight; print(packlight.__file__, packlight.unpack.__name__, packlight.load.__module__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python = tmp_path / "venv" / "bin" / "python"
    for folder in (tmp_path, source):
        done = subprocess.run(
            [python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [str(source / "src" / "packlight" / "__init__.py"), "unpack", "packlight.llm"]


def test_a_users_own_modules_stay_theirs(installed, tmp_path):
    """Whoever has a model.py, a run.py, a demo/ and a compile/ of their own beside a script keeps them, and runs."""
    for name in ("model", "run", "quant", "terminal"):
        (tmp_path / f"{name}.py").write_text(f"mine = '{name}'\n")
    for name in ("demo", "compile", "serve", "bench", "common"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"mine = '{name}'\n")
    (tmp_path / "script.py").write_text(
        "import bench, common, compile, demo, model, quant, run, serve, terminal\n"
        "import packlight\n"
        "config = packlight.CompileConfig(context=64, prefill_buckets=(16,), decode_batch=(1,))\n"
        "text = packlight.load(config=config).generate('def', max_tokens=4, temperature=0).text\n"
        "mine = [m.mine for m in (bench, common, compile, demo, model, quant, run, serve, terminal)]\n"
        "print(packlight.__file__, bool(text), *mine)\n"
    )
    said = run(installed, tmp_path, tmp_path / "script.py").stdout.split()
    names = ["bench", "common", "compile", "demo", "model", "quant", "run", "serve", "terminal"]
    assert said == [str(installed / "packlight" / "__init__.py"), "True", *names]


@pytest.mark.parametrize("way", ["console script", "-m packlight", "run.py"])
def test_every_way_to_start_generates_away_from_the_checkout(installed, tmp_path, way):
    model = write_llama(tmp_path / "model.gguf", layers=1)
    (tmp_path / "small.toml").write_text(TINY)
    script = "from packlight.cli.main import main; main()"  # what the entry point of the wheel runs
    entry = (installed / f"packlight-{version()}.dist-info" / "entry_points.txt").read_text()
    assert "packlight = packlight.cli.main:main" in entry
    command = {"console script": ("-c", script), "-m packlight": ("-m", "packlight"), "run.py": (ROOT / "run.py",)}[way]
    flags = (f"--model={model}", "--prompt=ab", "--max_tokens=3", "--temperature=0", "--config=small.toml")
    done = run("" if way == "run.py" else installed, tmp_path, *command, *flags)
    assert done.stdout.endswith("\n")
    assert "ended by" in done.stderr


def test_without_a_model_the_embedded_one_writes_text(installed, tmp_path):
    (tmp_path / "small.toml").write_text(TINY)
    done = run(installed, tmp_path, "-m", "packlight", "--max_tokens=8", "--config=small.toml")
    assert "using the embedded demo model" in done.stderr
    assert re.search("[a-z]{2}", done.stdout)
