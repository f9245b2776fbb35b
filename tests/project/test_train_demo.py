"""What made the embedded model: its text is prose, training learns, and the exported file is the trained network."""

import jax
import numpy as np
import pytest
from running import SMALL

import packlight
from tools.train_demo import corpus, export, network

tokenizers = pytest.importorskip("tokenizers", reason="the extra `train` is not installed")
TINY = network.Shape(layers=2, embed=64, ffn=96, heads=4, kv_heads=2, vocab=300, context=64)
TEXTS = ["Return the number of items in a list.", "A list is a mutable sequence; the items may be of any type."]


@pytest.fixture
def tokenizer():
    from tools.train_demo import vocabulary

    return vocabulary.learn(TEXTS, TINY.vocab)


@pytest.mark.parametrize(
    ("text", "paragraphs"),
    [
        ("Return the absolute\n    value of :data:`x`.\n\n    >>> f(1)\n", ['Return the absolute value of "x".']),
        ("Return a ``list`` of names", ['Return a "list" of names.']),
        ("Title\n=====\n\nA *mapping* holds **any** objects.", ["A mapping holds any objects."]),
        ("It may be used so. For example, like this:\n\n   x = f(y)\n\nThat is all it does.", None),
        (
            "A tuple is made as follows:\n\n* By a pair of parentheses.\n* By a comma alone: it is enough.",
            ["A tuple is made as follows:", "* By a pair of parentheses.", "* By a comma alone: it is enough."],
        ),
        ("if_stmt ::= \"if\" expression\n\n+---+---+\n| a | b |\n+---+---+", []),
    ],
)  # fmt: skip
def test_prose_is_what_reads_as_sentences(text, paragraphs):
    assert corpus.prose(text) == (["It may be used so.", "That is all it does."] if paragraphs is None else paragraphs)


def test_a_source_is_held_out_as_a_whole():
    found = [corpus.Document(source, text) for source in ("break", "glob", "list") for text in TEXTS]
    learn, held_out = corpus.split(found)
    assert {document.source for document in learn} == {"list"}
    assert {document.source for document in held_out} == {"break", "glob"}


def test_the_exported_file_gives_the_networks_logits(tmp_path, tokenizer):
    params = jax.tree.map(lambda x: 5 * x, network.init(jax.random.key(0), TINY))  # so that attention is not all alike
    path = tmp_path / "tiny.gguf"
    export.write(path, params, TINY, tokenizer)
    llm = packlight.load(path, packlight.CompileConfig(**SMALL | {"prefill_buckets": (16,), "decode_batch": (2,)}))
    ids = llm.encode(TEXTS[1])
    assert ids == [0, *tokenizer.encode(TEXTS[1]).ids]
    expected = np.asarray(network.logits(params, np.array([ids]), TINY)[0])
    # float32 matrices are multiplied in float32 by both: what differs is the order of sums
    np.testing.assert_allclose(llm.logits(ids), expected, atol=1e-4 * expected.std())


def test_a_file_of_the_default_shape_has_only_widths_that_every_format_takes():
    shape = network.Shape()
    assert {width % 256 for _, width in (*shape.matrices().values(), (shape.vocab, shape.embed))} == {0}


def test_a_few_steps_lower_the_loss(tokenizer):
    pytest.importorskip("optax", reason="the extra `train` is not installed")
    from tools.train_demo import recipe, vocabulary

    how = recipe.Recipe(steps=30, tokens=64, window=16, warm_up=2)
    documents = 4 * vocabulary.encode(tokenizer, TEXTS)
    params = network.init(jax.random.key(how.seed), TINY)
    losses = []
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
        tx = recipe.optimizer(params, how)
        state, update = tx.init(params), recipe.updater(tx, TINY)
        for step in range(how.steps):
            batch = recipe.windows(documents, how, step)
            assert batch.shape == ((4, 17) if step < 27 else (2, 33))
            params, state, value = update(params, state, batch)
            losses.append(float(value))
    assert losses[0] == pytest.approx(np.log(TINY.vocab), rel=0.02)  # nothing is known yet
    assert losses[-1] < 0.5 * losses[0]
