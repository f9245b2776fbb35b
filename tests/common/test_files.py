"""Files that appear whole or not at all: what stays when a process ends well, fails, is stopped or is killed."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from packlight.common.cleanup import undo_all
from packlight.common.files import remove_abandoned, scratch_folder, whole_file
from packlight.common.text import reason


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "f"
    with whole_file(str(path), 0o600) as partial:
        pathlib.Path(partial).write_text("all of it")
        assert not path.exists()
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("all of it", 0o600)
    with pytest.raises(KeyError), whole_file(str(tmp_path / "g")):
        raise KeyError
    with pytest.raises(FileNotFoundError), whole_file(str(tmp_path / "absent" / "h")):
        pass
    assert os.listdir(tmp_path) == ["f"]


def test_a_signals_handler_undoes_what_is_under_way_and_nothing_else(tmp_path):
    with whole_file(str(tmp_path / "done")):
        pass

    def use() -> None:
        with whole_file(str(tmp_path / "a")), scratch_folder(str(tmp_path), "b") as folder:
            pathlib.Path(folder, "c").touch()
            assert len(os.listdir(tmp_path)) == 3
            undo_all()
            assert os.listdir(tmp_path) == ["done"]

    with pytest.raises(FileNotFoundError):  # nothing is left to take the name
        use()
    undo_all()
    assert os.listdir(tmp_path) == ["done"]


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(tmp_path):
    code = """
import sys, time
from packlight.common.files import scratch_folder, whole_file
with whole_file(sys.argv[1] + "/a"), scratch_folder(sys.argv[1], "b"):
    print(flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    mine = tmp_path / "a.0123456z.tmp"  # not of ours by its name
    mine.touch()
    assert len(os.listdir(tmp_path)) == 3
    remove_abandoned(str(tmp_path))
    assert len(os.listdir(tmp_path)) == 3
    process.send_signal(signal.SIGKILL)
    process.communicate()
    remove_abandoned(str(tmp_path), "b")
    assert len(os.listdir(tmp_path)) == 2
    with whole_file(str(tmp_path / "a")):
        assert len(os.listdir(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == ["a", mine.name]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("4096 requested and 0 written"), "4096 requested and 0 written"),
        (OSError(), "OSError"),
        (ValueError("one\ntwo\x1b"), "one"),
    ],
)
def test_every_error_has_a_reason(error, words):
    assert reason(error) == words
