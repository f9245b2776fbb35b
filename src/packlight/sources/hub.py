"""Models on Hugging Face: which file a name means, downloaded where the cache does not have it.

Requests, tokens and the cache are huggingface_hub's (extra `hub`); this asks what a repository has, chooses, and says
errors in a line. Without the hub, what is in the cache is what there is to choose from.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from packlight.common.errors import ConfigError, DownloadError, MissingFileError
from packlight.common.files import whole_file
from packlight.common.text import megabytes, reason, shown, shown_path
from packlight.sources.download import (
    Blob,
    MakeBar,
    Say,
    check_room,
    check_stated,
    download,
    plain_bar,
    print_line,
    us,
)
from packlight.sources.names import Choice, HubName, choose, leads_down
from packlight.sources.places import COMMIT, cached_commit, cached_files, hub_cache, repo_folder

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoSibling

TIMEOUT = 10.0  # seconds for an answer about a repository, as huggingface_hub has it for files
LOGIN = "set HF_TOKEN, or run `hf auth login`"


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A model of the hub that is on this machine. `downloaded`: bytes that came now."""

    name: str
    repo: str
    commit: str
    files: tuple[str, ...]
    paths: tuple[str, ...]
    bytes: int
    downloaded: int


class _UnreachableError(Exception):
    """The hub cannot be asked, for this reason; what is in the cache may serve."""


def fetch(name: HubName, say: Say = print_line, bar: MakeBar = plain_bar) -> Fetched:
    """The model that `name` means, downloaded if it is not in the cache; says which file it is.

    Where the hub cannot be reached, the cached files of the revision are what there is to choose from, and it says so.
    Raises ConfigError without the extra `hub`, MissingFileError for what is not there, and DownloadError.
    """
    try:
        import httpx2  # noqa: F401  a huggingface_hub that is too old comes without it
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise ConfigError(f"{name.text} needs the extra 'hub': pip install \"packlight[hub]\"") from None
    with _quiet():
        try:
            commit, blobs = _listing(name)
        except _UnreachableError as error:
            return _cached(name, str(error), say)
        choice = choose(name, blobs)
        snapshot = repo_folder(name.repo) / "snapshots" / commit
        wanted = [blobs[file] for file in choice.files if not os.path.exists(snapshot / file)]
        line = _line(name, choice, commit, sum(blobs[file].size for file in choice.files))
        to_come = f"to be downloaded to {shown_path(str(hub_cache()))}; what has come is kept if it is interrupted"
        say(f"{line}, {to_come if wanted else 'here already'}")
        came = _download(name, commit, wanted, say, bar) if wanted else 0
        _remember(name, commit)
    return _fetched(name, commit, choice, came)


def _listing(name: HubName) -> tuple[str, dict[str, Blob]]:
    """The commit of the revision, and its files by name. Raises _UnreachableError, and as `fetch` does."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        DeviceCodeError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        OIDCError,
    )

    host = shown(constants.ENDPOINT.partition("://")[2] or constants.ENDPOINT)
    try:
        info = HfApi(**us()).model_info(name.repo, revision=name.revision, timeout=TIMEOUT, files_metadata=True)
        commit, blobs = str(info.sha), [_stated(sibling) for sibling in info.siblings or ()]
    except OfflineModeIsEnabled:
        raise _UnreachableError("offline mode is on (HF_HUB_OFFLINE)") from None
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            raise _UnreachableError(f"{host} answers with an error ({error.response.status_code})") from None
        raise _refused(name, error) from None
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise _UnreachableError(f"{host} cannot be reached ({_words(error)})") from None
    except (OIDCError, DeviceCodeError) as error:
        raise DownloadError(f"{name.text}: the token cannot be renewed: {reason(error)}") from None
    except OSError as error:  # the token's file, or that of the certificates
        raise DownloadError(f"{name.text}: the hub cannot be asked: {_named(error)}") from None
    except HFValidationError:
        raise ConfigError(f"{name.text}: {shown(name.repo)} cannot be the name of a repository") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        why = "is there a proxy, or a page to log in on?"
        raise DownloadError(f"{name.text}: {host} does not answer as a hub does; {why}") from None
    if not COMMIT.fullmatch(commit):
        raise DownloadError(f"{name.text}: {host} states no commit")
    return commit, {blob.file: blob for blob in blobs if blob.file.isprintable() and leads_down(blob.file)}


def _stated(sibling: "RepoSibling") -> Blob:
    """What the hub says of a file. Raises TypeError for values of another type, which the library lets through."""
    lfs = sibling.lfs
    size, digest = (sibling.size or 0, sibling.blob_id or "") if lfs is None else (lfs.size, lfs.sha256)
    blob = Blob(sibling.rfilename, size, digest)
    if tuple(map(type, blob)) != (str, int, str):
        raise TypeError(blob)
    return blob


def _cached(name: HubName, why: str, say: Say) -> Fetched:
    """The model among the cached files of the revision. Raises MissingFileError."""
    commit = cached_commit(name)
    files = cached_files(name.repo, commit) if commit else []
    choice = choose(name, files, f"{why}, and the cache")
    fetched = _fetched(name, str(commit), choice, 0)
    say(f"{_line(name, choice, fetched.commit, fetched.bytes)}, from the cache: {why}")
    return fetched


def _fetched(name: HubName, commit: str, choice: Choice, came: int) -> Fetched:
    snapshot = repo_folder(name.repo) / "snapshots" / commit
    paths = tuple(str(snapshot / file) for file in choice.files)
    return Fetched(name.text, name.repo, commit, choice.files, paths, sum(map(os.path.getsize, paths)), came)


def _line(name: HubName, choice: Choice, commit: str, size: int) -> str:
    """Which file a name means."""
    note = f", {choice.note}" if choice.note else ""
    first, *more = choice.files
    parts = f" and {len(more)} more {'part' if len(more) == 1 else 'parts'}" if more else ""
    return f"{name.text}: {shown(first, 200)}{parts}{note}; commit {commit[:12]}, {megabytes(size)}"


def _remember(name: HubName, commit: str) -> None:
    """Notes the revision's commit as huggingface_hub does: what is asked for offline is looked up there."""
    note = repo_folder(name.repo) / "refs" / name.revision
    if cached_commit(name) != commit:
        with contextlib.suppress(OSError):  # of a cache that cannot be written
            note.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(str(note)) as partial:
                pathlib.Path(partial).write_text(commit, encoding="utf-8")


