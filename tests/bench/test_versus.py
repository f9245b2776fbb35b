"""Two checkouts in turn: the order of a pair, the ratios, and the process that stands for a checkout."""

import pathlib
import sys

import pytest
from ggufs import NOISE, write_llama

from packlight.bench import versus
from packlight.bench.machine import ROOT


def test_who_comes_second_comes_first_in_the_next_pair():
    asked = []

    def seconds(side):
        asked.append(side)
        return {"base": 2.0, "this": 1.0}[side]

    assert versus.in_turn(3, seconds) == [(2.0, 1.0)] * 3
    assert asked == ["this", "base", "base", "this", "this", "base"]


def test_a_line_says_how_many_times_as_fast_this_one_is():
    pairs = [(0.03, 0.01), (0.02, 0.01), (0.02, 0.01), (0.01, 0.01)]
    assert versus.line("tg32", pairs).split() == ["tg32", "20.00", "10.00", "2.000", "2.000", "to", "2.000"]


def test_a_checkout_runs_its_own_code(tmp_path):
    """One process, that of this checkout; the ratio of the same code to itself is nobody's to judge."""
    model = str(write_llama(tmp_path / "m.gguf", **NOISE))
    with versus.Checkout("this", ROOT, model, 64) as checkout:
        answer = checkout.ask(do="run", prompt=[5, 6, 7], tokens=3)
    assert checkout.start_s > 0
    assert min(answer["first_s"], answer["rest_s"]) > 0


def test_a_folder_that_is_no_checkout_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["versus", "--model=m.gguf", f"--base={tmp_path}"])
    with pytest.raises(SystemExit, match="2"):
        versus.main()
    assert capsys.readouterr().err == f"error: base: {pathlib.Path(tmp_path) / 'src'} holds no packlight\n"
