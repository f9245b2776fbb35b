"""The tests that `make test-changed` chooses."""

import pathlib

from changed import ROOT, reached


def names(*paths: str) -> set[str]:
    return {path.name for path in reached([pathlib.Path(ROOT, path) for path in paths])}


def test_a_source_reaches_the_tests_that_import_it_through_others_too():
    assert {"test_sampling_chain.py", "test_launches.py"} <= names("model/sampling/chain.py")
    assert "test_tokenizer.py" not in names("model/sampling/chain.py")
    assert "test_native.py" in names("quant/kernels/native_ops.py")


def test_a_test_or_a_helper_reaches_what_it_must():
    assert names("tests/model/text/test_wpm.py") == {"test_wpm.py"}
    assert {"test_logits.py", "test_invariance.py"} <= names("tests/helpers/steps.py")
    assert len(names("tests/conftest.py")) > 50


def test_a_document_reaches_the_tests_of_the_project():
    assert "test_docs.py" in names("README.md")
    assert "test_logits.py" not in names("README.md")
    assert names() == set()
