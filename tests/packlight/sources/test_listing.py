"""What `packlight models` finds on a machine, what it says of each, and that its names lead to the files."""

import json
import pathlib

import pytest
from ggufs import write_llama
from huggingface_hub import constants
from running import packlight, succeed

from packlight.common.errors import ConfigError, MissingFileError
from packlight.sources.find import find
from packlight.sources.listing import describe, everything
from packlight.sources.places import Here, hub_cache, lm_studio_folder, ollama_folders

TINY = {"layers": 1, "embed": 32, "vocab": 270}
COMMIT, OLDER = "a" * 40, "b" * 40
DIGEST = "sha256:" + "1f" * 32
KINDS = ("image.license", "image.model", "image.projector")  # of layers that a model of Ollama has


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home in which no program has models."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("packlight.sources.places._SERVICE", tmp_path / "usr/share/ollama/.ollama/models")
    return tmp_path


def put(path: pathlib.Path, **about) -> pathlib.Path:
    """A tiny model at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_llama(path, **TINY | about)


def put_in_hub_cache(home: pathlib.Path, repo: str, file: str, commit: str = COMMIT, revision: str | None = "main"):
    """A tiny model in huggingface_hub's cache, as that library lays it out."""
    folder = home / ".cache/huggingface/hub" / f"models--{repo.replace('/', '--')}"
    blob = put(folder / "blobs" / f"{len(list(folder.glob('blobs/*'))):064x}", seed=ord(commit[0]))
    link = folder / "snapshots" / commit / file
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(blob)
    if revision:
        note = folder / "refs" / revision
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(commit)
    return link


def put_in_ollama(
    folder: pathlib.Path, *words: str, digest: str = DIGEST, kinds: tuple[str, ...] = KINDS
) -> pathlib.Path:
    """A tiny model of Ollama: a manifest under the words of its name, and the blob that it names."""
    manifest = folder.joinpath("manifests", *words)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {
            "mediaType": f"application/vnd.ollama.{kind}",
            "digest": digest if kind == "image.model" else DIGEST[:-1] + "0",
        }
        for kind in kinds
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return put(folder / "blobs" / digest.replace(":", "-"))


def names(folder: pathlib.Path | None = None) -> list[str]:
    return [here.name for here in everything(None if folder is None else str(folder), [])]


def test_every_place_is_searched_and_every_name_leads_to_its_file(home, monkeypatch):
    hub = put_in_hub_cache(home, "o/r-GGUF", "sub/m-Q8_0.gguf")
    blob = put_in_ollama(home / ".ollama/models", "registry.ollama.ai", "library", "tiny", "1b")
    studio = put(home / ".lmstudio/models/publisher/repo/s-Q8_0.gguf")
    own = put(home / "mine/deep/f.gguf")
    found = everything(str(home / "mine"), [])
    assert [(here.name, here.place) for here in found] == [
        ("hf:o/r-GGUF:sub/m-Q8_0.gguf", "Hugging Face"),
        ("ollama:tiny:1b", "Ollama"),
        (str(studio), "LM Studio"),
        (str(own), "folder"),
    ]
    assert [pathlib.Path(here.path) for here in found] == [hub, blob, studio, own]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for here in found:
        assert str(find(here.name, lambda line: None)) == here.path


def test_variables_and_settings_move_the_places(home, monkeypatch):
    assert hub_cache() == home / ".cache/huggingface/hub"
    for variable, value, place in (
        ("XDG_CACHE_HOME", "~/x", home / "x/huggingface/hub"),
        ("HF_HOME", "$HOME/h", home / "h/hub"),
        ("HUGGINGFACE_HUB_CACHE", "~/old", home / "old"),
        ("HF_HUB_CACHE", "~/new", home / "new"),
    ):
        monkeypatch.setenv(variable, value)
        assert hub_cache() == place
    assert ollama_folders() == [home / ".ollama/models", home / "usr/share/ollama/.ollama/models"]
    monkeypatch.setenv("OLLAMA_MODELS", "~/o")
    assert ollama_folders() == [home / "o"]
    assert lm_studio_folder() == home / ".lmstudio/models"
    (home / ".cache/lm-studio").mkdir(parents=True)
    assert lm_studio_folder() == home / ".cache/lm-studio/models"
    (home / ".lmstudio-home-pointer").write_text(f"{home}/studio\n")
    assert lm_studio_folder() == home / "studio/models"
    (home / "studio").mkdir()
    for settings, place in (('{"downloadsFolder": "/big/disk"}', "/big/disk"), ("not JSON", f"{home}/studio/models")):
        (home / "studio/settings.json").write_text(settings)
        assert lm_studio_folder() == pathlib.Path(place)


