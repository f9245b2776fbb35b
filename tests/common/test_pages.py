"""Pages given back to the system: zeros that take no memory, with their neighbours left alone."""

import errno
import mmap
import sys

import numpy as np
import pytest
from resident import resident

from packlight.common import pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes pages back")
PAGE = mmap.PAGESIZE


@pytest.mark.parametrize(("before", "size"), [(0, 64 * PAGE), (100, 64 * PAGE), (100, 5 * PAGE + 7), (PAGE - 1, 2)])
def test_whole_pages_become_zeros_and_the_rest_stays(before, size):
    memory = np.full(80 * PAGE, 7, np.uint8)
    aligned = memory[-memory.ctypes.data % PAGE :]
    pages.give_back(aligned.ctypes.data + before, size)
    first, end = -(-before // PAGE) * PAGE, (before + size) // PAGE * PAGE
    if first < end:
        assert resident(aligned[first:end]) == 0
        assert not aligned[first:end].any()
    assert (aligned[:first] == 7).all()
    assert (aligned[max(first, end) :] == 7).all()
    aligned[first + 5] = 3
    assert aligned[first + 5] == 3


def test_this_system_takes_pages_back():
    assert pages.refusal() is None


def test_a_refusal_has_its_reason(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pages, "_madvise", lambda *_: errno.EINVAL)
        assert pages.refusal.__wrapped__() == "the system takes back no pages: [Errno 22] Invalid argument"
        patch.setattr(pages, "_madvise", lambda *_: 0)  # as emulators do that take it for mere advice
        assert pages.refusal.__wrapped__() == "the system's pages given back are no zeros"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert pages.refusal.__wrapped__() == "darwin takes back no pages of allocated memory"
