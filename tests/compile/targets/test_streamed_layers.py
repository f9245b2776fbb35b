"""Layers streamed from pinned host memory, as they are compiled for GPUs and TPUs: `make test-targets`.

No such program has run; that it gives the resident model's bits is shown on a CPU (`tests/model/weights/test_ring.py`).
"""

import dataclasses
import functools
import json
import re

import pytest
from ggufs import write_llama
from running import STEPS, succeed, write_config

import packlight as api
from packlight.compile import aot
from packlight.compile.config import default_config
from packlight.compile.targets import targets
from packlight.model.spec.weights import formats
from packlight.model.weights.params import abstract
from packlight.model.weights.pinned import BUFFERS
from packlight.model.weights.placement import Placement

pytestmark = pytest.mark.targets

NAMES = ("cuda:h100", "cuda:h200", "tpu:v5e", "tpu:v6e")
LAYERS, KEPT = 6, 2
MATRICES = 7  # of a layer
HOST = "S(5)"  # in a layout: memory of the host
# A kernel of ours, as the compilers name it.
KERNEL = re.compile(r'custom_call_target="(?:tpu_custom_call|mosaic_gpu[\w.]*)"')
CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Two tensors alternate between formats, as in Q4_K_M; the first streamed layer has the wider one."""
    wider = {f"blk.{layer}.{name}": "Q6_K" for layer in (0, 2, 4) for name in ("ffn_down", "attn_v")}
    folder = tmp_path_factory.mktemp("model")
    mixed = {"default": "Q4_K"} | wider
    shape = {"layers": LAYERS, "embed": 1024, "heads": 8, "kv_heads": 4, "ffn": 12288, "vocab": 512}
    return write_llama(folder / "m.gguf", **shape, formats=mixed)


def prepared_for(name, path, weights, kept=KEPT):
    """The model for a target, with a budget that so many layers stay in; prefill and decode only."""
    config = default_config(targets.parse(name).platform)
    config = dataclasses.replace(config, context=64, prefill_buckets=(16,), decode_batch=(1,), weights=weights)
    prepared = api.prepare(path, dataclasses.replace(config, weights_budget=1 << 40, store=False))
    if weights == "streamed":
        where = dataclasses.replace(prepared.residence, kept=kept)
        budget = prepared.memory.weights + where.resident_bytes + where.ring_bytes
        prepared = dataclasses.replace(prepared, named=dataclasses.replace(prepared.named, weights_budget=budget))
        assert prepared.kept == kept
    return dataclasses.replace(prepared, planned=dataclasses.replace(prepared.plan, head_rows=(), scores=False))


def shapes(prepared, name):
    """Placement and parameters on a device of the target."""
    placement = Placement.on(targets.devices(targets.parse(name))[:1])
    kinds, layouts = formats(prepared.file), prepared.kernels.layouts
    return placement, abstract(prepared.model, kinds, layouts, placement, kept=prepared.kept)


@functools.cache
def compiled(name, path, weights):
    prepared = prepared_for(name, path, weights)
    placement, params = shapes(prepared, name)
    built = aot.build(prepared.steps(placement), params, load=False).built
    return prepared, {str(key.phase): each for key, each in built.items()}


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    line: str

    @property
    def fetches(self):
        return self.opcode.endswith("-start") and HOST in self.line


def computations(text):
    """The name of each computation -> its instructions in the order they are scheduled."""
    found, current = {}, []
    for line in text.splitlines():
        if (head := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line)) and " = " not in line.split("{")[0]:
            found[head[1]] = current = []
        elif made := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)", line):
            current.append(Instruction(made[1], opcode(made[2]), line))
    return found


def opcode(text):
    """Of `f32[2,3]{1,0} fusion(...` or `(f32[2], s32[]) while(...`."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == " " and depth == 0:
            return text[at + 1 :].partition("(")[0]
    return ""


