"""What made the embedded model: its text is prose, training learns, and the exported file is the trained network."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from running import ROOT, SMALL

import packlight
from packlight.model.text.chat import make_prompt
from tools.train_demo import corpus, documentation, export, network, questions

tokenizers = pytest.importorskip("tokenizers", reason="the extra `train` is not installed")
TINY = network.Shape(layers=2, embed=64, ffn=96, heads=4, kv_heads=2, vocab=300, context=64)
PAGE = """:mod:`shelf` --- Things on shelves
==================================

.. module:: shelf
   :synopsis: Put things
      on shelves.
   :platform: all

.. index:: single: shelves

See :func:`put`, :func:`shelf.take`, :class:`Shelf` and :exc:`shelf.Full`.

.. function:: put(thing, /)
              put(thing, *, where)

   .. index:: single: putting

   Puts a *thing*, e.g. a :class:`Shelf`, on a
   :class:`Shelf`.  It is *fast*.

   A second paragraph.

.. function:: take()

   >>> take()

.. function:: unseen()

   Nothing refers to this.

.. class:: Shelf(*things)

   A place for things.

   .. method:: sort()

      Sort it.

.. exception:: Full

   Raised when a shelf is full, as follows:
"""
GLOSSARY = """.. glossary::

   rack
      A place.  Things stand on it.

      More of it.
"""
TEXTS = ["Return the number of items in a list.", "A list is a mutable sequence; the items may be of any type."]


@pytest.fixture
def tokenizer():
    from tools.train_demo import vocabulary

    return vocabulary.learn(TEXTS, TINY.vocab)


@pytest.fixture
def sources(tmp_path):
    """A folder of documentation, as it is built and as it is in Python's repository."""
    faq = "Any\n---\n\nWhy are there shelves?\n----------------------\n\n.. _why:\n\nBecause of things.\n"
    builtin = "List\n====\n\n.. class:: list\n\n   A :func:`put` of items.\n\n   .. method:: pop()\n\n      Take one.\n"
    pages = {
        "library/shelf.rst.txt": PAGE,
        "glossary.rst": GLOSSARY,
        "faq/why.rst": faq,
        "library/stdtypes.rst": builtin,
    }
    for name, text in pages.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_entries_are_what_is_defined_and_referred_to(sources):
    found = {(entry.kind, entry.name): entry.text for entry in documentation.entries(sources)}
    assert found == {
        ("class", "shelf.Shelf"): "A place for things.",
        ("function", "shelf.put"): "Puts a *thing*, e.g. a :class:`Shelf`, on a :class:`Shelf`.  It is *fast*.",
        ("module", "shelf"): "Put things on shelves.",
        ("exception", "shelf.Full"): "Raised when a shelf is full, as follows:",
        ("term", "rack"): "A place.  Things stand on it.",
        ("question", "Why are there shelves?"): "Because of things.",
        ("method", "list.pop"): "Take one.",
    }


def test_a_folder_without_pages_is_refused_before_anything_is_written(tmp_path):
    pytest.importorskip("optax", reason="the extra `train` is not installed")
    command = [
        sys.executable,
        "-m",
        "tools.train_demo.train",
        f"--out={tmp_path / 'out'}",
        f"--documentation={tmp_path}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.fullmatch(r"--documentation=\S+: no \.rst pages in .*\n", done.stderr), done.stderr
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One. Two, e.g. Three. Four.", "One. Two, e.g. Three. Four."),
        (f"Short. {'Long ' * 40}.", "Short."),
        ("It is so. For example:", "It is so."),
        ("long " * 40, ""),
    ],
)
def test_a_summary_is_whole_sentences(text, kept):
    assert documentation.summary(text) == kept


def test_pairs_are_made_by_rules_alone(sources):
    topics = {topic.name: topic for topic in questions.topics(documentation.entries(sources))}
    assert topics["shelf.put"].answer == 'Puts a thing, e.g. a "Shelf", on a "Shelf". It is fast.'
    assert topics["shelf.put"].questions[0] == "What does shelf.put do?"
    assert topics["rack"].questions[0] == "What is a rack?"
    assert "shelf.Full" not in topics  # what it announces is not there
    asked = list(questions.conversations(list(topics.values()), (1, 0)))
    assert asked == list(questions.conversations(list(topics.values()), (1, 0)))
    assert asked != list(questions.conversations(list(topics.values()), (1, 1)))
    assert {answer for pairs in asked for _, answer in pairs} == {topic.answer for topic in topics.values()}


