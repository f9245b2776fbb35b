"""A run of the tests that takes more processor time than its budget fails."""

import os
import types

import processor as module
import pytest
from processor import COLD, Processor, seconds, seconds_of, slowness


@pytest.fixture(autouse=True)
def slow(monkeypatch):
    """A machine of the speed that budgets are for, or one that is slower by as much as is set."""
    monkeypatch.setattr(module, "slowness", lambda: 1.0)
    return lambda factor: monkeypatch.setattr(module, "slowness", lambda: factor)


@pytest.mark.parametrize(("budget", "ended"), [(None, 0), (1e9, 0), (0.001, 1)])
def test_too_much_is_a_failure(budget, ended, tmp_path):
    session = types.SimpleNamespace(config=types.SimpleNamespace(), exitstatus=0)
    Processor(budget, tmp_path / "kept").pytest_sessionfinish(session)
    assert session.exitstatus == ended


def test_a_first_run_may_take_longer_and_only_it(tmp_path):
    kept, budget = tmp_path / "cache" / "kept", seconds() / COLD * 1.5  # enough for a first run, too little for another
    for ended in (0, 1):
        session = types.SimpleNamespace(config=types.SimpleNamespace(), exitstatus=0)
        Processor(budget, kept).pytest_sessionfinish(session)
        assert session.exitstatus == ended


def test_a_slower_machine_may_take_longer(tmp_path, slow):
    budget = seconds() / COLD / 2  # half of what a first run has taken so far
    for factor, ended in ((1.0, 1), (3.0, 0)):
        slow(factor)
        session = types.SimpleNamespace(config=types.SimpleNamespace(), exitstatus=0)
        Processor(budget, tmp_path / str(factor)).pytest_sessionfinish(session)
        assert session.exitstatus == ended


def test_slowness_is_that_of_a_loop_and_at_least_1(monkeypatch):
    monkeypatch.setattr(module, "REFERENCE", 1e-3)
    assert slowness.__wrapped__() > 10  # it is measured once
    monkeypatch.setattr(module, "REFERENCE", 1e3)
    assert slowness.__wrapped__() == 1


def test_workers_count(tmp_path):
    session = types.SimpleNamespace(config=types.SimpleNamespace(), exitstatus=0)
    processor = Processor(1e6 / COLD, tmp_path / "kept")
    worker = types.SimpleNamespace(config=types.SimpleNamespace(workeroutput={}))
    Processor(1e6, tmp_path / "other").pytest_sessionfinish(worker)  # a worker tells what it spent, and judges nothing
    assert 0 < worker.config.workeroutput["processor"] <= seconds()
    processor.pytest_testnodedown(types.SimpleNamespace(workeroutput={"processor": 6e5}))
    processor.pytest_testnodedown(types.SimpleNamespace(workeroutput={"processor": 6e5}))
    processor.pytest_sessionfinish(session)
    assert session.exitstatus == 1


def test_time_of_another_process():
    assert 0 < seconds_of(os.getpid()) <= seconds() + 0.1
