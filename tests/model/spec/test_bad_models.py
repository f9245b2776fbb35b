"""Files that are no usable models: `prepare` and `read_weights` refuse each in one typed line, or accept it.

Never another exception, within a second or, with a large vocabulary, in time that grows with it, in bounded memory,
without jax; `inspect` says the same in words. R3, R4, R5.
"""

import dataclasses
import json
import math
import os
import pathlib
import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import wpm_goldens
from badmodels import KINDS, TINY, opened, tiny
from conftest import shared_path
from ggufs import write_llama
from golden_models import model, shared
from hostile import mutated
from processor import slowness
from vocabularies import bpe, large, spm, write_vocabulary

import packlight
from packlight.common.errors import GGUFError, PacklightError, UnsupportedError
from packlight.model.gguf.reader import open_gguf
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.weights import check
from packlight.model.text.tokenizer import Tokenizer
from packlight.model.weights.load import read_weights
from packlight.prepared import prepare

ROOT = pathlib.Path(__file__).resolve().parents[3]
# Megabytes of a vocabulary that are read and judged a second at least; a Zen 3 takes 1.06 s for the 16 of Gemma 4's.
MB_A_SECOND = 6.0

# Loads and inspects every file, in a process with 1 GiB of address space, and tells what came of each.
PROBE = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
import packlight
from packlight.prepared import prepare
from packlight.model.weights.load import read_weights

def attempt(action):
    began = time.process_time()  # this process's seconds: a busy machine is not the loader's fault
    try:
        result, error = action(), None
    except packlight.PacklightError as e:
        result, error = None, [type(e).__name__, str(e)]
    except BaseException as e:
        result, error = None, [repr(e), ""]
    return {"result": result, "error": error, "seconds": time.process_time() - began, "jax": "jax" in sys.modules}

def load(path):
    prepared = prepare(path)
    return len(read_weights(prepared.file, prepared.model))

def inspect(path):
    report = packlight.inspect(path)
    json.dumps(report, allow_nan=False)
    return report["unsupported"]

def peak():  # ru_maxrss would begin with the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before, told = peak(), {}
for path in json.load(sys.stdin):
    told[path] = {"load": attempt(lambda: load(path)), "inspect": attempt(lambda: inspect(path))}