def test_what_a_function_does_is_a_question_too():
    entries = [
        documentation.Entry("function", name, text, "math")
        for name, text in (
            ("math.add", "Return the sum of two numbers (exactly). It is fast."),
            ("math.neg", "Return one number's opposite; it is fast."),
            ("math.id", "Returns what it is given."),
            ("math.e", "The base of logarithms."),
        )
    ]
    tasks = {topic.name: (topic.task, topic.solution) for topic in questions.topics(entries) if topic.task}
    assert tasks == {
        "math.add": ("How do I return the sum of two numbers (exactly)?", "Use math.add."),
        "math.neg": ("How do I return one number's opposite?", "Use math.neg."),
    }


def test_the_template_writes_what_training_read(tokenizer):
    from tools.train_demo import vocabulary

    pairs = [("What is a?", "A letter."), ("And b?", "Another.")]
    messages = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    told = {"bos_token": vocabulary.DOCUMENT, "eos_token": vocabulary.DOCUMENT}
    rendered = make_prompt(vocabulary.TEMPLATE, messages[:3], **told).text
    assert rendered == vocabulary.DOCUMENT + vocabulary.conversation(pairs).removesuffix(f"Another.{vocabulary.END}")
    assert tokenizer.encode(rendered).ids[:2] == [0, vocabulary.USER_ID]
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "a?"}]}]
    assert (
        make_prompt(vocabulary.TEMPLATE, parts, **told).text
        == make_prompt(vocabulary.TEMPLATE, messages[:1], **told).text
    )
    with pytest.raises(packlight.PacklightError, match="knows the roles user and assistant, not system"):
        make_prompt(vocabulary.TEMPLATE, [{"role": "system", "content": "x"}, *messages[:1]], **told)


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

    how = recipe.Recipe(steps=30, tokens=96, reading=30, window=16, long=0.1, longer=2, warm_up=2)
    talks = [vocabulary.conversation([("What is a list?", TEXTS[1])])]
    learned = [vocabulary.encode(tokenizer, texts) for texts in (TEXTS, talks)]
    text, asked = (recipe.stream(lambda epoch, ids=ids: ids, 96 * 30) for ids in learned)  # noqa: B023
    params = network.init(jax.random.key(how.seed), TINY)
    losses = []
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
        tx = recipe.optimizer(params, how)
        state, update = tx.init(params), recipe.updater(tx, TINY)
        for step in range(how.steps):
            batch = recipe.windows(recipe.Streams(text, asked), how, step)
            assert batch.shape == ((6, 17) if step < 27 else (3, 33))
            params, state, value = update(params, state, batch, recipe.told(batch))
            losses.append(float(value))
    assert losses[0] == pytest.approx(np.log(TINY.vocab), rel=0.02)  # nothing is known yet
    assert losses[-1] < 0.5 * losses[0]


def test_windows_go_on_where_the_step_before_ended():
    pytest.importorskip("optax", reason="the extra `train` is not installed")
    from tools.train_demo import recipe

    how = recipe.Recipe(steps=4, tokens=48, window=4, longer=2, long=0.5, reading=3)
    streams = recipe.Streams(np.arange(200), 1000 + np.arange(200))
    read = [recipe.windows(streams, how, step) for step in range(4)]
    assert [batch.shape for batch in read] == [(12, 5), (12, 5), (6, 9), (6, 9)]
    ids = np.concatenate([batch[:, :-1].ravel() for batch in read])
    np.testing.assert_array_equal(ids[ids < 1000], np.arange(3 * 16 + 8))
    np.testing.assert_array_equal(ids[ids >= 1000], 1000 + np.arange(3 * 32 + 40))


def test_what_a_user_asks_is_not_learned():
    pytest.importorskip("optax", reason="the extra `train` is not installed")
    from tools.train_demo import recipe

    windows = np.array([[0, 1, 50, 51, 3, 2, 60, 3, 1, 52], [70, 71, 3, 1, 50, 3, 2, 60, 3, 0]])
    learned = [[1, 1, 0, 0, 0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0, 1, 1, 1, 1]]
    np.testing.assert_array_equal(recipe.told(windows), np.array(learned, bool))


def test_answers_are_scored_by_their_words():
    from tools.train_demo import publish

    rows = [{"answer": said, "documented": "Return the sum of all the items."} for said in (
        "Return the sum of all the items.", "Return the sum of all", "Open a file.", ""
    )]  # fmt: skip
    assert publish.scores(rows) == {"asked": 4, "exact": 0.25, "begun": 0.5, "f1": pytest.approx((1 + 10 / 12) / 4)}