def test_revisions_in_the_hubs_cache(home):
    """Those that a name without a revision does not mean have theirs; a file that two have is listed once."""
    new = put_in_hub_cache(home, "o/r", "m.gguf")
    put_in_hub_cache(home, "o/r", "m.gguf", OLDER, None)
    (new.parent.parent / OLDER / "same.gguf").symlink_to(new.resolve())
    put_in_hub_cache(home, "o/r", "t.gguf", "c" * 40, "v1")
    put_in_hub_cache(home, "o/r", "gone.gguf").resolve().unlink()
    assert names() == ["hf:o/r:m.gguf", "hf:o/r@v1:t.gguf", f"hf:o/r@{OLDER}:m.gguf"]


def test_of_two_revisions_on_a_commit_main_is_named(home):
    put_in_hub_cache(home, "o/r", "m.gguf", revision="v1")
    put_in_hub_cache(home, "o/r", "n.gguf", revision="main")
    assert names() == ["hf:o/r:m.gguf", "hf:o/r:n.gguf"]


def test_a_registry_of_ones_own_in_ollama(home):
    blob = put_in_ollama(home / ".ollama/models", "localhost:5000", "me", "tuned", "v1")
    assert names() == ["ollama:localhost:5000/me/tuned:v1"]
    assert find(names()[0], lambda line: None) == str(blob)
    for name in ("ollama:localhost:x/me/tuned:v1", "ollama:localhost:5000/../tuned:v1", "ollama:a/b/c/d"):
        with pytest.raises(MissingFileError, match="no such model"):
            find(name)


def test_a_model_of_ollama_with_an_adapter_is_refused(home):
    words = (home / ".ollama/models", "registry.ollama.ai", "library")
    put_in_ollama(*words, "adapted", "1", kinds=("image.model", "image.adapter"))
    put_in_ollama(*words, "base", "1")
    assert names() == ["ollama:base:1"]
    with pytest.raises(ConfigError, match="^ollama:adapted:1: it has an adapter"):
        find("ollama:adapted:1")


def test_manifests_do_not_steer_a_terminal(home):
    put_in_ollama(home / ".ollama/models", "registry.ollama.ai", "library", "m\x1b[31m", "1")
    with pytest.raises(MissingFileError, match=r"it has: ollama:m\\x1b\[31m:1"):
        find("ollama:zzzzzzzzzzz")


def test_a_file_that_cannot_be_looked_at_is_not_there(home):
    """A link that the system will not follow; without leave to a folder the same is raised."""
    link = put_in_hub_cache(home, "o/r", "m.gguf")
    endless = link.with_name("n.gguf")
    endless.symlink_to("n" * 300)
    assert names() == ["hf:o/r:m.gguf"]
    (home / "mine").mkdir()
    (home / "mine/l.gguf").symlink_to("n" * 300)
    (found,) = everything(str(home / "mine"), [])[1:]
    assert describe(found)["why_not"] == "the file is not there"
    assert describe(found)["bytes"] == 0


def test_endings_in_capitals_are_listed(home):
    put(home / "mine/A-Q8_0.GGUF")
    assert names(home / "mine") == [f"{home}/mine/A-Q8_0.GGUF"]


def test_names_in_ollama(home):
    folder = home / ".ollama/models"
    for i, words in enumerate(
        [
            ("hf.co", "o", "r-GGUF", "Q4_K_M"),
            ("registry.ollama.ai", "library", "tiny", "latest"),
            ("registry.ollama.ai", "someone", "tiny", "7b"),
        ]
    ):
        put_in_ollama(folder, *words, digest=f"sha256:{i:064x}")
    put_in_ollama(folder, "registry.ollama.ai", "library", "bad", "1", digest="../../../etc/passwd")
    (folder / "manifests/registry.ollama.ai/library/bad/2").write_text("[]")
    (folder / "manifests/stray").write_text("{}")
    assert names() == ["ollama:hf.co/o/r-GGUF:Q4_K_M", "ollama:tiny:latest", "ollama:someone/tiny:7b"]
    assert find("ollama:tiny", lambda line: None) == str(folder / "blobs" / f"sha256-{1:064x}")
    for name, said in (
        ("ollama:tinny:latest", "no such model on this machine; did you mean 'ollama:tiny:latest'"),
        (
            "ollama:zzzzzzzzzzz",
            "no such model on this machine; it has: ollama:hf.co/o/r-GGUF:Q4_K_M, ollama:tiny:latest",
        ),
        ("ollama:../../x", "no such model"),
        ("ollama:", "no such model"),
        ("ollama:bad:1", "no such model"),
    ):
        with pytest.raises(MissingFileError, match=f"^{name}: Ollama has {said}"):
            find(name)