json.dump({"files": told, "grown": peak() - before}, sys.stdout)
"""


def probed(paths):
    """path -> what loading and inspecting it gave, one process for all; `grown`: its memory in KB."""
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # its threads' stacks are address space too
    run = [sys.executable, "-c", PROBE]
    text = json.dumps([str(path) for path in paths])
    done = subprocess.run(run, input=text, capture_output=True, text=True, check=True, cwd=ROOT, env=env)
    return json.loads(done.stdout)


def refusal(path, outcome):
    """The error's text, None for an accepted file; anything but one typed printable line naming the file fails."""
    megabytes = os.path.getsize(path) / 1e6 if os.path.exists(path) else 0.0
    assert outcome["seconds"] < max(1.0, megabytes / MB_A_SECOND) * slowness(), path
    assert not outcome["jax"], path
    if outcome["error"] is None:
        return None
    kind, message = outcome["error"]
    assert kind in ("GGUFError", "MissingFileError", "UnsupportedError"), f"{path}: {kind}"
    assert message.isprintable()
    assert len(message) < 1200  # the longest names every pre-tokenizer
    whole = path.removesuffix("00001-of-00002.gguf")  # a part that is absent is named itself
    assert message.startswith(whole)
    assert not message.removeprefix(whole).partition(": ")[2].startswith(whole), message  # named once
    return message


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Kind -> (path, words, outcome of loading, outcome of inspecting) per case, and what the process grew by in KB."""
    folder = tmp_path_factory.mktemp("bad")
    cases = []
    for kind, make in KINDS.items():
        for i, (raw, words) in enumerate(make()):
            path = folder / f"{kind}{i}-00001-of-00002.gguf"  # the name that model_split's cases need
            path.write_bytes(raw)
            cases.append((kind, str(path), words))
    told = probed(path for _, path, _ in cases)
    rows = {kind: [] for kind in KINDS}
    for kind, path, words in cases:
        rows[kind].append((path, words, told["files"][path]["load"], told["files"][path]["inspect"]))
    return rows, told["grown"]


@pytest.mark.parametrize("kind", KINDS)
def test_kind(outcomes, kind):
    assert outcomes[0][kind]
    for path, words, loaded, _ in outcomes[0][kind]:
        message = refusal(path, loaded)
        if words is None:
            assert message is None, message
        else:
            assert message is not None, f"{path} was accepted; expected: {words}"
            assert re.search(words, message), f"{message!r}; expected: {words}"


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_says_the_same(outcomes, kind):
    """Every container is sound but those with a tensor type that holds no weights; what is unusable is in words."""
    for path, words, loaded, inspected in outcomes[0][kind]:
        message = refusal(path, inspected)
        if message is not None:
            assert loaded["error"][1] == message
            assert "which holds no weights packlight runs" in message
            continue
        problems = inspected["result"]
        assert all(p.isprintable() for p in problems)
        if kind != "model_nonfinite":  # only reading the data tells
            assert bool(problems) == (words is not None), path
            assert words is None or loaded["error"][1] == problems[0]


def test_memory_is_bounded(outcomes):
    assert outcomes[1] < 50_000  # KB, over all cases; measured 4,000


@pytest.mark.shared
def test_every_kind_of_the_list_has_cases():
    listed = json.loads(shared_path("badgguf", "index.json").read_text())["kinds"]
    assert {kind for kind in listed if kind.startswith("model_")} == set(KINDS)


@pytest.mark.shared
def test_example_files():
    entries = json.loads(shared_path("badgguf", "index.json").read_text())["entries"]
    paths = {entry["file"]: str(shared_path("badgguf", entry["file"])) for entry in entries}
    told = probed(paths.values())["files"]
    assert len(paths) == 23
    for entry in entries:
        path = paths[entry["file"]]
        for expected, outcome in ((entry["load"], told[path]["load"]), (entry["open"], told[path]["inspect"])):
            assert expected in ("reject" if refusal(path, outcome) else "accept", "either"), entry
        if entry["load"] == "reject" and entry["kind"] != "model_nonfinite":
            assert told[path]["inspect"]["error"] or told[path]["inspect"]["result"], entry


def written_vocabularies(folder):
    """One of each tokenizer, a large one and one that is refused."""
    wpm_goldens.write(folder / "bert.gguf", *wpm_goldens.vocabulary(), {})
    made = {"spm": spm(), "bpe": bpe("qwen2"), "large": large(), "refused": spm(model="rwkv")}
    return [folder / "bert.gguf", *(write_vocabulary(folder / f"{name}.gguf", made[name]) for name in made)]


@pytest.mark.parametrize("source", ["own", *shared(["vocabs"])])
def test_vocabularies_are_inspected(source, tmp_path):
    """No tensors: sound containers that run nothing."""
    found = written_vocabularies(tmp_path) if source == "own" else shared_path(source).glob("*.gguf")
    paths = sorted(map(str, found))
    told = probed(paths)["files"]
    assert len(told) == len(paths) >= 5
    for path in paths:
        assert refusal(path, told[path]["load"])
        assert refusal(path, told[path]["inspect"]) is None
        problem, *more = told[path]["inspect"]["result"]
        assert all("supported: " in other for other in more), more  # tokenizers that are refused by name
        assert re.search(r"'token_embd\.weight' is missing|unknown architecture '\w+'|key '\S+' is missing", problem), (
            problem
        )


@pytest.mark.parametrize("name", ["llama-moe", "llama-rope3", "llama-tied", "llama-lowbit"])
def test_tensors_are_all_used_and_all_needed(name, tmp_path):
    """What is read is what the file holds; without any one tensor, or with one more, the model is refused by name."""
    file = open_gguf(model(f"own/{name}", tmp_path))
    cfg = ModelConfig.from_gguf(file)
    used = [tensor for weight in check(file, cfg) for tensor in weight.tensors]
    assert sorted(used) == sorted(file.tensors)
    for absent in file.tensors.keys() - {"output.weight", "rope_freqs.weight"}:  # optional, and there is only one
        rest = {key: info for key, info in file.tensors.items() if key != absent}
        with pytest.raises(GGUFError, match=f"tensor '{absent}' is missing"):
            check(dataclasses.replace(file, tensors=rest), cfg)
    more = file.tensors | {"blk.0.extra.weight": file.tensors["output_norm.weight"]}
    with pytest.raises(GGUFError, match=r"tensor 'blk\.0\.extra\.weight' is not part of"):
        check(dataclasses.replace(file, tensors=more), cfg)


# inspect, in detail


def test_inspect_tells_of_model_and_tokenizer(tmp_path):
    keys = {"llama.block_count": 0, "tokenizer.ggml.model": "martian", "general.name": ("str", b"\xff"), "x": math.nan}
    path = write_llama(
        tmp_path / "m.gguf", extra=keys | {"y": [1.0, math.inf], "general.url": ("str", b"\xfe")}, **TINY
    )
    report = packlight.inspect(path)
    first, second = report["unsupported"]
    assert first.startswith(f"{path}: key 'llama.block_count': 0 is outside")
    assert second.startswith(f"{path}: tokenizer 'martian' (tokenizer.ggml.model); supported")
    with pytest.raises(UnsupportedError, match=re.escape(second)):
        packlight.Tokenizer.from_gguf(path)
    assert report["architecture"] == "llama"
    assert (report["metadata"]["x"], report["metadata"]["y"]) == ("nan", [1.0, "inf"])
    assert "\\xfe" in report["metadata"]["general.url"]
    assert {t["path"] for t in report["tensors"]} == {None}


@pytest.mark.parametrize("value", [3, ("str", b"\xff"), ["llama"]])
def test_inspect_of_an_impossible_architecture(tmp_path, value):
    path = write_llama(tmp_path / "m.gguf", extra={"general.architecture": value}, **TINY)
    report = packlight.inspect(path)
    assert "key 'general.architecture'" in report["unsupported"][0]
    assert str(report["architecture"])


def test_inspect_of_a_part(tmp_path):
    path = write_llama(tmp_path / "m-00001-of-00002.gguf", extra={"split.count": ("u16", 2)}, **TINY)
    assert "part 2 of 2" in packlight.inspect(path)["unsupported"][0]
    for wrong in ("two", ("i32", -1)):
        write_llama(path, extra={"split.count": wrong}, **TINY)
        assert "key 'split.count' is not a count" in packlight.inspect(path)["unsupported"][0]


# Damage of any kind


def outcome(path):
    """None when the model loads, else the error; anything else fails the test."""
    began = time.process_time()
    error = None
    try:
        prepared = prepare(path)
        read_weights(prepared.file, prepared.model)
    except PacklightError as e:
        error = e
    assert time.process_time() - began < slowness()
    assert error is None or (str(error).startswith(f"{path}: ") and str(error).isprintable())
    return error


def test_truncated(tmp_path):
    """At every boundary between pairs, infos and tensors, and one byte to each side: all bytes but padding count."""
    raw, path = tiny(), tmp_path / "m.gguf"
    file = opened(raw)
    names = [key.encode() for key in (*file.metadata, *file.tensors)]
    data = [at for t in file.tensors.values() for at in (t.offset, t.offset + t.nbytes)]
    end = max(data)
    cuts = {raw.index(len(name).to_bytes(8, "little") + name) for name in names} | {4, 8, 16, 24, *data}
    cuts = sorted({at + d for at in cuts for d in (-1, 0, 1)} | {random.Random(0).randrange(end) for _ in range(20)})
    assert len(cuts) > 100
    for at in cuts:
        path.write_bytes(raw[:at])
        assert (outcome(path) is None) == (at >= end), at


def test_mutated(tmp_path):
    raw, path = tiny(), tmp_path / "m.gguf"
    refused = 0
    for seed in range(400):
        path.write_bytes(mutated(raw, random.Random(seed)))
        refused += outcome(path) is not None
    assert 200 < refused < 400  # both ends are exercised


def nasty_value(rng, old):
    """A value of any type a reader can give, or the old list with its last element changed."""
    numbers = [0, 1, -1, 2, 7, 513, 2**31, 2**63, -(2**63), 0.0, -0.5, 1e-40, 1e30, math.nan, math.inf]
    texts = ["", "llama", "gpt2", "yarn", "linear", "<0xFF>", "\0", "\n", "a b", "x" * 1000]
    choices = [rng.choice(numbers), rng.choice(texts), rng.random() < 0.5, rng.sample(texts, 3), []]
    choices += [np.array(rng.choices(numbers, k=rng.randrange(4)), np.float32)]
    choices += [np.arange(rng.choice((0, 1, TINY["vocab"])), dtype=np.int32)]
    if isinstance(old, list) and old:
        choices.append([*old[:-1], rng.choice(texts)])
    return rng.choice(choices)


def test_any_metadata(tmp_path):
    """3,000 times any values for one to three keys: a config and a tokenizer that encodes, or one line."""
    file = open_gguf(write_llama(tmp_path / "m.gguf", **TINY))
    absent = ["llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.expert_count", "tokenizer.ggml.merges"]
    errors = []
    for seed in range(3000):
        rng = random.Random(seed)
        metadata = type(file.metadata)(file.metadata)
        for key in rng.sample([*metadata, *absent], rng.randint(1, 3)):
            metadata[key] = nasty_value(rng, metadata.get(key))
        changed = dataclasses.replace(file, metadata=metadata)
        try:
            check(changed, ModelConfig.from_gguf(changed))
            tokenizer = Tokenizer.from_file(changed)
            tokenizer.decode(tokenizer.encode("Hi é\0"))
        except PacklightError as error:
            errors.append(str(error))
    assert 1500 < len(errors) < 3000  # both ends are exercised
    assert all(error.isprintable() and len(error) < 1000 for error in errors)
