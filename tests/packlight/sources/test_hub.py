"""Models from a hub on loopback: cut, slow, damaged, refused and absent ones, and the library's cache afterwards."""

import contextlib
import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import huggingface_hub
import pytest
from ggufs import typed, write_gguf, write_llama
from hub_server import TOKEN, Repo, serving
from huggingface_hub import constants
from running import COMMAND, packlight, succeed

import packlight as packlight_api
from packlight.common.errors import ConfigError, DownloadError, MissingFileError
from packlight.model.gguf.reader import open_gguf, read_tensor
from packlight.sources import download, hub
from packlight.sources.find import find
from packlight.sources.hub import fetch
from packlight.sources.names import HubName

BYTES = bytes(range(256)) * 4096  # 1 MiB; what is in a file is nobody's business until it is opened
PIECE = 1 << 16


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", layers=1, embed=32, vocab=270)


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A home without models, caches and tokens."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for name, value in {
        "HF_TOKEN_PATH": str(tmp_path / "hf" / "token"),
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(download, "CHUNK", PIECE)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    return tmp_path


@pytest.fixture
def server(at_home, monkeypatch):
    """A hub with a repository o/r, which processes of this test ask too."""
    with serving() as running:
        point_to(running.url, monkeypatch)
        running.repos["o/r"] = Repo({"README.md": b"a card", "m-Q4_K_M.gguf": BYTES, "m-Q8_0.gguf": BYTES + b"8"})
        yield running


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def fetched(text: str) -> tuple[hub.Fetched, list[str]]:
    """What is fetched, and what is said."""
    lines: list[str] = []
    return fetch(HubName.parse(text), lines.append), lines


def blobs(home: pathlib.Path) -> dict[str, int]:
    """Names and sizes of what o/r has in the cache."""
    return {path.name: path.stat().st_size for path in (home / "hf/hub/models--o--r/blobs").iterdir()}


def one_error(done: "subprocess.CompletedProcess[str]") -> str:
    """The line of a mistake, behind which nothing comes."""
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_a_model_is_downloaded_once_into_the_librarys_cache(server, at_home):
    found, lines = fetched("hf:o/r")
    commit = server.repos["o/r"].commit("main")
    assert pathlib.Path(found.paths[0]).read_bytes() == BYTES
    assert found.bytes == found.downloaded == len(BYTES)
    assert lines == [
        f"hf:o/r: m-Q4_K_M.gguf; commit {commit[:12]}, 1.0 MB, to be downloaded to {at_home}/hf/hub;"
        " what has come is kept if it is interrupted"
    ]
    again, lines = fetched("hf:o/r")
    assert again.paths == found.paths
    assert again.downloaded == 0
    assert lines == [f"hf:o/r: m-Q4_K_M.gguf; commit {commit[:12]}, 1.0 MB, here already"]
    assert len(server.transfers()) == 1
    # the library finds it, offline too, and its own scan has nothing to say against the folder
    own = huggingface_hub.hf_hub_download("o/r", "m-Q4_K_M.gguf", cache_dir=at_home / "hf/hub", local_files_only=True)
    assert own == found.paths[0]
    scanned = huggingface_hub.scan_cache_dir(at_home / "hf/hub")
    assert not scanned.warnings
    assert [(repo.repo_id, repo.nb_files) for repo in scanned.repos] == [("o/r", 1)]


def test_what_another_program_downloaded_is_not_downloaded_again(server, at_home):
    huggingface_hub.hf_hub_download("o/r", "m-Q8_0.gguf", cache_dir=at_home / "hf/hub")
    transfers = len(server.transfers())
    assert fetched("hf:o/r:q8_0")[0].downloaded == 0
    assert len(server.transfers()) == transfers


def test_a_new_commit_is_downloaded_and_one_can_be_named(server):
    first, _ = fetched("hf:o/r")
    server.repos["o/r"].update({"m-Q4_K_M.gguf": BYTES + b"new"})
    second, _ = fetched("hf:o/r")
    assert second.commit != first.commit
    assert pathlib.Path(second.paths[0]).read_bytes() == BYTES + b"new"
    server.repos["o/r"].update({"m-Q8_0.gguf": BYTES}, "v2")
    assert fetched(f"hf:o/r@{first.commit}")[0].paths == first.paths
    assert fetched("hf:o/r@v2")[0].files == ("m-Q8_0.gguf",)
    assert fetched("hf:o/r")[0].paths == second.paths