def test_what_is_listed_of_each(home):
    """Sizes of all parts, the mix by llama.cpp's name or the format of most bytes, and why one does not run."""
    mine = home / "mine"
    put(mine / "mix.gguf", extra={"general.file_type": 15})
    put(mine / "none.gguf", formats={"default": "Q4_0"})
    put(mine / "martian-Q5_K_M.gguf", extra={"general.architecture": "martian"})
    put(mine / "tensor.gguf", omit=["blk.0.attn_q.weight"])
    bpe = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "martian", "tokenizer.ggml.merges": ["a b"]}
    put(mine / "pre.gguf", extra=bpe)
    put(mine / "part-Q8_0-00001-of-00002.gguf", extra={"split.count": ("u16", 2), "split.no": ("u16", 0)})
    (mine / "stray-Q6_K-00002-of-00003.gguf").write_bytes(b"GGUF")
    (mine / "page.gguf").write_bytes(b"<html>")
    put(mine / "mmproj-F16.gguf")
    rows = {pathlib.Path(here.path).name: describe(here) for here in everything(str(mine), [])}
    assert {name: (row["quantization"], row["why_not"]) for name, row in rows.items()} == {
        "mix.gguf": ("Q4_K_M", None),
        "none.gguf": ("Q4_0", None),
        "martian-Q5_K_M.gguf": ("Q8_0", "unknown architecture 'martian'"),
        "tensor.gguf": ("Q8_0", "tensor 'blk.0.attn_q.weight' is missing"),
        "pre.gguf": ("Q8_0", "pre-tokenizer 'martian' (tokenizer.ggml.pre)"),
        "part-Q8_0-00001-of-00002.gguf": ("Q8_0", "part 2 of 2 is missing"),
        "stray-Q6_K-00002-of-00003.gguf": ("Q6_K", "part 1 of 3 is missing"),
        "page.gguf": (None, "not a GGUF file: it starts with b'<htm', not b'GGUF'"),
    }
    assert all(row["runs"] == (row["why_not"] is None) == (row["error"] is None) for row in rows.values())
    assert "are supported " in rows["martian-Q5_K_M.gguf"]["error"]
    assert rows["martian-Q5_K_M.gguf"]["architecture"] == "martian"
    assert rows["mix.gguf"]["bytes"] == (mine / "mix.gguf").stat().st_size


def test_the_table_and_the_object(home):
    put_in_hub_cache(home, "o/r", "m-Q8_0.gguf")
    put(home / "mine/martian.gguf", extra={"general.architecture": "martian"})
    lines = succeed("models", f"{home}/mine").stdout.splitlines()
    head, first, second = (line.split(maxsplit=4) for line in lines)
    assert head == ["model", "MB", "quantization", "architecture", "runs"]
    assert first == ["hf:o/r:m-Q8_0.gguf", "0.0", "Q8_0", "llama", "yes"]
    assert second == [f"{home}/mine/martian.gguf", "0.0", "Q8_0", "martian", "no: unknown architecture 'martian'"]
    models = json.loads(succeed("models", "--json", f"--folder={home}/mine").stdout)["models"]
    assert [model["name"] for model in models] == [first[0], second[0]]
    assert [model["runs"] for model in models] == [True, False]


def test_where_there_are_none_it_says_where_it_looked(home):
    done = succeed("models")
    assert done.stdout == ""
    assert (
        done.stderr == f"no models in {home}/.cache/huggingface/hub, {home}/.ollama/models, {home}/.lmstudio/models\n"
    )
    assert json.loads(succeed("models", "--json").stdout) == {"models": []}
    done = packlight("models", "--folder=nowhere")
    assert (done.returncode, done.stderr) == (2, "error: --folder=nowhere: no such folder\n")


def test_a_folder_that_cannot_be_read_is_told(home, monkeypatch):
    def walk(folder, onerror):
        if "mine" in str(folder):
            onerror(PermissionError(13, "Permission denied", str(folder)))
        return iter(())

    (home / "mine").mkdir()
    monkeypatch.setattr("packlight.sources.places.os.walk", walk)
    assert f"warning: {home}/mine: Permission denied\n" in succeed("models", f"{home}/mine").stderr


def test_a_file_in_two_places_is_listed_by_its_name(home):
    link = put_in_hub_cache(home, "o/r", "m.gguf")
    assert names(link.parents[3]) == ["hf:o/r:m.gguf"]


def test_names_do_not_steer_a_terminal(home):
    put(home / "mine/a\x1b[31m.gguf")
    out = succeed("models", f"{home}/mine").stdout
    assert "\x1b" not in out
    assert describe(Here("x", str(home / "mine/a\x1b[31m.gguf"), "folder"))["runs"]
