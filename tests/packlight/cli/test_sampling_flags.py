"""The one table of sampling parameters: fields, checks, documentation, flags and device arrays all follow from it."""

import dataclasses
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from packlight.cli.commands import COMMANDS
from packlight.cli.inputs import sampling_fields
from packlight.model.sampling.chain import SlotSampling, slot_sampling
from packlight.model.sampling.config import PARAMETERS, SamplingConfig
from packlight.model.sampling.parameters import Biases, Integer, Real, Schema, Switch, Text, Texts

NAMES = [parameter.name for parameter in PARAMETERS]
FLAG_KINDS = {Real: "float", Integer: "int", Switch: "bool", Text: "string", Schema: "string"}
FIELD_TYPES = {Real: float, Integer: int, Switch: bool, Text: str, Schema: str, Texts: tuple, Biases: tuple}


def test_every_field_is_a_row_whose_kind_is_its_type():
    fields = dataclasses.fields(SamplingConfig)
    assert [field.name for field in fields] == NAMES
    for field, parameter in zip(fields, PARAMETERS, strict=True):
        optional = type(None) in get_args(field.type)
        kind = next(t for t in get_args(field.type) if t is not type(None)) if optional else field.type
        assert getattr(kind, "__origin__", kind) is FIELD_TYPES[type(parameter.kind)], field.name
        assert optional == (parameter.default is None)
        assert parameter.kind.check(parameter.name, parameter.default) == parameter.default


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_every_parameter_is_a_flag_with_its_default_and_help(command):
    values = COMMANDS[command].define()
    values([command])
    without = {"logprobs", "prompt_logprobs"} if command == "chat" else set()  # a chat has nowhere to show them
    for parameter in PARAMETERS:
        assert (parameter.name in values) == (parameter.name not in without)
        if parameter.name in values:
            flag = values[parameter.name]
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            assert flag.default == default
            assert flag.help.startswith(parameter.help)  # absl adds to that of a list
            kind = FLAG_KINDS.get(type(parameter.kind))
            assert kind is None or flag.flag_type() == kind
    assert SamplingConfig(**sampling_fields(values)) == SamplingConfig()


def test_flags_become_the_fields_that_they_name(tmp_path):
    tmp_path.joinpath("schema").write_text("{}")
    values = COMMANDS["generate"].define()
    given = ["--top_k=7", "--stop=a", "--stop=b", "--logit_bias=5-inf", "--logit_bias=3+1.5", "--ignore_eos"]
    values(["generate", *given, f"--json_schema=@{tmp_path / 'schema'}", "--regex=@x"])
    fields = sampling_fields(values)
    assert fields["logit_bias"] == {5: -np.inf, 3: 1.5}
    assert (fields["top_k"], fields["stop"], fields["ignore_eos"]) == (7, ["a", "b"], True)
    assert (fields["json_schema"], fields["regex"]) == ("{}", "@x")  # a regular expression may begin with @


def test_the_class_documents_every_parameter():
    lines = (SamplingConfig.__doc__ or "").splitlines()
    for parameter in PARAMETERS:
        assert any(line.split(maxsplit=1) == [parameter.name, parameter.help] for line in lines), parameter.name


def test_device_arrays_are_the_parameters_with_a_dtype_and_one_state():
    dtypes = {parameter.name: parameter.dtype for parameter in PARAMETERS if parameter.dtype}
    assert set(SlotSampling._fields) == {*dtypes, "mirostat_mu"}
    slots = slot_sampling([SamplingConfig(seed=3), SamplingConfig(temperature=0)])
    assert {name: str(array.dtype) for name, array in slots._asdict().items()} == dtypes | {"mirostat_mu": "float32"}
    for parameter in PARAMETERS:
        if parameter.dtype and parameter.default is None:
            assert getattr(slots, parameter.name).tolist()[1] == parameter.absent


def test_the_table_and_the_help_import_neither_numpy_nor_jax():
    code = "import sys, packlight.cli.main; sys.exit('numpy' in sys.modules or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
