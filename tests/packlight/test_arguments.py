"""The arguments of the Python API: their types and defaults are the table's, misspelt ones name their neighbour."""

import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import packlight
from packlight import demo
from packlight.arguments import Sampling
from packlight.model.sampling.config import PARAMETERS
from packlight.model.sampling.parameters import Biases, Integer, Kind, Real, Schema, Switch, Text, Texts
from packlight.model.spec.pooling import POOLINGS
from packlight.model.spec.rope_changes import ROPE, Rope
from packlight.prepared import KV_TYPES, Changes, KVType

SAMPLED = (packlight.LLM.generate, packlight.LLM.stream, packlight.LLM.chat)


def accepted(kind: Kind) -> Any:
    """The type of what a kind's check takes."""
    match kind:
        case Real():
            return float
        case Integer(optional=optional):
            return int | None if optional else int
        case Switch():
            return bool
        case Text():
            return str | None
        case Schema():
            return str | Mapping[str, Any] | None
        case Texts():
            return list[str] | tuple[str, ...]
        case Biases():
            return Mapping[int, float] | Sequence[tuple[int, float]]


def test_the_keywords_are_the_table_of_sampling_parameters():
    typed = typing.get_type_hints(Sampling)
    assert list(typed) == [parameter.name for parameter in PARAMETERS]
    for parameter in PARAMETERS:
        assert typed[parameter.name] == accepted(parameter.kind), parameter.name
        assert parameter.help in (Sampling.__doc__ or "")
    assert Sampling.__required_keys__ == frozenset()


def test_choices_that_are_typed_are_those_that_there_are():
    assert set(typing.get_args(KVType)) == set(KV_TYPES)
    (named, _) = typing.get_args(typing.get_type_hints(packlight.LLM.embed)["pooling"])
    assert set(typing.get_args(named)) == set(POOLINGS)


@pytest.mark.parametrize("function", SAMPLED, ids=lambda function: function.__name__)
def test_a_signature_shows_each_parameter_with_its_default(function):
    shown = inspect.signature(function).parameters
    for parameter in PARAMETERS:
        assert shown[parameter.name].default == parameter.default
        assert shown[parameter.name].annotation == typing.get_type_hints(Sampling)[parameter.name]
    assert "sampling" not in shown


@pytest.mark.parametrize("function", [packlight.load, packlight.prepare])
def test_what_loads_shows_what_stretches_positions(function):
    shown = inspect.signature(function).parameters
    assert {name: shown[name].annotation for name in ROPE} == typing.get_type_hints(Rope)
    assert {shown[name].default for name in ROPE} == {None}
    assert "rope" not in shown


@pytest.mark.parametrize("function", [packlight.load, packlight.prepare, *SAMPLED, packlight.LLM.embed])
def test_a_docstring_speaks_of_each_argument_of_its_own(function):
    own = set(inspect.signature(function).parameters) - {parameter.name for parameter in PARAMETERS} - {"self"}
    said = inspect.getdoc(function) or ""
    if function in (packlight.LLM.stream, packlight.prepare):
        assert "rguments" in said  # another's
    else:
        assert all(f"    {name}: " in said for name in own), said
    assert "aises" in said or "errors are" in said


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: packlight.load(contxt=512), "load() takes no argument 'contxt'; did you mean 'context'?"),
        (lambda: packlight.load(rope_scal=2), "load() takes no argument 'rope_scal'; did you mean 'rope_scale'?"),
        (lambda: packlight.load(n_ctx=512), "load() takes no argument 'n_ctx'; did you mean 'context'?"),
        (lambda: packlight.prepare("x", kv_typ="f16"), "prepare() takes no argument 'kv_typ'; did you mean 'kv_type'?"),
        (
            lambda: packlight.load(verbose=True),
            f"load() takes no argument 'verbose'; it takes: {', '.join(inspect.signature(packlight.load).parameters)}",
        ),
        (
            lambda: packlight.CompileConfig(contex=512),
            "CompileConfig() takes no argument 'contex'; did you mean 'context'?",
        ),
        (
            lambda: packlight.SamplingConfig(max_token=1),
            "SamplingConfig() takes no argument 'max_token'; did you mean 'max_tokens'?",
        ),
    ],
)
def test_a_misspelt_argument_names_its_neighbour(call, words):
    """It is Python's own kind of error, and one of ours."""
    with pytest.raises(TypeError) as raised:
        call()
    assert str(raised.value) == words
    assert isinstance(raised.value, packlight.ConfigError)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"),
        ("temp", "temperature"),
        ("maxtokens", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("n_predict", "max_tokens"),
        ("repetition_penalty", "repeat_penalty"),
        ("topp", "top_p"),
        ("response_format", "json_schema"),
    ],
)
@pytest.mark.parametrize("function", SAMPLED, ids=lambda function: function.__name__)
def test_a_misspelt_sampling_parameter_names_its_neighbour(function, name, meant):
    """No model is loaded, so a wrong name is refused before anything else happens."""
    with pytest.raises(packlight.ArgumentError, match=f"{function.__name__}.* '{name}'; did you mean '{meant}'"):
        function(None, "x", **{name: 1})


def test_a_stream_is_asked_for_by_its_name():
    with pytest.raises(packlight.ArgumentError, match="did you mean 'llm.stream'"):
        packlight.LLM.generate(None, "x", stream=True)  # pyright: ignore
    for call in (lambda: packlight.load(stream=True), lambda: packlight.LLM.stream(None, "x", stream=True)):
        with pytest.raises(packlight.ArgumentError, match="takes no argument 'stream'") as raised:
            call()  # what continues no prompt, and what is a stream
        assert "llm." not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"context": 10**6}, "context=1000000: the model has only 512"),
        ({"context": -1}, "context=-1: it is an integer of at least 0"),
        ({"context": "512"}, "context='512': it is an integer of at least 0"),
        ({"slots": 1.5}, "slots=1.5: it is an integer of at least 1"),
        ({"kv_type": "f61"}, "kv_type=f61: it is one of f32, f16, bf16"),
        ({"kv_type": ["f16"]}, r"kv_type=\['f16'\]: it is one of f32, f16, bf16"),
        ({"path": 123}, "path is the file or the name of a model, not 123"),
        ({"path": ""}, "path is the file or the name of a model, not ''"),
        ({"config": "cpuu"}, "config cpuu: .*; did you mean 'cpu'"),
        ({"config": packlight.CompileConfig(context=4096)}, "config key 'context' is 4096; the model has only 512"),
    ],
)
def test_a_value_is_refused_in_the_callers_words(given, words):
    with pytest.raises(packlight.ConfigError, match=words):
        packlight.load(**given)


def test_a_number_may_be_numpys():
    prepared = packlight.prepare(demo.MODEL, "cpu", context=np.int64(128), slots=np.uint8(2))  # pyright: ignore
    assert prepared.changes == Changes(128, 2)
    assert {type(prepared.changes.context), type(prepared.changes.slots)} == {int}


def test_misspelt_files_and_formats_name_their_neighbours(tmp_path):
    (tmp_path / "tiny-Q4_K_M.gguf").touch()
    for call, words in (
        (lambda: packlight.load(tmp_path / "tiny-Q4_KM.gguf"), "did you mean 'tiny-Q4_K_M.gguf'"),
        (lambda: packlight.unpack([], "q4_k"), "did you mean 'Q4_K'"),
    ):
        with pytest.raises(packlight.PacklightError, match=words):
            call()
