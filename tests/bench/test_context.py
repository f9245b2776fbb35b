"""The bench of long contexts: its rows, and that no row is what a user could not check."""

import pytest
from ggufs import write_llama

from packlight.bench.context import perplexity, unstretched, ways
from packlight.common.errors import ConfigError
from packlight.prepared import prepare


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("context") / "m.gguf", layers=1, embed=32, vocab=270, context=64)


def test_each_row_has_a_context_and_its_positions(path):
    assert list(ways(path, 64, 1)) == ["none"]
    found = ways(path, 64, 4)
    assert {name: each.model.rope_scaling.kind for name, each in found.items()} == {
        "none": "none",
        "linear": "linear",
        "yarn": "yarn",
    }
    assert {each.context for each in found.values()} == {256}
    with pytest.raises(ConfigError, match="the model has only 64"):
        prepare(path, context=256)


def test_a_row_is_a_perplexity_over_whole_contexts(path):
    found = perplexity(unstretched(path, 96), 400 * "word and word ", 300)
    assert found["tokens"] == 3 * 47
    assert found["perplexity"] > 1
