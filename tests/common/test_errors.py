"""Messages that name parameters: in Python's words, and in those of a front end; neighbours of misspelt names."""

import pickle

import pytest

from packlight.common.errors import Argument, ConfigError, MissingFileError, PacklightError
from packlight.common.text import naming, near


def test_a_message_is_worded_as_its_reader_writes_parameters():
    error = ConfigError("short of memory; ", Argument("context", 512), " or ", Argument("slots", 2), " would fit")
    assert str(error) == "short of memory; context=512 or slots=2 would fit"
    assert error.worded(lambda argument: f"--{argument}") == "short of memory; --context=512 or --slots=2 would fit"
    assert str(ConfigError("pass one with ", Argument("template"))) == "pass one with template="
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(MissingFileError("m.gguf: cannot open")) == "m.gguf: cannot open"


def test_a_files_name_is_put_before_the_parameters():
    with pytest.raises(PacklightError) as raised, naming("m.gguf"):
        raise ConfigError(Argument("context", 9), ": too much")
    assert raised.value.worded(lambda argument: f"--{argument}") == "m.gguf: --context=9: too much"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("temprature", "; did you mean 'temperature'?"),
        ("TEMPERATURE", "; did you mean 'temperature'?"),
        ("temp", "; did you mean 'temperature'?"),
        ("q4_k", "; did you mean 'Q4_K'?"),
        ("t", ""),
        ("banana", ""),
    ],
)
def test_a_misspelt_name_has_a_neighbour(name, said):
    assert near(name, ["temperature", "top_p", "Q4_K"]) == said
