"""Encode steps: vectors of whole texts against llama.cpp's, alone and beside others, on meshes, and what is refused."""

import itertools
import json

import encoder_goldens
import numpy as np
import pytest
from conftest import GOLDENS_FOLDER, SHARED
from encoders import ENCODERS, write
from golden_models import gelu_table, shared
from running import packlight as command
from running import write_config
from tiers import product

import packlight
from packlight.common.errors import ConfigError, ContextLengthError, UnsupportedError
from packlight.compile.config import MeshShape
from packlight.compile.counter import CompileCounter
from packlight.compile.plan import Phase
from packlight.model.text.tokenizer import Tokenizer

GOLDENS = dict(np.load(GOLDENS_FOLDER / "encoder_goldens.npz"))
FIXTURES = ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "modern-bert", "gemma-embedding",
            "qwen3-embedding", "qwen3-reranker")  # fmt: skip
# Of a deviation, as for logits: what float32 and the order of sums may do.
BOUND = 1e-3
PLAN = {"prefill_buckets": (64,), "decode_batch": (1,), "head_rows": 1, "encode_buckets": (16, 64)}
RNG = np.random.default_rng(4)
TEXTS = [RNG.integers(3, 300, count).tolist() for count in (16, 3, 17, 64, 1, 40, 15, 16, 9)]


def load(path, **changes):
    return packlight.load(path, packlight.CompileConfig(**{"cpu_kernels": "xla", "context": 64, **PLAN, **changes}))


def deviation(ours, golden):
    return np.abs(ours - golden).max() / golden.std()


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_are_llama_cpps(name, tmp_path, monkeypatch):
    """With ggml's table of GELU in float16 where the family has a GELU, so that all else is seen."""
    gelu_table(monkeypatch)
    llm = load(write(tmp_path / "m.gguf", ENCODERS[name]), encode_rows=1, store=False)
    for pooling in encoder_goldens.poolings(ENCODERS[name]):
        ours = llm.embed(encoder_goldens.TEXTS, pooling, normalize=False)
        assert deviation(ours, GOLDENS[f"{name}.{pooling}"]) < BOUND, pooling
    expected = {0: "mean", 1: "mean", 2: "cls", 3: "last", 4: "rank"}[llm.model.pooling]
    own = llm.embed(encoder_goldens.TEXTS, normalize=False)
    np.testing.assert_array_equal(own, llm.embed(encoder_goldens.TEXTS, expected, normalize=False))


@pytest.mark.parametrize("name", shared(FIXTURES))
def test_vectors_of_fixtures_are_llama_cpps(name):
    found = np.load(SHARED / "arch" / f"{name}.npz")
    exact = "_f32_gelu32" if "embedding_f32_gelu32" in found else "_f32"
    texts = [found["ids"].tolist(), found["ids_b"].tolist()]
    llm = load(SHARED / "arch" / f"{name}.gguf", encode_rows=1)
    for ours, key in zip(llm.embed(texts, normalize=False), ("embedding", "embedding_b"), strict=True):
        assert deviation(ours, found[key + exact]) < BOUND, key
    (hidden,) = llm.embed(texts[:1], "none", normalize=False)
    assert deviation(hidden, found["hidden" + exact]) < BOUND


NEIGHBOURS = list(
    itertools.product(("bert", "modern-bert", "nomic-bert-moe", "jina-bert-v2", "qwen3-embedding"), ("xla", "native"))
)


@pytest.mark.parametrize(
    ("name", "kernels"), [case if case in NEIGHBOURS[1::4] else product(*case) for case in NEIGHBOURS]
)
def test_neighbours_change_no_bit(name, kernels, tmp_path):
    """R31: alone, in another order, and in a step that others fill."""
    llm = load(write(tmp_path / "m.gguf", ENCODERS[name], "Q8_0"), cpu_kernels=kernels, encode_rows=64)
    alone = [llm.embed([text], "mean", normalize=False)[0] for text in TEXTS]
    together = llm.embed(TEXTS, "mean", normalize=False)
    backwards = llm.embed(TEXTS[::-1], "mean", normalize=False)[::-1]
    np.testing.assert_array_equal(together, np.stack(alone))
    np.testing.assert_array_equal(backwards, together)
    assert {(key.rows, key.length) for key in llm.engine.steps_run} == {(4, 16), (1, 64)}


SHARED_BY = ("bert", "nomic-bert-moe", "jina-bert-v2-normed", "gemma-embedding", "qwen3-rank")
ON_MESHES = list(itertools.product(SHARED_BY, [(2, 1), (1, 2), (2, 2)]))


@pytest.mark.parametrize(
    ("name", "mesh"),
    [case if case in ON_MESHES[4::5] else product(*case) for case in ON_MESHES],
)
def test_devices_share_texts_and_weights(name, mesh, tmp_path):
    """Sums over devices have another order: the bound of the goldens."""
    path = write(tmp_path / "m.gguf", ENCODERS[name])
    data, tensor = mesh
    shape = MeshShape(data=data, tensor=tensor)
    one = load(path, encode_rows=1).embed(TEXTS, normalize=False)
    llm = load(path, mesh=shape, decode_batch=(data,), encode_rows=32, store=False)
    assert deviation(llm.embed(TEXTS, normalize=False), one) < BOUND
    assert {(key.rows, key.length) for key in llm.engine.steps_run} == {(2 * data, 16), (data, 64)}


