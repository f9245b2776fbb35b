"""One file from the hub into huggingface_hub's cache: from where an earlier download was cut, and checked.

huggingface_hub makes the requests, knows the tokens and lays out the cache. Its own transfer keeps no part of a
download that was cut, and of what came it compares the size only. So the bytes go into a file beside its blobs, which
becomes a blob when its checksum is the one that the hub states. A blob is not checked again.
"""

import contextlib
import functools
import hashlib
import http
import importlib.metadata
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, NamedTuple, TypedDict

from packlight.common.errors import DownloadError
from packlight.common.files import whole_file
from packlight.common.text import megabytes, shown, shown_path
from packlight.sources.places import hub_cache, repo_folder

CHUNK = 1 << 20  # bytes that are written at a time
TRIES = 5  # requests in turn that bring nothing, after the first
PAUSE = 1.0  # seconds before each of them
Say = Callable[[str], None]
MakeBar = Callable[..., Any]  # takes tqdm's desc, total, initial, unit and unit_scale; a context with `update`


class Library(TypedDict):
    """Arguments of huggingface_hub's functions."""

    library_name: str
    library_version: str


class Blob(NamedTuple):
    """A file of a commit as the hub states it. `digest`: its sha256, or git's sha1 of a file that is not in LFS."""

    file: str
    size: int
    digest: str


def print_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def plain_bar(**about: Any) -> Any:
    """A bar on stderr, and only if that is a terminal."""
    from tqdm import tqdm

    return tqdm(**about, leave=False, disable=None, file=sys.stderr)


def us() -> Library:
    """How requests say who makes them."""
    return {"library_name": "packlight", "library_version": importlib.metadata.version("packlight")}


def check_stated(blob: Blob) -> None:
    """Raises DownloadError for a checksum that is none, as it becomes the name of a file, and for a file too large."""
    from huggingface_hub import constants

    if len(blob.digest) not in (40, 64) or blob.digest.strip("0123456789abcdef"):
        raise DownloadError("the hub states no checksum")
    if blob.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        raise DownloadError(f"{megabytes(blob.size)} are more than the hub sends; `hf download` brings it to the cache")


def check_room(repo: str, blobs: Iterable[Blob]) -> None:
    """Raises DownloadError where the disk has no room for what is still to come."""
    folder, need = repo_folder(repo) / "blobs", 0
    folder.mkdir(parents=True, exist_ok=True)
    for blob in blobs:
        partial = _partial(folder, blob)
        if not (folder / blob.digest).exists():
            need += blob.size - (partial.stat().st_size if partial.exists() else 0)
    if need > (free := shutil.disk_usage(folder).free):
        raise DownloadError(
            f"{megabytes(need)} are to come, and {shown_path(str(folder))} has room for {megabytes(free)}"
        )


def download(repo: str, commit: str, blob: Blob, say: Say, bar: MakeBar) -> int:
    """Brings a file into the cache; returns how many bytes came. One process at a time downloads it.

    Raises DownloadError for damaged bytes, and what huggingface_hub, httpx and the system raise.
    """
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    folder, came = repo_folder(repo), 0
    lock = hub_cache() / ".locks" / folder.name / f"{blob.digest}.lock"
    whole, partial = folder / "blobs" / blob.digest, _partial(folder / "blobs", blob)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=1))
        except Timeout:
            say(f"{shown(blob.file)}: another process downloads it; waiting for that")
            stack.enter_context(WeakFileLock(lock))
        if not whole.exists():
            came = _transfer(repo, commit, blob, partial, say, bar)
            _check(blob, partial, bar)
            os.replace(partial, whole)
        _link(whole, folder / "snapshots" / commit / blob.file)
    return came


def _link(whole: pathlib.Path, place: pathlib.Path) -> None:
    """Puts a blob at a file's place in a commit, as huggingface_hub does. `hf_hub_download` would look for the blob
    under the ETag of the headers, and where that is another one transfer the file again, unchecked.
    """
    from huggingface_hub.file_download import are_symlinks_supported

    if place.exists():  # another process was first, and may have it open
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)  # a link to a blob that is gone
    if are_symlinks_supported(hub_cache()):
        place.symlink_to(os.path.relpath(whole, place.parent))
    else:
        with whole_file(str(place)) as copy:
            shutil.copyfile(whole, copy)


def _partial(folder: pathlib.Path, blob: Blob) -> pathlib.Path:
    return folder / f"{blob.digest}.incomplete"


def _transfer(repo: str, commit: str, blob: Blob, partial: pathlib.Path, say: Say, bar: MakeBar) -> int:
    """Appends to `partial` what it lacks; returns how many bytes came. A connection that is cut is made anew, and given
    up when TRIES in turn brought nothing.
    """
    import httpx2
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    url, vain = hf_hub_url(repo, blob.file, revision=commit), 0
    with open(partial, "ab") as out, contextlib.ExitStack() as stack:
        if out.tell() > blob.size:
            out.truncate(0)
            out.seek(0)
        if began := out.tell():
            say(f"{shown(blob.file)}: going on at {megabytes(began)} of {megabytes(blob.size)}")
        progress = stack.enter_context(_bar(bar, shown(blob.file.rpartition("/")[2]), blob.size, began))
        while (have := out.tell()) < blob.size:
            try:
                _append(url, blob.size, out, progress)
                failure = DownloadError("the hub sends less of it than it states")
            except httpx2.TransportError as error:
                failure = error
            except HfHubHTTPError as error:
                if error.response.status_code < 500 and error.response.status_code != http.HTTPStatus.TOO_MANY_REQUESTS:
                    raise
                failure = error
            vain = 0 if out.tell() > have else vain + 1
            if vain > TRIES:
                raise failure
            time.sleep(PAUSE if vain else 0)
        return out.tell() - began


def _append(url: str, size: int, out: BinaryIO, progress: Any) -> None:
    """One answer to the request for what `out` lacks of `size` bytes. A hub that sends no parts sends all of them.

    Raises DownloadError where more comes; then nothing is kept.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    have = out.tell()
    headers = build_hf_headers(**us()) | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        hf_raise_for_status(answer)
        if have and answer.status_code != http.HTTPStatus.PARTIAL_CONTENT:
            out.truncate(0)
            out.seek(0)
            progress.update(-have)
        for chunk in answer.iter_bytes(CHUNK):
            if out.tell() + len(chunk) > size:
                out.truncate(0)
                raise DownloadError("the hub sends more of it than it states; what came is removed")
            out.write(chunk)
            out.flush()  # a signal leaves what came
            progress.update(len(chunk))


def _bar(bar: MakeBar, title: str, total: int, done: int = 0) -> Any:
    return bar(desc=title, total=total, initial=done, unit="B", unit_scale=True)


def _check(blob: Blob, partial: pathlib.Path, bar: MakeBar) -> None:
    """Compares the checksum with the hub's. Raises DownloadError; a file that differs goes away."""
    in_lfs = len(blob.digest) == 64
    found = hashlib.sha256() if in_lfs else hashlib.sha1(b"blob %d\0" % blob.size)  # the latter is git's
    with open(partial, "rb") as content, _bar(bar, "checksum", blob.size) as progress:
        for chunk in iter(functools.partial(content.read, CHUNK), b""):
            found.update(chunk)
            progress.update(len(chunk))
    if found.hexdigest() != blob.digest:
        partial.unlink()
        kind = "sha256" if in_lfs else "git's sha1"
        raise DownloadError(
            f"it came damaged: its {kind} is {found.hexdigest()}, the hub states {blob.digest}; what came is removed,"
            " and the same command downloads it anew"
        )
