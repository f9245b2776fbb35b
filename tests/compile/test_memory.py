"""The memory plan: its numbers are those of what is loaded, and what does not fit is refused before it is loaded."""

import dataclasses
import json
import re
import types

import jax
import pytest
from ggufs import write_llama
from running import packlight as run
from running import write_config

import packlight
from packlight.compile import memory
from packlight.compile.config import CompileConfig, MeshShape, default_config
from packlight.compile.memory import Limit, MemoryPlan, device_limit, host_limit
from packlight.compile.plan import make_plan
from packlight.model.gguf.reader import open_gguf
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import WHOLE
from packlight.model.weights.load import read_weights
from packlight.model.weights.params import place
from packlight.model.weights.placement import Placement
from packlight.prepared import Changes, prepare

SMALL = CompileConfig(context=64, prefill_buckets=(16,), decode_batch=(2,), head_rows=1)
MIXED = {"ffn_down": "Q6_K", "attn_v": "F16", "output": "Q5_0", "token_embd": "Q4_K", "default": "Q4_K"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Rows that no number of lanes divides: 300 of vocabulary."""
    folder = tmp_path_factory.mktemp("model")
    return write_llama(folder / "model.gguf", layers=2, embed=256, heads=4, kv_heads=2, vocab=300, formats=MIXED)


@pytest.fixture(scope="module")
def config():
    return SMALL


@pytest.mark.parametrize("change", [{}, {"cpu_kernels": "xla"}, {"kv_dtype": "bfloat16"}, {"decode_batch": (5,)}])
def test_weights_and_cache_are_those_that_get_loaded(path, config, change):
    prepared = prepare(path, dataclasses.replace(config, **change))
    host = read_weights(prepared.file, prepared.model, layouts=prepared.kernels.layouts)
    weights = sum(x.nbytes for x in jax.tree.leaves(place(host, Placement.on(jax.devices()))))
    assert prepared.memory.weights == weights
    head = prepared.model.head_count_kv * prepared.plan.capacity * prepared.model.key_length
    item = 2 if change.get("kv_dtype") else 4
    slots = prepared.config.slots
    assert prepared.memory.cache == 2 * 2 * slots * head * item + 4 * slots


@pytest.mark.parametrize("mesh", [MeshShape(1, 2), MeshShape(2, 1), MeshShape(2, 4)])
def test_on_a_mesh_the_numbers_are_of_each_device(path, config, mesh):
    """Of 2 kv heads, 2 devices hold one each and 4 hold each twice; 300 rows of vocabulary get padded."""
    prepared = prepare(path, dataclasses.replace(config, mesh=mesh, decode_batch=(4,)))
    placement = Placement.on(jax.devices(), prepared.split)
    layouts, devices = prepared.kernels.layouts, placement.tensor_numbers
    host = read_weights(prepared.file, prepared.model, layouts=layouts, split=prepared.split, devices=devices)
    parts = [[shard.data.nbytes for shard in x.addressable_shards] for x in jax.tree.leaves(place(host, placement))]
    assert {sum(sizes) for sizes in zip(*parts, strict=True)} == {prepared.memory.weights}
    heads = max(1, prepared.model.head_count_kv // mesh.tensor)
    slots = 4 // mesh.data
    each = heads * prepared.plan.capacity * prepared.model.key_length * 4
    assert prepared.memory.cache == 2 * 2 * slots * each + 4 * slots
    limit, alone = prepared.memory_limit, host_limit()
    assert limit is not None
    assert alone is not None
    assert limit.source == f"{alone.source} / {mesh.data * mesh.tensor} devices"


def test_the_limit_decides_and_is_told_before_loading(path, config):
    """R27: the key `memory_limit`; at the exact need of weights and cache only the scratch is too much."""
    needed = prepare(path, config).memory
    read = []
    short = dataclasses.replace(config, memory_limit=needed.total - 1)
    with pytest.raises(packlight.MemoryLimitError) as refused:
        packlight.load(path, short, on_read=lambda *_: read.append(1), on_built=lambda *_: read.append(1))
    assert read == []
    sizes = (needed.weights, needed.cache, needed.process, needed.total, needed.total - 1)
    assert str(refused.value).startswith(
        "{} does not fit: weights {} + cache {} + process {} = {}, but there are {}".format(
            path, *(f"{n / 1e6:,.1f} MB" for n in sizes)
        )
    )
    assert "memory_limit" in str(refused.value)

    with pytest.raises(packlight.MemoryLimitError, match="scratch"):
        packlight.load(path, dataclasses.replace(config, memory_limit=needed.total))
    llm = packlight.load(path, config)
    assert llm.memory.cache == llm.kv_bytes
    assert llm.memory.scratch == max(b.scratch_bytes + b.new_bytes for b in llm.executables.built.values()) > 0
    packlight.load(path, dataclasses.replace(config, memory_limit=llm.memory.total))


def test_the_command_line_prints_the_plan_or_refuses(path, config, tmp_path):
    small = write_config(tmp_path / "small.toml", context=64, memory_limit=201_620_000)
    for command in (("generate", "--prompt=x"), ("compile",)):
        done = run(*command, f"--model={path}", f"--config={small}")
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(
            r"error: .*model.gguf does not fit: weights [^\n]*201\.6 MB \(config key [^\n]*\); --slots=1 would fit\n",
            done.stderr,
        )
    fits = write_config(tmp_path / "fits.toml", context=64)
    done = run("compile", f"--model={path}", f"--config={fits}", "--json")
    assert done.stderr.startswith("memory: weights ")
    report = json.loads(done.stdout)["memory"]
    parts = [report[f"{name}_bytes"] for name in ("weights", "kv", "scratch", "process")]
    assert report["limit_bytes"] > sum(parts)
    done = run("--prompt=x", "--max_tokens=1", f"--model={path}", f"--config={fits}")
    assert done.returncode == 0
    size = r"[\d.,]+ MB"
    parts = rf"weights {size} \+ cache {size} \+ process {size}"
    assert re.match(rf"memory: {parts} = {size} of {size} \(", done.stderr)


@pytest.mark.parametrize(("context", "slots", "mesh"), [(4096, 4, MeshShape()), (1000, 6, MeshShape(2, 1))])
def test_what_the_error_advises_fits_and_more_does_not(tmp_path, context, slots, mesh):
    """R32: the numbers of the line, taken as flags, make plans that fit; one tile or one slot more does not."""
    path = write_llama(tmp_path / "long.gguf", layers=1, context=8192)
    config = CompileConfig(cpu_kernels="xla", prefill_buckets=(16, 64), mesh=mesh, decode_batch=(2,))

    def memory_of(context, slots):
        return prepare(path, config, context, slots).memory

    asked = memory_of(context, slots)
    limit = asked.total - asked.cache * 2 // 5
    with pytest.raises(packlight.MemoryLimitError) as refused:
        Limit(limit, "x").check(asked, "m")
    found = re.search(r"; context=(\d+) or slots=(\d+) would fit$", str(refused.value))
    assert found is not None
    less, fewer = int(found[1]), int(found[2])
    assert memory_of(less, slots).total <= limit < memory_of(less + 128, slots).total
    assert memory_of(context, fewer).total <= limit < memory_of(context, fewer + mesh.data).total
    none = "".join(map(str, asked.advice(asked.total - asked.cache + 9)))
    alone = ", or weights=mapped" if mesh == MeshShape() else ""
    assert none == f"no context would fit: take a smaller file{alone}"


@pytest.mark.parametrize(("kv_heads", "layers", "most"), [(32, 32, 2.2e9), (8, 32, 0.54e9)])
def test_one_sequence_of_a_large_model_takes_what_llama_cpp_takes(path, kv_heads, layers, most):
    """R32: Llama-2-7B and Llama-3-8B at 4096 tokens by the CPU's own config; 2.147 GB and 0.537 GB in llama.cpp."""
    small = ModelConfig.from_gguf(open_gguf(path))
    cfg = dataclasses.replace(
        small, block_count=layers, head_count=32, head_count_kv=kv_heads, key_length=128, slides=()
    )
    config = Changes(slots=1).applied(default_config("cpu"))
    plan = make_plan(config, 4096)
    cache = plan.cache(cfg, config.kv_dtype, WHOLE)
    assert cache.device_bytes == 2 * layers * kv_heads * 4096 * 128 * 2 + 4 < most


def test_a_plan_adds_up():
    assert MemoryPlan(3, 4).total == 7
    assert MemoryPlan(3, 4, 5).total == 12
    assert MemoryPlan(3, 4, 5, process=6).total == 18
    Limit(12, "x").check(MemoryPlan(3, 4, 5), "m")
    with pytest.raises(packlight.MemoryLimitError):
        Limit(11, "x").check(MemoryPlan(3, 4, 5), "m")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A /proc and a /sys/fs/cgroup of our own; files by path, with 8,000 kB available."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    write({"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"})
    return write


def test_free_memory_of_the_system(machine):
    assert host_limit() == Limit(8_192_000, "free memory")
    machine({"proc/meminfo": "MemTotal: 9000 kB\n"})
    everything = host_limit()
    assert everything is not None
    assert everything.bytes > 1e8  # all of the memory of the machine that runs this


def test_the_tightest_control_group_counts(machine):
    """Version 2; an outer group is tighter, and its file cache could be dropped."""
    machine({
        "proc/self/cgroup": "0::/a/b\n",
        "cgroup/a/b/memory.max": "max\n",
        "cgroup/a/b/memory.current": "1\n",
        "cgroup/a/b/memory.stat": "inactive_file 0\n",
        "cgroup/a/memory.max": "5000000\n",
        "cgroup/a/memory.current": "3000000\n",
        "cgroup/a/memory.stat": "anon 1\nactive_file 1500000\ninactive_file 1000000\n",
    })  # fmt: skip
    assert host_limit() == Limit(4_500_000, "memory cgroup")
    machine({"cgroup/a/memory.max": "max\n"})
    assert host_limit() == Limit(8_192_000, "free memory")


def test_control_groups_of_version_1(machine):
    machine({
        "proc/self/cgroup": "5:cpu:/x\n4:memory:/a\n",
        "cgroup/memory/a/memory.limit_in_bytes": "5000000\n",
        "cgroup/memory/a/memory.usage_in_bytes": "1000000\n",
        "cgroup/memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 150000\ntotal_active_file 50000\n",
    })  # fmt: skip
    assert host_limit() == Limit(4_200_000, "memory cgroup")


def test_a_device_says_what_it_has_free():
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 10, "bytes_in_use": 3}, device_kind="X")
    assert device_limit([device]) == Limit(7, "free on X")
    assert device_limit([types.SimpleNamespace(memory_stats=lambda: None)]) is None