def _download(name: HubName, commit: str, wanted: Sequence[Blob], say: Say, bar: MakeBar) -> int:
    """Brings the files into the cache; returns the bytes that came. Raises DownloadError and MissingFileError."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    came, about, kept = 0, name.text, ""
    try:
        for blob in wanted:
            about = f"{name.text}: {shown(blob.file, 200)}"
            check_stated(blob)
        about = name.text
        check_room(name.repo, wanted)
        kept = "; what has come is kept, and the same command goes on from there"
        for blob in wanted:
            about = f"{name.text}: {shown(blob.file, 200)}"
            came += download(name.repo, commit, blob, say, bar)
    except DownloadError as error:
        raise DownloadError(f"{about}: {error}") from None
    except HfHubHTTPError as error:
        raise _refused(name, error) from None
    except httpx2.RequestError as error:
        raise DownloadError(f"{about}: {_words(error)}{kept}") from None
    except OSError as error:
        raise DownloadError(f"{about}: {_named(error)}{kept}") from None
    return came


def _refused(name: HubName, error: "HfHubHTTPError") -> Exception:
    """What an answer of the hub that is an error means for the user."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status, page = error.response.status_code, shown(f"{constants.ENDPOINT}/{name.repo}", 200)
    match error:
        case GatedRepoError() if get_token() is None:
            return DownloadError(f"{name.text} is gated: accept its terms at {page}, then {LOGIN}")
        case GatedRepoError():
            return DownloadError(f"{name.text} is gated, and your account has no access: accept its terms at {page}")
        case RevisionNotFoundError():
            return MissingFileError(f"{name.text}: {name.repo} has no revision {shown(name.revision)!r}")
        case EntryNotFoundError():
            return MissingFileError(f"{name.text}: the hub lists a file and does not have it; try again")
        case _ if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
            token = "your token does not open it" if get_token() else f"it is private: then {LOGIN}"
            return MissingFileError(f"{name.text}: there is no repository {name.repo}, or {token}")
    said = error.server_message or error.response.reason_phrase
    return DownloadError(f"{name.text}: {page} is refused: {status} {shown(' '.join(said.split()))}")


def _named(error: OSError) -> str:
    """The system's words, behind the file that they are about."""
    return f"{shown_path(str(error.filename))}: {reason(error)}" if error.filename else reason(error)


def _words(error: "httpx2.RequestError | httpx2.InvalidURL") -> str:
    """Why a request failed: httpx's own words, which may be none, else the kind of failure."""
    return shown(str(error) or type(error).__name__, 120)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the library's own lines about retries and the like off the terminal."""
    from huggingface_hub.utils import logging as theirs

    before = theirs.get_verbosity()
    theirs.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        theirs.set_verbosity(before)
