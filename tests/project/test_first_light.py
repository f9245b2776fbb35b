"""The script for the first run on a GPU: a rename breaks it here, not there. Its programs run on a CPU, small."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from ggufs import write_llama
from running import write_config

from tools.first_light import common, counters, products, step, values

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "first_light.sh"
TEXT = SCRIPT.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    """The folder of results."""
    monkeypatch.setenv("OUT", str(tmp_path))
    return tmp_path


def test_what_the_script_names_exists():
    programs = {path.stem for path in (ROOT / "tools" / "first_light").glob("*.py")} - {"__init__", "common"}
    assert set(re.findall(r"(?: program |-m tools\.first_light\.)(\w+)", TEXT)) == programs
    for name in re.findall(r"-m (packlight[\w.]*)", TEXT):
        assert importlib.util.find_spec(name) is not None, name
    for name in re.findall(r"\b(?:tests|demo|tools)/[\w/.-]+\.\w+", TEXT):
        assert (ROOT / name).exists(), name


def run(folder, *steps):
    environment = os.environ | {"REHEARSE": "1", "PYTHON": sys.executable, "OUT": str(folder), "TMPDIR": str(folder)}
    return subprocess.run(
        ["bash", str(SCRIPT), *steps],
        cwd=ROOT,
        env={name: value for name, value in environment.items() if name != "PYTHONPATH"},  # which the script sets
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_step_is_rehearsed_where_nothing_is_installed(out):
    done = run(out, "facts")
    assert done.returncode == 0, done.stderr
    assert "facts: exit 0" in (out / "steps.txt").read_text()
    assert '"read_gb_s"' in (out / "log.txt").read_text()


def test_an_unknown_step_is_one_line_that_lists_them(out):
    done = run(out, "fact")
    assert done.returncode == 2
    assert re.fullmatch(r"error: no step fact; there are: facts values .* tests\n", done.stderr)


def test_values(out):
    made = [values.product("Q4_K", 3, jnp.bfloat16, 40, 256), values.product("Q8_0", 1, jnp.float32, 24, 256)]
    scores = values.Scores(jnp.int32(30), 5.0, jnp.zeros(4))
    made += [
        values.attend(64, 2, jnp.bfloat16, scores, 5, 40),
        values.attend(64, 2, jnp.bfloat16, values.Scores(), 1, 50),
    ]
    assert all(case["ok"] and case["same"] for case in made), made
    assert {case for case, _ in values.products() + values.attentions()} == {values.product, values.attend}


def test_a_case_that_fails_is_said_and_the_others_go_on(out, monkeypatch, capsys):
    jobs = [(values.product, ("Q4_K", 1, jnp.float32, 24, 256)), (values.product, ("Q0_K", 1, jnp.float32, 24, 256))]
    monkeypatch.setattr(values, "products", lambda: jobs)
    monkeypatch.setattr(values, "attentions", list)
    with pytest.raises(SystemExit, match="True"):
        values.main()
    assert "<-- FAILED" in capsys.readouterr().out
    assert [case["ok"] for case in json.loads((out / "values.json").read_text())] == [True, False]


def test_wrong_values_are_seen(monkeypatch):
    """Twice the right product is wrong, and one that differs from run to run is said to."""
    right = values.matmul
    monkeypatch.setattr(values, "matmul", lambda *arguments: 2 * right(*arguments))
    made = values.product("Q4_K", 1, jnp.float32, 24, 256)
    assert not made["ok"]
    assert "<-- WRONG" in values.line_of(made)
    assert "<-- CHANGES FROM RUN TO RUN" in values.line_of(made | {"ok": True, "same": False})


def test_products_and_counters(out, monkeypatch, capsys):
    monkeypatch.setattr(products, "cases", lambda: [("Q4_K", 2, 64, 256)])
    products.main()
    (made,) = json.loads((out / "products.json").read_text())["results"]
    assert made["wall_us"] > 0
    monkeypatch.setattr(counters, "CASES", (("Q6_K", 1, 24, 256),))
    counters.main()
    assert re.search(r"^Q6_K 1 24 256 -?\d", capsys.readouterr().out, re.MULTILINE)


def test_a_decode_step_is_profiled(out, monkeypatch, capsys):
    write_llama(out / "m.gguf", formats={"default": "Q8_0"}, layers=1, embed=64, heads=4, kv_heads=2, ffn=64, vocab=300)
    config = write_config(out / "c.toml")
    monkeypatch.setattr(sys, "argv", ["step", str(out / "m.gguf"), str(config)])
    step.main()
    assert json.loads((out / "profile.json").read_text())["ms"] > 0
    assert "ms a token" in capsys.readouterr().out


def test_weights_are_blocks_of_the_format():
    blocks = common.weights("Q4_K", 8, 512, 0.1, seed=0)
    assert blocks.shape == (8, 2, 144)
    assert np.array_equal(common.packed(blocks, "Q4_K", "ggml"), blocks)
