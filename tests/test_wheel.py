"""The wheel holds everything: installed away from the checkout, it runs."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from ggufs import write_llama

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with nothing but the wheel's files; dependencies come from the running environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = folder / "source"  # pip builds in place and packs what an older build left there
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "build", "*.egg-info", "tests"))
    subprocess.run([*pip, "wheel", "--no-deps", f"--wheel-dir={folder}", str(source)], check=True)
    (wheel,) = folder.glob("packlight-*.whl")
    subprocess.run([*pip, "install", "--no-deps", f"--target={folder / 'site'}", str(wheel)], check=True)
    return folder / "site"


def test_the_console_script_generates_away_from_the_checkout(installed, tmp_path):
    model = write_llama(tmp_path / "model.gguf", layers=1)
    environment = {**os.environ, "PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, str(installed / "bin" / "packlight"), f"--model={model}"]
    config = tmp_path / "small.toml"
    config.write_text("prefill_buckets = [16]\ndecode_batch = [1]\ncontext = 64\n")
    done = subprocess.run(
        [*command, "--prompt=ab", "--max_tokens=3", "--temperature=0", f"--config={config}"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert "ended by" in done.stderr


def test_it_is_the_wheel_that_runs_and_configs_are_in_it(installed, tmp_path):
    code = "import packlight; print(packlight.__file__); [packlight.default_config(p) for p in ('cpu', 'gpu', 'tpu')]"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(installed / "packlight.py")
    assert (installed / "quant" / "native" / "handler.cc").exists()


def test_without_a_model_the_embedded_one_writes_text(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    config = tmp_path / "small.toml"
    config.write_text("prefill_buckets = [16]\ndecode_batch = [1]\ncontext = 64\n")
    done = subprocess.run(
        [sys.executable, str(installed / "bin" / "packlight"), "--max_tokens=8", f"--config={config}"],
        cwd=tmp_path, env=environment, input="", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "using the embedded demo model" in done.stderr
    assert re.search("[a-z]{2}", done.stdout)
    assert {path.suffix for path in (installed / "demo").iterdir()} >= {".gguf", ".md", ".png", ".txt"}
