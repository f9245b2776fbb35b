"""A run of the tests that takes more processor time than its budget fails."""

import os
import types

import pytest
from processor import Processor, seconds, seconds_of


@pytest.mark.parametrize(("budget", "ended"), [(None, 0), (1e9, 0), (0.001, 1)])
def test_too_much_is_a_failure(budget, ended):
    session = types.SimpleNamespace(config=types.SimpleNamespace(), exitstatus=0)
    Processor(budget).pytest_sessionfinish(session)
    assert session.exitstatus == ended


def test_workers_count():
    session = types.SimpleNamespace(config=types.SimpleNamespace(), exitstatus=0)
    processor = Processor(1e6)
    worker = types.SimpleNamespace(config=types.SimpleNamespace(workeroutput={}))
    Processor(1e6).pytest_sessionfinish(worker)  # a worker tells what it spent, and judges nothing
    assert 0 < worker.config.workeroutput["processor"] <= seconds()
    processor.pytest_testnodedown(types.SimpleNamespace(workeroutput={"processor": 6e5}))
    processor.pytest_testnodedown(types.SimpleNamespace(workeroutput={"processor": 6e5}))
    processor.pytest_sessionfinish(session)
    assert session.exitstatus == 1


def test_time_of_another_process():
    assert 0 < seconds_of(os.getpid()) <= seconds() + 0.1