def test_a_text_is_encoded_as_a_prompt_is_read(tmp_path):
    """Of a model that does both, whose attention is causal: with a cache and without one."""
    llm = load(write(tmp_path / "m.gguf", ENCODERS["qwen3-embedding"]), encode_rows=1)
    encoded = llm.embed(TEXTS, "none", normalize=False)
    for text, hidden in zip(TEXTS, encoded, strict=True):
        assert deviation(hidden, llm.engine.hidden(text)) < BOUND
    assert llm.generate(TEXTS[0], max_tokens=2, temperature=0).token_ids


def test_nothing_compiles_after_loading(tmp_path):
    llm = load(write(tmp_path / "m.gguf", ENCODERS["modern-bert"]), encode_rows=64)
    assert {key.phase for key in llm.executables.built} == {Phase.ENCODE}
    with CompileCounter() as counter:
        for pooling in ("mean", "cls", "last", "none"):
            llm.embed([*TEXTS, "a text"], pooling)
    assert counter.count == 0


def test_an_encoder_writes_nothing(tmp_path):
    llm = load(write(tmp_path / "m.gguf", ENCODERS["nomic-bert"]))
    assert llm.kv_bytes < 100
    for ask in (lambda: llm.generate("a"), lambda: llm.stream("a"), lambda: llm.chat("a"), lambda: llm.logits([5])):
        with pytest.raises(UnsupportedError, match="a nomic-bert model is an encoder: it turns texts into vectors"):
            ask()
    with pytest.raises(ConfigError, match="pooling 'rank' needs the head of a reranker"):
        llm.embed(["a"], "rank")
    with pytest.raises(ConfigError, match="needs the head of a reranker"):
        llm.rerank("a", ["b"])
    with pytest.raises(ContextLengthError, match="the text has 65 tokens; the context holds 64"):
        llm.embed([[5] * 65])


def test_vectors_are_of_length_one_if_asked(tmp_path):
    llm = load(write(tmp_path / "m.gguf", ENCODERS["bert"]))
    np.testing.assert_allclose(np.linalg.norm(llm.embed(TEXTS), axis=1), 1, rtol=1e-6)
    each = llm.embed(TEXTS[:2], "none")
    assert [x.shape for x in each] == [(16, 64), (3, 64)]
    np.testing.assert_allclose(np.linalg.norm(each[0], axis=1), 1, rtol=1e-6)


def test_a_reranker_scores_pairs(tmp_path):
    """As llama.cpp's server makes them of a vocabulary without a template: bos query eos document eos."""
    llm = load(write(tmp_path / "m.gguf", ENCODERS["qwen3-rank"]))
    documents = ["one", "two words", "and three more"]
    scores = llm.rerank("a query", documents)
    tokenizer = llm.tokenizer
    pairs = [[*tokenizer.encode("a query"), *tokenizer.encode(document, add_special=False)] for document in documents]
    np.testing.assert_array_equal(scores, llm.embed(pairs, "rank")[:, 0])
    np.testing.assert_allclose(llm.embed(pairs, "rank").sum(1), 1, rtol=1e-6)
    for documents, said in (([], "at least one"), ("text", "a list of documents"), ([5], "a document to rank with")):
        with pytest.raises(ConfigError, match=said):
            llm.rerank("a query", documents)


def test_the_command_sorts_documents(tmp_path):
    path, texts = write(tmp_path / "m.gguf", ENCODERS["qwen3-rank"]), tmp_path / "texts.txt"
    documents = ["one", "two words", "and three more"]
    texts.write_text("one\n\ntwo words\nand three more\n")
    config = write_config(tmp_path / "c.toml", context=64)
    flags = ("rerank", f"--model={path}", f"--config={config}", "--query=a query", f"--file={texts}")
    done = command(*flags, "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    scores = packlight.load(path, config).rerank("a query", documents)
    assert [each["index"] for each in results] == np.argsort(-scores).tolist()
    np.testing.assert_allclose([each["relevance_score"] for each in results], np.sort(scores)[::-1], rtol=1e-6)
    assert "blank lines get no score: 2" in done.stderr
    lines = command(*flags).stdout.splitlines()
    assert [line.split("\t")[1] for line in lines] == [documents[each["index"]] for each in results]


def test_a_pair_fills_its_template(tmp_path):
    """Braces of a document are text, and so are control tokens that it spells."""
    llm = load(write(tmp_path / "m.gguf", ENCODERS["qwen3-rank"]))
    llm.prompts._rerank_template = "<s>{query} | {document}</s>"  # a file's key tokenizer.chat_template.rerank
    ids = llm.prompts.pair("q", "{query} </s>")
    assert (ids[0], ids[-1], ids.count(llm.tokenizer.eos_id)) == (1, 2, 1)
    assert llm.decode(ids) == "<s> q | {query} </s></s>"


def test_bert_frames_a_pair():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2581a", "\u2581b"]
    keys = {"model": "bert", "tokens": tokens, "bos_token_id": 2, "seperator_token_id": 3, "unknown_token_id": 1}
    tokenizer = Tokenizer.from_metadata({f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    assert tokenizer.encode_pair("a", "b a") == [2, 4, 3, 5, 4, 3]
