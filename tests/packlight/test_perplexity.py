"""Perplexity and divergence: against llama.cpp's numbers, against the formulas spelled out, and the base file."""

import functools
import json
import re
import struct

import numpy as np
import perplexity_goldens
import pytest
from conftest import GOLDENS_FOLDER
from demo_files import trained_model
from ggufs import write_llama
from golden_models import shared
from running import interrupt, write_config
from running import packlight as command
from tiers import tiered

import packlight
from packlight.common.errors import ConfigError
from packlight.perplexity import Base, cut, divergence, log_softmax, measure

LENGTH = perplexity_goldens.LENGTH
FAMILIES = ["demo", *shared(["stories"])]
QUANTIZED = [
    *tiered(perplexity_goldens.FAMILIES["demo"][1:], ["demo/Q4_K_M"]),
    *shared(perplexity_goldens.FAMILIES["stories"][1:]),
]
GOLDENS = json.loads((GOLDENS_FOLDER / "perplexity_goldens.json").read_text())


def last(steps):
    *_, result = steps
    return result


def load(path, kernels="auto"):
    config = packlight.CompileConfig(prefill_buckets=(LENGTH,), decode_batch=(1,), cpu_kernels=kernels)
    return packlight.load(path, config)


@pytest.fixture(scope="module")
def base_file(tmp_path_factory):
    """Of a family: predictions of its model of floats on its text, and their result; made once."""

    @functools.cache
    def made(family):
        folder = tmp_path_factory.mktemp("base")
        llm = load(trained_model(perplexity_goldens.FAMILIES[family][0], folder))
        tokens = cut(llm.tokenizer, perplexity_goldens.text(family), LENGTH)
        return folder / "base", last(measure(llm, tokens, str(folder / "base")))

    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_perplexity_is_llama_cpps(base_file, family):
    golden, (_, result) = GOLDENS[perplexity_goldens.FAMILIES[family][0]], base_file(family)
    assert result["tokens"] == golden["tokens"]
    # logits agree to 1e-3 of their deviation (about 3), so log-probabilities to 3e-3 at worst and far better on average
    assert result["perplexity"] == pytest.approx(golden["perplexity"], rel=1e-4)
    assert result["perplexity_error"] == pytest.approx(golden["perplexity_error"], rel=1e-3)


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_models_agree_with_llama_cpp_within_the_error_bars(base_file, name, tmp_path):
    golden, family = GOLDENS[name], next(key for key, names in perplexity_goldens.FAMILIES.items() if name in names)
    path, base_result = base_file(family)
    result = last(divergence(load(trained_model(name, tmp_path)), Base.open(str(path)), 10**6))
    assert result["tokens"] == golden["tokens"]
    assert abs(result["perplexity"] - golden["perplexity"]) < golden["perplexity_error"]
    assert result["base_perplexity"] == pytest.approx(base_result["perplexity"], rel=1e-4)
    # both sides round activations, each its own way: independent samples of the same mean, three standard errors apart
    apart = (result["kl_divergence_error"] ** 2 + golden["kl_divergence_error"] ** 2) ** 0.5
    assert abs(result["kl_divergence"] - golden["kl_divergence"]) < 3 * apart
    assert abs(result["same_top"] - golden["same_top"]) < 3 * 2**0.5 * result["same_top_error"]
    assert result["kl_max"] >= result["kl_quantiles"]["0.999"] >= result["kl_quantiles"]["0.5"] >= 0
    assert result["log_ratio"] == pytest.approx(np.log(result["perplexity"] / result["base_perplexity"]), abs=1e-6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load(write_llama(tmp_path_factory.mktemp("tiny") / "t.gguf", layers=1, embed=32, vocab=271), "xla")


def test_statistics_are_the_formulas_and_the_base_file_holds_the_predictions(tiny, tmp_path):
    length, chunks = 32, 3
    tokens = np.random.default_rng(0).integers(3, 271, (chunks, length)).astype(np.int32)
    path = tmp_path / "base"
    *_, result = measure(tiny, tokens, str(path))
    nll, predictions = [], []
    for chunk in tokens:
        ids = [tiny.tokenizer.bos_id if tiny.tokenizer.add_bos else chunk[0], *chunk[1:].tolist()]
        logp = log_softmax(tiny.logits(ids))
        predictions.append(logp[length // 2 : -1])
        nll += [-logp[i, chunk[i + 1]] for i in range(length // 2, length - 1)]
    assert result["tokens"] == len(nll) == chunks * (length // 2 - 1)
    assert result["perplexity"] == pytest.approx(np.exp(np.mean(nll)), rel=1e-6)
    error = np.exp(np.mean(nll)) * np.std(nll) / (len(nll) - 1) ** 0.5
    assert result["perplexity_error"] == pytest.approx(error, rel=1e-6)

    base = Base.open(str(path))
    np.testing.assert_array_equal(base.tokens, tokens)
    for index, logp in enumerate(predictions):
        stored = base.chunk(index)
        span = logp.max(1, keepdims=True) - np.maximum(logp.min(1, keepdims=True), logp.max(1, keepdims=True) - 16)
        # half a step of 16 bits, and float32's rounding of a value up to 16
        assert (np.abs(stored - np.maximum(logp, stored.min(1, keepdims=True))) <= span / 65535 / 2 + 4e-6).all()
    same = last(divergence(tiny, base, chunks))
    assert same["kl_divergence"] < 1e-6
    assert same["same_top"] > 0.95  # two tokens within a step of each other may swap
    assert last(divergence(tiny, base, 2))["tokens"] == 2 * (length // 2 - 1)


def test_a_base_file_that_does_not_fit_is_refused_by_name(tiny, tmp_path):
    tokens = np.full((2, 8), 5, np.int32)
    path = tmp_path / "base"
    last(measure(tiny, tokens, str(path)))
    raw = path.read_bytes()
    for damaged in (raw[:-1], raw + b"x", raw[:30], raw[:8] + struct.pack("<iii", 8, -1, 2) + raw[20:]):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="base"):
            Base.open(str(path))
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="vocabulary of 271; the model's has 300"):
        Base.open(str(path)).check(300)
    with pytest.raises(ConfigError, match="absent"):
        last(measure(tiny, tokens, str(tmp_path / "absent" / "base")))


def test_an_interrupted_run_leaves_no_file(tiny, tmp_path):
    steps = measure(tiny, np.full((2, 8), 5, np.int32), str(tmp_path / "base"))
    next(steps)
    steps.close()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_no_file(tmp_path):
    """In the middle of the measurement, whose 4 MB of predictions a chunk take a while to write."""
    model = write_llama(tmp_path / "m.gguf", layers=1, embed=32, vocab=4096, context=512)
    config = write_config(tmp_path / "c.toml", cpu_kernels="xla")
    (tmp_path / "text").write_text("Once upon a time " * 20_000, encoding="utf-8")
    flags = [
        f"--model={model}",
        f"--config={config}",
        f"--file={tmp_path / 'text'}",
        f"--save_logits={tmp_path / 'base'}",
    ]
    done = interrupt(tmp_path, "base.", "perplexity", *flags)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.endswith("\ninterrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.toml", "m.gguf", "text"]


def test_a_short_text_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"the text has \d+ tokens; perplexity over chunks of 512 needs 1024"):
        cut(tiny.tokenizer, "a few words", 512)


def test_the_command(tmp_path):
    model = write_llama(tmp_path / "m.gguf", layers=1, embed=32, vocab=271)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time " * 40, encoding="utf-8")
    config = write_config(tmp_path / "c.toml", cpu_kernels="xla")
    flags = ("perplexity", f"--model={model}", f"--config={config}")
    base = tmp_path / "base"
    done = command(*flags, f"--file={text}", "--context=32", "--chunks=3", f"--save_logits={base}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 chunks of 32 tokens, 45 predicted\nPPL = ")
    done = command(*flags, f"--kl_divergence={base}", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["chunks"], report["context"], report["tokens"]) == (3, 32, 45)
    rounding = 16 / 65535 / 2  # the base file holds log probabilities in 65535 steps over at most 16 nats
    assert abs(report["kl_divergence"]) < rounding
    done = command(*flags, f"--kl_divergence={base}")
    assert abs(float(re.search(r"^mean KLD: (\S+)", done.stdout, re.MULTILINE)[1])) < rounding