def reached(name, found):
    """The instructions of a computation and of all that it calls."""
    for each in found[name]:
        yield each
        called = CALLED.findall(each.line) + [
            branch.strip(" %") for names in BRANCHES.findall(each.line) for branch in names.split(",")
        ]
        for other in called:
            yield from reached(other, found)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_is_fetched_while_the_one_before_it_runs(name, phase, path):
    """Each matrix's copy starts before the layer's kernels, which are in a loop of their own, and ends behind them; the
    first layer's around the loop over layers that stay.
    """
    _, built = compiled(name, path, "streamed")
    found = computations(built[phase].call.as_text())
    fetching = [each for each in found.values() if any(one.fetches for one in each)]
    assert len(fetching) == 2  # where the first layer is fetched, and the loop over the others
    for instructions in fetching:
        starts = [at for at, each in enumerate(instructions) if each.fetches]
        assert len(starts) == MATRICES
        beside = next(at for at, each in enumerate(instructions) if at > starts[-1] and each.opcode == "while")
        between = instructions[: starts[-1]]
        assert not any(KERNEL.search(each.line) or each.opcode in ("while", "conditional") for each in between)
        (body,) = re.findall(r"body=%?([\w.-]+)", instructions[beside].line)
        assert sum(bool(KERNEL.search(each.line)) for each in reached(body, found)) >= MATRICES
        for start in starts:
            ends = [
                at
                for at, each in enumerate(instructions)
                if each.opcode.endswith("-done")
                and re.search(rf"%{re.escape(instructions[start].name)}[,)]", each.line)
            ]
            assert len(ends) == 1
            assert ends[0] > beside


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", NAMES)
def test_scratch_is_the_layers_on_their_way_and_none_of_it_in_the_host(name, phase, path):
    """Beside what the resident model's step needs: two layers on a GPU, at most three on a TPU. A tenth of a layer of
    27 MB is for what does not grow with them.
    """
    prepared, built = compiled(name, path, "streamed")
    _, resident = compiled(name, path, "resident")
    where, memory = prepared.residence, built[phase].call.memory_analysis()
    most = BUFFERS[prepared.config.platform] + 0.1
    beside = built[phase].scratch_bytes - resident[phase].scratch_bytes
    assert where.passing < beside <= most * where.passing
    assert memory.host_temp_size_in_bytes == 0
    assert memory.host_argument_size_in_bytes == where.step_bytes == (LAYERS - KEPT) * where.passing
    assert built[phase].argument_bytes < resident[phase].argument_bytes - 3 * where.passing


@pytest.mark.parametrize("name", NAMES)
def test_no_fetch_has_an_offset_that_the_compiler_computed(name, path):
    """jaxlib 0.10.2 writes a wrong one for layers whose number is not data."""
    _, built = compiled(name, path, "streamed")
    for each in built.values():
        found = computations(each.call.as_text())
        fetches = [one for instructions in found.values() for one in instructions if one.fetches]
        called = [inner for one in fetches for of in CALLED.findall(one.line) for inner in found[of]]
        assert not any("dynamic_slice_config" in one.line for one in (*fetches, *called))


@pytest.mark.parametrize("name", ["cuda:h200", "tpu:v6e"])
def test_where_layers_are_is_part_of_an_entrys_name(name, path):
    digests = set()
    for weights, kept in (("resident", None), ("streamed", 1), ("streamed", 2)):
        prepared = prepared_for(name, path, weights, kept)
        placement, params = shapes(prepared, name)
        digests.add(aot.entry_digest(prepared.steps(placement), prepared.plan.steps[0], params))
    assert len(digests) == 3


@pytest.mark.parametrize("name", ["cuda:h200", "tpu:v5e"])
def test_the_command_says_what_is_where_and_what_its_link_takes(name, path, tmp_path):
    target = targets.parse(name)
    where = prepared_for(name, path, "streamed").residence
    keys = {"platform": target.platform, "context": 64, "kv_dtype": "bfloat16", "activation_dtype": "bfloat16"}
    budget = where.resident_bytes + where.ring_bytes + 1_000_000  # and vectors
    config = write_config(tmp_path / "c.toml", **keys, weights_budget=budget, cache_dir=str(tmp_path / "store"))
    done = succeed(
        "compile", f"--model={path}", f"--config={config}", f"--target={name}", "--weights=streamed", "--json"
    )
    rows = json.loads(done.stdout)["executables"]
    assert len(rows) == STEPS == len(list((tmp_path / "store").glob("*.aot")))
    copied = {row["step"].split("[")[0]: row["must_copy_bytes"] for row in rows}
    assert copied == {"prefill": where.step_bytes, "decode": where.step_bytes, "head": 0, "score": 0, "copy": 0}
    lines = done.stderr.splitlines()
    assert f"streamed: {where}; streamed weights " in lines[0]
    (link,) = (line for line in lines if line.startswith("host link: "))
    if target.platform == "gpu":
        assert f"{1e3 * where.step_bytes / 64e9:,.1f} ms at least by 64 GB/s" in link
        assert {row["roofline_limit"] for row in rows if row["must_copy_bytes"]} == {"host link"}
        assert "XLA's option xla_gpu_experimental_parallel_async_compute_limit = 16: every step" in done.stderr
    else:
        assert link.endswith("no rate of it is published for TPU v5 lite")
        assert "host link" not in {row["roofline_limit"] for row in rows}
