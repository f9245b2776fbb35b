"""What a start costs before any model runs: processor time, as a busy machine would stretch a clock's."""

import os
import subprocess
import sys

import pytest
from ggufs import write_llama
from running import COMMAND, succeed

pytestmark = pytest.mark.shipped  # it measures time
NUMPY = 0.12  # seconds of importing numpy, where the bounds below were set; no start can take less


@pytest.fixture(autouse=True)
def _no_jax(tmp_path, monkeypatch):
    (tmp_path / "jax.py").write_text("raise ImportError('jax was imported')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def seconds(*command):
    """Processor time of a command and of what it starts."""
    before = os.times()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def scaled(*arguments):
    """The least of three runs, in seconds of a machine on which numpy is imported in NUMPY.

    Processor time too grows on a busy machine, whose programs share caches and cores: it was twice as much under a load
    of seven a core. Never scaled up.
    """
    pairs = [(seconds(*COMMAND, *arguments), seconds(sys.executable, "-c", "import numpy")) for _ in range(3)]
    return min(spent for spent, _ in pairs) * min(1, NUMPY / min(numpy for _, numpy in pairs))


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]])
def test_help(arguments):
    assert scaled(*arguments) < 0.3


def test_inspecting_a_large_vocabulary(tmp_path):
    """128,256 tokens and 280,147 merges, as Llama 3 has them: every string is read and the tokenizer is built."""
    merges = [f"{i:x} {i % 97:x}" for i in range(280_147)]
    keys = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.merges": merges}
    path = write_llama(tmp_path / "large.gguf", layers=1, embed=32, vocab=128_256, extra=keys)
    assert "[280147 elements: " in succeed("inspect", f"--model={path}", "--verbose").stdout
    assert scaled("inspect", f"--model={path}") < 1