def test_a_file_that_a_new_commit_has_too_is_linked(server):
    fetched("hf:o/r")
    server.repos["o/r"].update({"m-Q4_K_M.gguf": BYTES, "more.txt": b"x"})
    again, _ = fetched("hf:o/r")
    assert again.downloaded == 0
    assert pathlib.Path(again.paths[0]).read_bytes() == BYTES


def test_the_checked_blob_is_linked_whatever_the_headers_say(server, at_home):
    """The library names blobs by the header, and would transfer the file again without a check."""
    server.etag = "0" * 64
    path = pathlib.Path(fetched("hf:o/r")[0].paths[0])
    assert os.readlink(path) == f"../../blobs/{server.repos['o/r'].digest(BYTES)}"
    assert path.read_bytes() == BYTES
    assert len(server.transfers()) == len(blobs(at_home)) == 1


def test_where_links_are_not_possible_it_is_a_copy(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    path = pathlib.Path(fetched("hf:o/r")[0].paths[0])
    assert not path.is_symlink()
    assert path.read_bytes() == BYTES
    assert [each.name for each in path.parent.iterdir()] == ["m-Q4_K_M.gguf"]


def test_a_link_whose_blob_is_gone_is_made_anew(server):
    path = pathlib.Path(fetched("hf:o/r")[0].paths[0])
    path.resolve().unlink()
    assert fetched("hf:o/r")[0].downloaded == len(BYTES)
    assert path.read_bytes() == BYTES


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
def test_a_cut_connection_is_made_anew_from_where_it_was(server, reset):
    server.cuts, server.reset = [3 * PIECE, 2 * PIECE], reset
    server.pace = 0.005 if reset else 0.0  # a reset throws away what has not been read
    found, _ = fetched("hf:o/r")
    assert pathlib.Path(found.paths[0]).read_bytes() == BYTES
    assert found.downloaded == len(BYTES)
    assert server.transfers()[0] is None
    starts = [int(each.removeprefix("bytes=").removesuffix("-")) for each in server.transfers()[1:]]
    assert starts == sorted(starts)
    assert 0 < starts[0] <= 3 * PIECE


def test_an_interrupted_download_goes_on_in_the_next_run(server, at_home):
    server.cuts = [5 * PIECE, *[0] * download.TRIES, 0]
    error = one_error(packlight("pull", "hf:o/r"))
    assert "m-Q4_K_M.gguf: " in error
    assert "what has come is kept, and the same command goes on from there" in error
    assert list(blobs(at_home).values()) == [5 * PIECE]
    server.cuts.clear()
    done = succeed("pull", "hf:o/r")
    assert "m-Q4_K_M.gguf: going on at 0.3 MB of 1.0 MB" in done.stderr
    assert server.transfers()[-1] == f"bytes={5 * PIECE}-"
    assert pathlib.Path(done.stdout.strip()).read_bytes() == BYTES
    assert not [name for name in blobs(at_home) if name.endswith(".incomplete")]


def test_a_hub_that_is_tired_for_a_while_is_asked_again(server):
    server.refusals = [429, 503]
    assert pathlib.Path(fetched("hf:o/r")[0].paths[0]).read_bytes() == BYTES
    server.refusals = [503] * 6
    assert "/o/r is refused: 503 the hub is tired" in one_error(packlight("pull", "hf:o/r:Q8_0"))
    assert not server.refusals
    server.refusals = [403]
    assert "/o/r is refused: 403 the hub is tired" in one_error(packlight("pull", "hf:o/r:Q8_0"))


def test_a_hub_that_sends_nothing_is_given_up(server, monkeypatch):
    monkeypatch.setattr(Repo, "digest", lambda self, content: "0" * 64)
    monkeypatch.setattr("hub_server._Handler.content", lambda *_: b"")
    with pytest.raises(DownloadError, match=r"m-Q4_K_M\.gguf: the hub sends less of it than it states"):
        fetched("hf:o/r")


def test_a_hub_that_sends_more_is_stopped(server, at_home):
    server.excess = BYTES * 8
    error = one_error(packlight("pull", "hf:o/r"))
    assert error.endswith("m-Q4_K_M.gguf: the hub sends more of it than it states; what came is removed")
    assert list(blobs(at_home).values()) == [0]
    server.excess = b""
    assert pathlib.Path(fetched("hf:o/r")[0].paths[0]).read_bytes() == BYTES


def test_a_hub_that_sends_no_parts_sends_all_again(server):
    server.cuts, server.ranges = [5 * PIECE], False
    assert pathlib.Path(fetched("hf:o/r")[0].paths[0]).read_bytes() == BYTES


def test_more_than_the_file_has_is_not_continued(server, at_home):
    digest = server.repos["o/r"].digest(BYTES)
    partial = at_home / "hf/hub/models--o--r/blobs" / f"{digest}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(BYTES + b"and more")
    assert pathlib.Path(fetched("hf:o/r")[0].paths[0]).read_bytes() == BYTES


@pytest.mark.parametrize(("lfs", "kind"), [(True, "sha256"), (False, "git's sha1")])
def test_damage_is_found_and_what_came_is_removed(server, at_home, lfs, kind):
    repo = server.repos["o/r"] = Repo({"m-Q4_K_M.gguf": BYTES}, lfs=lfs)
    server.damage = True
    error = one_error(packlight("pull", "hf:o/r"))
    assert f"m-Q4_K_M.gguf: it came damaged: its {kind} is " in error
    assert repo.digest(BYTES) in error
    assert not blobs(at_home)
    server.damage = False
    assert pathlib.Path(fetched("hf:o/r")[0].paths[0]).read_bytes() == BYTES


def test_damage_in_what_was_kept_is_found(server, at_home):
    digest = server.repos["o/r"].digest(BYTES)
    partial = at_home / "hf/hub/models--o--r/blobs" / f"{digest}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"another file's bytes")
    with pytest.raises(DownloadError, match="it came damaged"):
        fetched("hf:o/r")
    assert pathlib.Path(fetched("hf:o/r")[0].paths[0]).read_bytes() == BYTES


def test_ctrl_c_leaves_what_came_and_one_line(server, at_home):
    content = BYTES * 8
    server.repos["o/r"] = Repo({"m-Q4_K_M.gguf": content})
    server.pace = 0.02  # 3 MB/s
    folder = at_home / "hf/hub/models--o--r/blobs"
    process = subprocess.Popen([*COMMAND, "pull", "hf:o/r"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder.is_dir() and any(path.stat().st_size for path in folder.glob("*.incomplete"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert text == ""
    named, *last = filter(None, errors.splitlines())
    assert named.endswith("what has come is kept if it is interrupted")
    assert last == ["interrupted"]
    (kept,) = blobs(at_home).values()
    server.pace = 0
    done = succeed("pull", "hf:o/r", own_process=True)
    assert f"going on at {kept / 1e6:.1f} MB of 8.4 MB" in done.stderr
    assert server.transfers()[-1] == f"bytes={kept}-"
    assert pathlib.Path(done.stdout.strip()).read_bytes() == content


def test_two_that_want_the_same_file_download_it_once(server):
    server.pace = 0.1
    found, lines = [], []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(HubName.parse("hf:o/r"), lines.append))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.transfers()) == 1
    assert sorted(each.downloaded for each in found) == [0, len(BYTES)]
    assert "m-Q4_K_M.gguf: another process downloads it; waiting for that" in lines


def test_a_full_disk_is_told_before_and_while_it_fills(server, at_home, monkeypatch):
    usage = download.shutil.disk_usage(at_home)
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        error = one_error(packlight("pull", "hf:o/r"))
    assert "hf:o/r: 1.0 MB are to come, and " in error
    assert "models--o--r/blobs has room for 0.0 MB" in error
    assert not server.transfers()
    limit = ["bash", "-c", 'ulimit -f 600; exec "$@"', "bash"]  # KiB; a write beyond them fails as on a full disk
    server.repos["o/r"] = Repo({"m-Q4_K_M.gguf": BYTES * 12})
    done = subprocess.run([*limit, *COMMAND, "pull", "hf:o/r"], capture_output=True, text=True, check=False)
    error = one_error(done)
    assert f"m-Q4_K_M.gguf: {os.strerror(errno.EFBIG)}; what has come is kept" in error


def test_a_cache_that_cannot_be_written_is_named(server, at_home):
    (at_home / "hf").mkdir()
    (at_home / "hf/hub").write_text("a file in the cache's place")
    assert f"hf:o/r: {at_home}/hf/hub" in one_error(packlight("pull", "hf:o/r"))


def split(path: pathlib.Path, folder: pathlib.Path, count: int) -> dict[str, bytes]:
    """A model in parts, as gguf-split makes them: name -> content."""
    whole, parts = open_gguf(path), {}
    tensors = list(whole.tensors.items())
    for i in range(count):
        pairs = {"split.no": ("u16", i), "split.count": ("u16", count), "split.tensors.count": ("i32", len(tensors))}
        if i == 0:
            pairs |= {key: typed(value) for key, value in whole.metadata.items()}
        held = {name: (info.shape, info.format, read_tensor(info)) for name, info in tensors[i::count]}
        name = f"m-Q8_0-{i + 1:05d}-of-{count:05d}.gguf"
        parts[name] = write_gguf(folder / name, pairs, held).read_bytes()
    return parts


def test_all_parts_of_a_split_model_come_and_open(server, tiny, tmp_path):
    server.repos["o/r"] = Repo(split(tiny, tmp_path, 3))
    found, lines = fetched("hf:o/r")
    assert "m-Q8_0-00001-of-00003.gguf and 2 more parts, as there is no Q4_K_M; " in lines[0]
    file = open_gguf(found.paths[0])
    assert file.tensors.keys() == open_gguf(tiny).tensors.keys()
    assert found.bytes == file.file_bytes == found.downloaded


TROUBLE = [
    ("hf:o/none", None, "there is no repository o/none, or it is private: then set HF_TOKEN, or run `hf auth login`"),
    ("hf:o/none", TOKEN, "there is no repository o/none, or your token does not open it"),
    ("hf:o/private", None, "there is no repository o/private, or it is private"),
    ("hf:o/gated", None, r"hf:o/gated is gated: accept its terms at http://.*/o/gated, then set HF_TOKEN"),
    ("hf:o/gated", "hf_other", "there is no repository o/gated, or your token does not open it"),
    ("hf:o/r@v9", None, "o/r has no revision 'v9'"),
    ("hf:o/r:Q5_K_M", None, "the repository has no Q5_K_M; it has: Q4_K_M, Q8_0"),
    ("hf:o/bare", None, "the repository has no GGUF model; what it has: README.md, model.safetensors"),
    ("hf:o/a--b", None, "o/a--b cannot be the name of a repository"),
    ("hf:nobody", None, "a model on Hugging Face is named hf:OWNER/REPO"),
]


@pytest.mark.parametrize(("name", "token", "said"), TROUBLE)
def test_what_cannot_be_had_is_one_line(server, monkeypatch, name, token, said):
    files = {"m-Q4_K_M.gguf": BYTES}
    server.repos |= {"o/private": Repo(files, "private"), "o/gated": Repo(files, "gated")}
    server.repos["o/bare"] = Repo({"README.md": b"", "model.safetensors": b""})
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    done = packlight("pull", name)
    error = one_error(done)
    assert error.startswith(f"error: {name}")
    assert re.search(said, error)


def test_tokens_are_the_librarys_and_go_to_the_hub_alone(server, at_home, monkeypatch):
    server.repos["o/gated"] = Repo({"m-Q4_K_M.gguf": BYTES}, "gated")
    server.repos["o/private"] = Repo({"m-Q4_K_M.gguf": BYTES}, "private")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetched("hf:o/gated")
    monkeypatch.delenv("HF_TOKEN")
    (at_home / "hf").mkdir(exist_ok=True)
    (at_home / "hf/token").write_text(TOKEN)  # as `hf auth login` leaves it
    fetched("hf:o/private")
    assert len(server.transfers()) == 2
    for _, host, path, _, token in server.requests:
        assert token == (None if path.startswith("/cdn/") else TOKEN), path
        assert host.startswith("localhost:" if path.startswith("/cdn/") else "127.0.0.1:")


def offline(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return "offline mode is on (HF_HUB_OFFLINE)"


def nobody_there(server, monkeypatch):
    point_to("http://127.0.0.1:9", monkeypatch)
    return "127.0.0.1:9 cannot be reached ("


def no_such_host(server, monkeypatch):
    point_to("http://hub.invalid", monkeypatch)
    return "hub.invalid cannot be reached ("


def silent(server, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    server.silent = 0.5
    return " cannot be reached (timed out)"


def tired(server, monkeypatch):
    server.status = 503
    return " answers with an error (503)"


@pytest.mark.parametrize("trouble", [offline, nobody_there, no_such_host, silent, tired])
def test_without_a_hub_the_cache_serves(server, monkeypatch, trouble):
    here, _ = fetched("hf:o/r")
    why = trouble(server, monkeypatch)
    for name in ("hf:o/r", "hf:o/r:q4_k_m", f"hf:o/r@{here.commit}:m-Q4_K_M.gguf"):
        found, lines = fetched(name)
        assert found.paths == here.paths
        assert len(lines) == 1
        assert f"{name}: m-Q4_K_M.gguf; commit {here.commit[:12]}, 1.0 MB, from the cache: " in lines[0]
        assert why in lines[0]
    error = one_error(packlight("pull", "hf:o/r:Q8_0"))
    assert why in error
    assert "and the cache has no Q8_0; it has: Q4_K_M" in error
    error = one_error(packlight("pull", "hf:o/other"))
    assert why in error
    assert "and the cache has no GGUF model" in error


def test_a_name_that_offline_lacks_a_part_is_refused(server, tiny, tmp_path, monkeypatch):
    server.repos["o/r"] = Repo(split(tiny, tmp_path, 2))
    found, _ = fetched("hf:o/r")
    offline(server, monkeypatch)
    pathlib.Path(found.paths[1]).unlink()
    with pytest.raises(MissingFileError, match=r"has not all parts of .*: m-Q8_0-00002-of-00002\.gguf missing"):
        fetched("hf:o/r")


def test_variables_are_heard_by_a_process_of_its_own(server):
    succeed("pull", "hf:o/r", own_process=True)
    done = succeed("pull", "hf:o/r", HF_HUB_OFFLINE="1")
    assert "from the cache: offline mode is on" in done.stderr
    assert done.stdout.endswith("m-Q4_K_M.gguf\n")


@pytest.mark.parametrize(
    ("status", "page", "said"),
    [
        (0, b"<html>Welcome to our hotel</html>", "does not answer as a hub does; is there a proxy"),
        (0, b"[]", "does not answer as a hub does"),
        (0, b'{"id": "o/r"}', "states no commit"),
        (429, b"", r"http://127.0.0.1:\d+/o/r is refused: 429 the hub is tired"),
        (403, b"", r"http://127.0.0.1:\d+/o/r is refused: 403 the hub is tired"),
    ],
)
def test_answers_that_are_none(server, status, page, said):
    server.status, server.page = status, page
    with pytest.raises(DownloadError, match=said):
        fetched("hf:o/r")


SIBLING = {"rfilename": "m-Q4_K_M.gguf", "size": 5, "blobId": "0" * 40}


@pytest.mark.parametrize(
    "wrong",
    [
        {"rfilename": 5},
        {"size": "5"},
        {"blobId": 7},
        {"lfs": {"size": "5", "sha256": "0" * 64, "pointerSize": 1}},
        {"lfs": {"size": None, "sha256": "0" * 64, "pointerSize": 1}},
        {"lfs": {"size": 5, "sha256": None, "pointerSize": 1}},
    ],
)
def test_values_of_a_wrong_type_are_no_answer(server, wrong):
    about = {"_id": "1", "id": "o/r", "modelId": "o/r", "sha": "0" * 40, "siblings": [SIBLING | wrong], "tags": []}
    server.page = json.dumps(about).encode()
    with pytest.raises(DownloadError, match="does not answer as a hub does"):
        fetched("hf:o/r")


def test_certificates_that_are_not_there_are_no_token(server):
    done = packlight("pull", "hf:o/r", own_process=True, SSL_CERT_FILE="/nonexistent")
    assert one_error(done).startswith("error: hf:o/r: the hub cannot be asked: ")


def test_a_hub_names_no_files_elsewhere(server, monkeypatch):
    elsewhere = dict.fromkeys(
        ("../../../../m-Q4_K_M.gguf", "/m-Q4_K_M.gguf", "a/../../m-Q4_K_M.gguf", "m\0-Q4_K_M.gguf"), BYTES
    )
    server.repos["o/r"].update(elsewhere | {"x-Q8_0.gguf": BYTES})
    assert fetched("hf:o/r")[0].files == ("x-Q8_0.gguf",)
    server.repos["o/r"].update({"y-Q8_0.gguf": BYTES + b"y"})
    monkeypatch.setattr(Repo, "digest", lambda self, content: "../" * 20 + "home")
    with pytest.raises(DownloadError, match=r"y-Q8_0\.gguf: the hub states no checksum"):
        fetched("hf:o/r")


def test_a_file_too_large_for_http_says_how_it_comes(server, monkeypatch):
    monkeypatch.setattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", 1000)
    with pytest.raises(DownloadError, match=r"m-Q4_K_M.gguf: 1.0 MB are more than the hub sends; `hf download`"):
        fetched("hf:o/r")


@pytest.mark.parametrize("absent", ["huggingface_hub", "httpx2"])
def test_without_the_extra_one_line_says_what_to_install(monkeypatch, absent):
    monkeypatch.setitem(sys.modules, absent, None)
    for arguments in (["pull", "hf:o/r"], ["inspect", "--model=hf:o/r"], ["hf:o/r", "-p", "x"]):
        assert "hf:o/r needs the extra 'hub': pip install \"packlight[hub]\"" in one_error(packlight(*arguments))
    with pytest.raises(ConfigError, match="needs the extra 'hub'"):
        packlight_api.prepare("hf:o/r")


def test_a_name_serves_wherever_a_path_does(server, tiny, capfd):
    server.repos["o/r"] = Repo({"tiny-Q8_0.gguf": tiny.read_bytes()})
    said = "hf:o/r: tiny-Q8_0.gguf, as there is no Q4_K_M; commit "
    assert packlight_api.prepare("hf:o/r").tokenizer.vocab_size == 270
    assert said in capfd.readouterr().err
    assert packlight_api.inspect("hf:o/r")["path"].endswith(
        "snapshots/" + server.repos["o/r"].commit("main") + "/tiny-Q8_0.gguf"
    )
    assert said in capfd.readouterr().err
    with pytest.raises(packlight_api.ChatTemplateError, match="tiny-Q8_0.gguf"):
        packlight_api.render_chat("hf:o/r", [{"role": "user", "content": "Hi"}])
    done = succeed("inspect", "hf:o/r", "--json")
    assert done.stderr.count(said) == 1


def test_paths_stay_paths(tiny):
    assert find(tiny) is tiny
    assert find("no/such.gguf") == "no/such.gguf"
    with pytest.raises(ConfigError, match="no model is read from a URL; name it hf:OWNER/REPO"):
        find("https://huggingface.co/o/r/blob/main/m.gguf")


def test_every_command_takes_a_name(server, tmp_path):
    """Each is refused for what the file holds, so each has got it; none says twice which file it is."""
    bad = write_llama(tmp_path / "bad.gguf", layers=1, embed=32, vocab=270, extra={"general.architecture": "martian"})
    server.repos["o/r"] = Repo({"bad-Q8_0.gguf": bad.read_bytes()})
    text = tmp_path / "text"
    text.write_text("a text")
    for arguments in (
        ["hf:o/r", "--prompt=x"],
        ["generate", "-m", "hf:o/r", "--prompt=x"],
        ["chat", "hf:o/r"],
        ["embed", "hf:o/r", "--prompt=x"],
        ["compile", "hf:o/r"],
        ["perplexity", "hf:o/r", f"--file={text}"],
        ["bench", "hf:o/r"],
        ["quantize", "hf:o/r", "--type=Q4_K_M"],
    ):
        done = packlight(*arguments)
        assert "bad-Q8_0.gguf: key 'general.architecture': unknown architecture 'martian'" in one_error(done), arguments
        assert done.stderr.count("; commit ") == 1, arguments


def test_quantize_writes_beside_nothing_but_where_it_is_called(server, tmp_path, monkeypatch):
    floats = write_llama(tmp_path / "f.gguf", layers=1, embed=256, vocab=270, formats={"default": "F32"})
    server.repos["o/r"] = Repo({"f-F32.gguf": floats.read_bytes()})
    monkeypatch.setattr("running.ELSEWHERE", tmp_path)
    succeed("quantize", "hf:o/r", "--type=Q8_0")
    assert (tmp_path / "f-F32-Q8_0.gguf").exists()


def test_a_name_without_its_beginning_is_told_how():
    for arguments in (["inspect", "Qwen/Qwen3-0.6B-GGUF:Q8_0"], ["Qwen/Qwen3-0.6B-GGUF:Q8_0", "-p", "x"]):
        error = one_error(packlight(*arguments))
        assert error.endswith("no such file; did you mean 'hf:Qwen/Qwen3-0.6B-GGUF:Q8_0'?")


def test_what_bars_are_told(server):
    """Title, total and what came, for the bytes and for the checksum; each ends."""
    bars = []

    class Shown(contextlib.AbstractContextManager):
        def __init__(self, **about):
            self.about, self.done, self.ended = about, about["initial"], False
            bars.append(self)

        def update(self, amount):
            self.done += amount

        def __exit__(self, *_):
            self.ended = True

    fetch(HubName.parse("hf:o/r"), lambda line: None, Shown)
    assert [bar.about["desc"] for bar in bars] == ["m-Q4_K_M.gguf", "checksum"]
    assert all(bar.done == bar.about["total"] == len(BYTES) and bar.ended for bar in bars)
