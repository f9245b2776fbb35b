"""Embeddings against llama.cpp's and against their definition; the command."""

import json

import embedding_goldens
import numpy as np
import pytest
from conftest import GOLDENS_FOLDER
from demo_files import trained_model
from ggufs import NOISE, write_llama
from golden_models import shared
from running import packlight as command
from running import write_config
from tiers import product

import packlight
from packlight.model.spec.pooling import pooling_of
from packlight.prepared import prepare

GOLDENS = json.loads((GOLDENS_FOLDER / "embedding_goldens.json").read_text())


# float32: the layers' accumulated rounding; Q4_K_M: an activation that rounds the other way at a tie, once or twice
BOUNDS = {
    "demo/F32": 1e-5,
    "demo/Q4_K_M": 5e-3,
    "models/stories260K-k256-f32": 1e-5,
    "models/stories260K-k256-Q4_K_M": 5e-3,
}
DEMO, QUANTIZED, *STORIES = BOUNDS


@pytest.mark.parametrize("name", [DEMO, product(QUANTIZED), *shared(STORIES)])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_llama_cpps(name, pooling, tmp_path):
    config = packlight.CompileConfig(prefill_buckets=(16,), decode_batch=(2,), head_rows=1)
    llm = packlight.load(trained_model(name, tmp_path), config)
    (ours,) = llm.embed([embedding_goldens.IDS], pooling)
    assert np.abs(ours - np.array(GOLDENS[name][pooling])).max() < BOUNDS[name]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("m") / "m.gguf", **NOISE)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "c.toml")


@pytest.fixture(scope="module")
def llm(model, config):
    return packlight.load(model, config)


def test_pooling_and_length(llm):
    long = list(range(3, 60))  # several chunks of a prefill
    mean, last = llm.embed([long, [5]], "mean", normalize=False), llm.embed([long, [5]], "last", normalize=False)
    hidden = llm.engine.hidden(long)
    assert hidden.shape == (57, 32)
    np.testing.assert_allclose(mean[0], hidden.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(last[0], hidden[-1])
    np.testing.assert_array_equal(mean[1], last[1])  # of one token
    (every,) = llm.embed([long], "none", normalize=False)
    np.testing.assert_array_equal(every, hidden)
    np.testing.assert_array_equal(llm.embed([long], "cls", normalize=False)[0], hidden[0])
    unit = llm.embed([long, "a text"])
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit[0], mean[0] / np.linalg.norm(mean[0]), rtol=1e-5)
    assert unit.dtype == np.float32


def test_the_file_may_say_how_to_pool(tmp_path):
    """Qwen3-Embedding's files say last. Source: llama.cpp's `llama_pooling_type`."""

    def model(number):
        return prepare(write_llama(tmp_path / f"{number}.gguf", extra={"llama.pooling_type": number})).model

    assert [pooling_of(model(number), None) for number in (0, 1, 2, 3)] == ["mean", "mean", "cls", "last"]
    assert pooling_of(model(3), "mean") == "mean"
    for number, said in (
        (4, "'rank', which the file asks for, needs the head"),
        (9, "'9', which the file asks for, is"),
    ):
        with pytest.raises(packlight.ConfigError, match=f"pooling {said}"):
            pooling_of(model(number), None)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            (["a"], "median"),
            packlight.ConfigError,
            "pooling 'median' is unknown; there are: mean, cls, last, rank, none",
        ),
        (([],), packlight.ConfigError, "a list of texts, and at least one"),
        (("a",), packlight.ConfigError, "a list of texts"),
        (([""],), packlight.ConfigError, "the prompt is empty"),
        (([[5] * 4097],), packlight.ContextLengthError, "4097 tokens; the context holds 4096"),
    ],
)
def test_what_cannot_be_embedded_is_refused(llm, arguments, error, words):
    with pytest.raises(error, match=words):
        llm.embed(*arguments)


def test_the_command(model, config, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_bytes("one\n\ntwo \N{SNOWMAN}\N{LINE SEPARATOR}three\r\n".encode())
    flags = ("embed", f"--model={model}", f"--config={config}")
    done = command(*flags, f"--file={texts}", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (len(report["embeddings"]), report["dimensions"], report["pooling"]) == (2, 32, "mean")
    assert "blank lines get no vector: 2\n" in done.stderr
    done = command(*flags, "--prompt=one")
    row = np.array(done.stdout.split(), np.float64)
    np.testing.assert_allclose(row, report["embeddings"][0], rtol=1e-6)
