"""What of the cache was never written takes no memory on a CPU, and means nothing whatever it holds."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ggufs import write_llama
from golden_models import golden
from resident import anonymous_memory, resident, resident_tree
from tiers import product

import packlight
from packlight.common import pages
from packlight.compile.config import CompileConfig, MeshShape
from packlight.model.spec.sharding import Split
from packlight.model.weights.placement import P, Placement
from packlight.prepared import prepare

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes pages back")
LARGE = CompileConfig(context=32768, prefill_buckets=(16,), decode_batch=(4,), head_rows=1)
SMALL = CompileConfig(context=128, prefill_buckets=(16,), decode_batch=(4,), head_rows=8)
SHARE = 0.03  # of a cache, that a short text may take


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file whose cache has 268 MB under LARGE, and the config with a store of its own."""
    folder = tmp_path_factory.mktemp("large")
    path = write_llama(folder / "model.gguf", layers=2, head_dim=64, context=32768)
    return path, dataclasses.replace(LARGE, cache_dir=str(folder / "store"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
@pytest.mark.parametrize("split", [Split(), Split(2, 2)], ids=["one device", "mesh"])
def test_zeros_take_memory_where_they_are_written(dtype, split):
    placement = Placement.on(jax.devices(), split)
    spec = P("data", None, "tensor", None)
    zeros = placement.zeros((4, 50, 8, 4096), dtype, spec)
    expected = placement.put(np.zeros(zeros.shape, jnp.dtype(dtype)), spec)
    assert zeros.dtype == expected.dtype
    assert zeros.sharding == expected.sharding
    assert len(zeros.addressable_shards) == split.data * split.tensor
    assert resident(zeros) < SHARE * zeros.nbytes
    if dtype == "bfloat16":
        return  # XLA:CPU's update of a part goes over the whole array, by way of float32
    before = places(zeros)

    def write(x):
        ones = jnp.ones((x.shape[0], 1, *x.shape[2:]), x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(x, ones, 3, axis=1)

    local = write if placement.single else jax.shard_map(write, mesh=placement.mesh, in_specs=spec, out_specs=spec)
    step = jax.jit(local, donate_argnums=0).lower(expected).compile()
    for _ in range(3):
        zeros = step(zeros)
    assert places(zeros) == before
    assert resident(zeros) < 1.2 * zeros.nbytes / 50 + SHARE * zeros.nbytes
    np.testing.assert_array_equal(zeros, write(expected))


def places(array: jax.Array) -> list[int]:
    return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]


@pytest.mark.parametrize(
    ("kernels", "dtype", "mesh"),
    [
        product("native", "float32", MeshShape()),
        ("native", "float16", MeshShape()),
        product("xla", "float16", MeshShape(2, 2)),
    ],
    ids=str,
)
def test_a_short_text_takes_a_small_part_of_a_large_cache(large, kernels, dtype, mesh, monkeypatch):
    path, config = large
    llm = packlight.load(path, dataclasses.replace(config, cpu_kernels=kernels, kv_dtype=dtype, mesh=mesh))
    engine = llm.engine
    assert engine.cache_bytes == llm.kv_bytes > 134e6
    before = jax.tree.map(places, engine._cache)
    assert resident_tree(engine._cache) < 0.01 * engine.cache_bytes
    ids = llm.generate([5, 6, 7], max_tokens=6, temperature=0).token_ids
    assert jax.tree.map(places, engine._cache) == before
    assert resident_tree(engine._cache) < SHARE * engine.cache_bytes

    def interrupted(*_):
        jax.tree.map(lambda x: x.delete(), engine._cache)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([5, 6, 7])
    assert resident_tree(engine._cache) < 0.01 * engine.cache_bytes
    assert llm.generate([5, 6, 7], max_tokens=6, temperature=0).token_ids == ids


def test_a_process_grows_by_what_is_written(large):
    """What goes when the cache goes, of a process of its own."""
    path, config = large
    code = "import json, sys, test_cache_memory as t; print(json.dumps(t.cost_of_a_cache(*json.load(sys.stdin))))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        input=json.dumps([str(path), config.cache_dir]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    planned, taken = json.loads(done.stdout.splitlines()[-1])
    assert taken < SHARE * planned


def cost_of_a_cache(path: str, store: str) -> tuple[int, int]:
    """Bytes of a cache after a short text: planned, and taken."""
    llm = packlight.load(path, dataclasses.replace(LARGE, cache_dir=store))
    planned = llm.kv_bytes
    llm.generate([5, 6, 7], max_tokens=6, temperature=0)
    used = anonymous_memory()
    jax.tree.map(lambda x: x.delete(), llm.engine._cache)
    return planned, used - anonymous_memory()


@pytest.mark.parametrize(
    ("name", "kernels", "mesh"),
    [
        ("llama", "native", MeshShape()),
        product("llama", "xla", MeshShape(2, 2)),
        product("gpt-oss", "xla", MeshShape()),  # experts, windows, sinks
        product("lfm2", "xla", MeshShape()),
        product("gemma4-e", "xla", MeshShape()),  # layers that read what others keep
    ],
    ids=str,
)
def test_what_was_never_written_changes_no_bit(tmp_path, name, kernels, mesh):
    """Neither behind a text's end nor in slots without one, in steps that serve both."""
    told = golden(f"own/{name}", tmp_path)
    llm = packlight.load(told.path, dataclasses.replace(SMALL, cpu_kernels=kernels, mesh=mesh))

    def results() -> list[np.ndarray]:
        several = llm.generate([told.ids, told.ids[:3], told.ids[:5]], max_tokens=5, temperature=0, logprobs=2)
        return [llm.logits(told.ids), *(np.array([(t.token_id, t.logprob) for t in c.logprobs]) for c in several)]

    expected = results()
    for bad in (np.nan, np.inf, -np.inf):
        llm.generate([[told.ids[0] + 1]] * llm.plan.slots, max_tokens=3, ignore_eos=True)
        llm.engine._cache = jax.tree.map(lambda x: filled(x, bad), llm.engine._cache)  # noqa: B023
        for found, wanted in zip(results(), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def filled(array: jax.Array, value: float) -> jax.Array:
    """The same place on the devices full of `value`, unless it counts something."""
    host = np.full(array.shape, value if jnp.issubdtype(array.dtype, jnp.floating) else 0, array.dtype)
    return jax.device_put(host, array.sharding, may_alias=False)


def test_where_the_system_refuses_the_user_is_told(large, monkeypatch):
    path, _ = large
    assert prepare(path, SMALL).warnings == []
    monkeypatch.setattr(pages, "refusal", lambda: "it is locked")
    expected = "the whole cache takes memory from the start, used or not: it is locked"
    assert prepare(path, SMALL).warnings == [expected]
    zeros = Placement.on(jax.devices()).zeros((1 << 20,), "float32")
    assert not np.asarray(zeros).any()
    assert resident(zeros) >= 0.99 * zeros.nbytes
