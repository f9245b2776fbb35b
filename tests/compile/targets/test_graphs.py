"""What the host does of a step for a GPU, read from the program that XLA makes: its CUDA graphs, what is outside of
them, and where it waits to see a number. Nothing runs; XLA writes the list of what its runtime would do.
"""

import dataclasses
import functools
import pathlib
import re
from typing import NamedTuple

import jax
import pytest
from ggufs import write_llama

import packlight as api
from packlight.compile import aot
from packlight.compile.config import default_config
from packlight.compile.targets import targets
from packlight.model.spec.weights import formats
from packlight.model.weights.params import abstract
from packlight.model.weights.placement import Placement

pytestmark = pytest.mark.targets
SLOTS, LAYERS = 8, 2
FORMATS = {"default": "Q4_K", "output": "Q6_K", "blk.1.ffn_down": "Q6_K", "blk.1.attn_v": "Q6_K"}  # as Q4_K_M has them
STARTS = {"kCustomKernel", "kCustomCall", "kCublasLtMatmul", "kCopy"}  # something on the device


class Thunk(NamedTuple):
    """One thing that the runtime does, and what it is inside of, the outermost first."""

    kind: str
    inside: tuple[str, ...]

    @property
    def in_graph(self) -> bool:
        return "kCommandBuffer" in self.inside

    @property
    def in_layers(self) -> bool:
        return self.inside[:2] == ("kWhile", "kWhile")  # the loop over layers in that over a launch's tokens


class Program(NamedTuple):
    """A compiled step: its HLO and its thunks."""

    text: str
    thunks: list[Thunk]


def read_thunks(text: str) -> list[Thunk]:
    """XLA's `thunk_sequence_after_thunk_passes`: lines that are indented as what they are inside of wants it."""
    thunks, around = [], []
    for line in text.splitlines():
        if match := re.match(r"( *)\d+: (k\w+)", line):
            around = [(at, kind) for at, kind in around if at < len(match[1])]
            thunks.append(Thunk(match[2], tuple(kind for _, kind in around)))
            around.append((len(match[1]), match[2]))
    return thunks


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The step of a phase for an H200: of a prompt's 16 tokens, or a launch of 8 tokens for 8 slots."""
    folder = tmp_path_factory.mktemp("graphs")
    shape = {"layers": LAYERS, "embed": 256, "heads": 4, "kv_heads": 2, "vocab": 512}
    path = write_llama(folder / "m.gguf", **shape, formats=FORMATS)

    @functools.cache
    def made(phase: str) -> Program:
        dump = folder / phase
        steps = {"prefill_buckets": (16,), "decode_batch": (SLOTS,), "length_buckets": ()}
        kept = {"store": False, "xla_options": (("xla_dump_to", str(dump)),)}
        config = dataclasses.replace(default_config("gpu"), context=64, **steps, **kept)
        prepared = api.prepare(path, config)
        without = {"decode": {"prefill_buckets": ()}, "prefill": {"decode_batch": ()}}[phase]
        plan = dataclasses.replace(prepared.plan, head_rows=(), **without)
        placement = Placement.on([targets.devices(targets.parse("cuda:h200"))[0]])
        params = abstract(prepared.model, formats(prepared.file), prepared.kernels.layouts, placement)
        steps = dataclasses.replace(prepared, planned=plan).steps(placement)
        executables = aot.build(steps, params, load=False)
        (built,) = (each for key, each in executables.built.items() if key.phase == phase)
        (found,) = pathlib.Path(dump).glob(f"*jit_{phase}.thunk_sequence_after_thunk_passes.txt")
        return Program(built.call.as_text(), read_thunks(found.read_text()))

    return made


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_every_pallas_call_and_product_is_in_a_graph(phase, program):
    """As XLA has it where the target's file names a driver and a runtime that can (`driver_version`). jax 0.11 leaves
    one call of a layer between two graphs, beside the end of an asynchronous copy.
    """
    calls = [thunk for thunk in program(phase).thunks if thunk.kind in ("kCustomCall", "kCublasLtMatmul")]
    assert len(calls) >= 12
    assert sum(not call.in_graph for call in calls) <= (jax.__version_info__ >= (0, 11))


def test_the_host_waits_three_times_a_token_whatever_the_layers(program):
    """A wait is a number that decides what the host starts next: the branch of a conditional, or whether a loop whose
    trips XLA does not know goes on. Greedy tokens take the empty branch of the sampler's two.
    """
    text, thunks = program("decode")
    outside = [thunk for thunk in thunks if not thunk.in_graph and thunk.kind in ("kConditional", "kWhile")]
    assert [thunk for thunk in outside if thunk.in_layers] == []
    of_token = [thunk.kind for thunk in outside if thunk.inside == ("kWhile",)]
    assert of_token == ["kWhile", "kConditional", "kConditional"]
    unknown = [line for line in re.findall(r" while\(.*", text) if "known_trip_count" not in line]
    assert len(unknown) == 1  # that over a launch's tokens; that over layers is counted by the host


def test_kernels_and_graphs_of_a_layer(program):
    """Of 8 slots, without those of branches: 26 with jax 0.10.2; loops over the slots made it 60."""
    thunks = [thunk for thunk in program("decode").thunks if thunk.in_layers]
    assert 1 <= sum(thunk.kind == "kCommandBuffer" for thunk in thunks) <= 2
    started = [thunk for thunk in thunks if thunk.kind in STARTS and "kConditional" not in thunk.inside]
    assert len(started) <= 30, len(started)


def test_keys_and_values_of_all_slots_are_written_by_one_kernel_each(program):
    text = program("decode").text
    cache = rf"bf16\[{LAYERS},{SLOTS},2,128,64\]\S* "
    writes = re.findall(rf" = {cache}(?:fusion|copy)\(.*", text)
    assert len(writes) == 2  # in place: nothing else makes an array of that size
    assert all("kind=kInput" in line and "/attention/" in line for line in writes)
    assert not re.search(r" while\(.*op_name=\"[^\"]*/attention/", text)


def test_a_prompt_is_multiplied_by_cublas(program):
    """Without the card XLA tries none of its own kernels, and the first is of tiles of 16 x 8."""
    text = program("prefill").text
    # q, k and v at once and ffn_down, each in a branch for either format; attn_output; gate and up at once
    assert text.count('custom_call_target="__cublas$lt$matmul"') == 6
    assert "gemm_fusion" not in text
    assert "__triton_gemm" not in text
