"""The compile step and its store, and the engine on top: what compiles, what is kept, what a user is told."""

import dataclasses
import gc
import os
import pathlib
import pickle
import platform
import threading

import jax
import numpy as np
import pytest
from ggufs import write_llama

import packlight
from packlight.common.errors import ConfigError, ContextLengthError, NonFiniteLogitsError
from packlight.compile import aot, origin
from packlight.compile.config import CompileConfig
from packlight.compile.counter import CompileCounter
from packlight.compile.plan import Phase, StepKey
from packlight.compile.store import EntryError, Store
from packlight.model.spec.weights import formats
from packlight.model.weights.params import abstract
from packlight.prepared import prepare

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = CompileConfig(context=128, prefill_buckets=(16,), decode_batch=(2,), head_rows=8)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("model") / "model.gguf", layers=1)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config whose executables are kept for this module's tests."""
    return dataclasses.replace(SMALL, cache_dir=str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def llm(path, config):
    return packlight.load(path, config)


def test_a_second_load_compiles_nothing(llm, path, config):
    """R20: counted over the whole process, weights and generation included."""
    with CompileCounter() as compiled:
        again = packlight.load(path, config)
        texts = {each.generate("abc", max_tokens=5, temperature=0).text for each in (again, llm)}
    assert (again.executables.hits, again.executables.misses) == (len(llm.plan.steps), 0)
    assert len(texts) == 1
    assert compiled.count == 0


def test_a_counter_counts_what_compiles_while_it_is_entered():
    def compile_one(number):
        jax.jit(lambda x: x * number + 0.5).lower(1.0).compile()

    with aot._without_jax_cache(), CompileCounter() as outer:
        compile_one(2)
        with CompileCounter() as inner:
            compile_one(3)
        compile_one(5)
    compile_one(7)
    assert (outer.count, inner.count) == (3, 1)


def test_generating_compiles_nothing(llm):
    """R20: every prompt length, greedy and drawn, alone and together, and all logits."""
    with CompileCounter() as compiled:
        for count in range(1, 128, 9):
            llm.generate([5] * count, max_tokens=2, temperature=float(count % 2), top_k=count, seed=count)
        llm.generate(["one", "two", "three"], max_tokens=3, seed=1)
        llm.logits(list(range(3, 40)))
    assert compiled.count == 0


def test_the_report_is_filled(llm):
    for built in llm.executables.built.values():
        assert built.seconds > 0
        assert built.argument_bytes > 0
        assert built.flops > 0
        assert built.bytes_accessed > 0


def test_a_step_outside_the_plan_is_an_error(llm):
    with pytest.raises(KeyError, match=r"decode\[3, 7\] is not in the plan; it has prefill\[16, 128\]"):
        llm.executables[StepKey(Phase.DECODE, 3, 7)]


def build(path, config):
    """The executables of one head step without a sampler, which compiles in 0.1 s."""
    return aot.build(*head_step(path, config))


def head_step(path, config):
    """The steps of a plan that has the head alone, and parameters in ggml's layout."""
    prepared = prepare(path, config)
    alone = {"prefill_buckets": (), "decode_batch": (), "head_rows": (8,), "scores": False, "slots": 1}
    plan = dataclasses.replace(prepared.plan, **alone)
    placement = aot.find_devices(config)
    params = abstract(prepared.model, formats(prepared.file), placement=placement)
    return dataclasses.replace(prepared, planned=plan).steps(placement), params


def run_with_zeros(path, config, executables):
    """What the step of `build` gives when all its arguments are zeros."""
    ((key, built),) = executables.built.items()
    steps, params = head_step(path, config)
    shapes = steps.arguments(key, params)
    logits, *_ = built.call(*jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), shapes))
    return np.asarray(logits)


@pytest.fixture
def fresh(tmp_path):
    return dataclasses.replace(SMALL, cache_dir=str(tmp_path / "store"))


def entries(config):
    return sorted(pathlib.Path(config.cache_dir).glob("*.aot"))


def test_keys_change_with_whatever_changes_the_program(path, fresh, monkeypatch, tmp_path):
    assert build(path, fresh).misses == 1
    assert build(path, fresh).hits == 1
    other = write_llama(tmp_path / "other.gguf", layers=1, formats={"output": "Q4_0"})
    assert build(other, fresh).misses == 1
    for change in (
        {"cpu_kernels": "reference"},
        {"activation_dtype": "bfloat16"},
        {"xla_options": (("xla_cpu_enable_fast_math", False),)},
    ):
        assert build(path, dataclasses.replace(fresh, **change)).misses == 1, change
    for name, value in (("host_features", "another cpu"), ("code_hash", "another source")):
        with monkeypatch.context() as patch:
            patch.setattr(aot, name, lambda value=value: value)
            assert build(path, fresh).misses == 1, name
    major, minor, _ = platform.python_version_tuple()
    for version, hits in (((major, minor, "99"), 1), ((major, "99", "0"), 0)):
        with monkeypatch.context() as patch:
            patch.setattr(platform, "python_version_tuple", lambda version=version: version)
            assert build(path, fresh).hits == hits, version
    assert build(path, fresh).hits == 1


def test_the_hash_of_the_sources_sees_every_depth_and_every_name(tmp_path):
    nested = tmp_path / "model" / "network" / "mixers" / "attention.py"
    nested.parent.mkdir(parents=True)
    nested.write_text("a = 1\n")
    first = origin.sources_hash(tmp_path)
    nested.write_text("a = 2\n")
    edited = origin.sources_hash(tmp_path)
    moved = nested.rename(nested.parent.parent / nested.name)
    renamed = origin.sources_hash(tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "untraced.py").write_text("a = 3\n")
    assert len({first, edited, renamed}) == 3
    assert origin.sources_hash(tmp_path) == renamed
    moved.unlink()
    assert origin.sources_hash(tmp_path) not in {first, edited, renamed}
    assert origin.code_hash() == origin.sources_hash(ROOT)


def test_what_jax_keeps_itself_does_not_spoil_the_store(path, fresh, tmp_path):
    """An executable out of jax's persistent cache cannot be stored: the suite has that cache on, as a user may."""
    assert jax.config.jax_compilation_cache_dir
    for name in "ab":  # the second compilation would be served by jax's cache
        config = dataclasses.replace(fresh, cache_dir=str(tmp_path / name))
        assert build(path, config).misses == 1
        again = build(path, config)  # from our store
        assert (again.hits, again.warnings) == (1, ())
        logits = run_with_zeros(path, config, again)
        assert logits.shape == (8, 320)
    assert jax.config.jax_enable_compilation_cache


def test_a_renamed_copy_of_the_file_hits(path, fresh, tmp_path):
    build(path, fresh)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    assert build(copy, fresh).hits == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "swap", "bomb", "nonsense"])
def test_a_damaged_entry_is_compiled_again_with_a_warning(path, fresh, damage):
    build(path, fresh)
    (entry,) = entries(fresh)
    content = entry.read_bytes()
    match damage:
        case "cut":
            entry.write_bytes(content[:-1])
        case "flip":
            entry.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
        case "empty":
            entry.write_bytes(b"")
        case "swap":  # a whole entry under another name
            build(path, dataclasses.replace(fresh, cpu_kernels="reference"))
            other = next(e for e in entries(fresh) if e != entry)
            entry.write_bytes(other.read_bytes())
        case "bomb":  # what others wrote is not unpickled: this would end the process
            entry.write_bytes(pickle.dumps(Exit()))
        case "nonsense":  # what we wrote is, and yet no executable
            Store(entry.parent).write(entry.stem, (b"no pickle", None, None))
    again = build(path, fresh)
    assert again.misses == 1
    assert "stored executable head[8] is compiled again" in again.warnings[0]
    healed = build(path, fresh)
    assert (healed.hits, healed.warnings) == (1, ())


class Exit:
    def __reduce__(self):
        return os._exit, (1,)


def test_a_folder_in_place_of_an_entry_is_said_and_survived(path, fresh):
    build(path, fresh)
    (entry,) = entries(fresh)
    entry.unlink()
    entry.mkdir()
    built = build(path, fresh)
    assert built.misses == 1
    again, kept = built.warnings
    assert "stored executable head[8] is compiled again" in again
    assert again.endswith("a directory, not a regular file")
    assert kept.startswith("executables are not kept: ")


def test_the_store_is_private(path, fresh):
    build(path, fresh)
    assert pathlib.Path(fresh.cache_dir).stat().st_mode & 0o777 == 0o700
    pathlib.Path(fresh.cache_dir).chmod(0o777)
    built = build(path, fresh)
    assert built.misses == 1
    assert "executables are not kept" in built.warnings[0]
    assert "other users may write" in built.warnings[0]


def test_an_unusable_store_is_said_and_survived(path, fresh, tmp_path):
    (tmp_path / "file").write_text("")
    built = build(path, dataclasses.replace(fresh, cache_dir=str(tmp_path / "file" / "store")))
    assert built.misses == 1
    assert "executables are not kept" in built.warnings[0]


def test_store_false_keeps_nothing(path, fresh):
    built = build(path, dataclasses.replace(fresh, store=False))
    assert (built.misses, built.warnings) == (1, ())
    assert not pathlib.Path(fresh.cache_dir).exists()


def test_concurrent_writers_leave_a_whole_entry(tmp_path):
    store = Store(tmp_path / "store")
    values = [bytes([i]) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=store.write, args=("d" * 64, v)) for v in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("d" * 64) in values
    assert [p.name for p in store.folder.iterdir()] == ["d" * 64 + ".aot"]
    assert store.read("e" * 64) is None
    store.path("f" * 64).write_bytes(store.path("d" * 64).read_bytes())
    with pytest.raises(EntryError, match="holds another entry"):
        store.read("f" * 64)


def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(ConfigError, match="'platform' is 'tpu'; jax finds only: cpu"):
        aot.find_devices(CompileConfig(platform="tpu"))


def test_a_wrong_xla_option_is_an_error(path, fresh):
    with pytest.raises(ConfigError, match="'xla_options'"):
        build(path, dataclasses.replace(fresh, xla_options=(("xla_no_such_option", 1),)))


def test_long_runs_are_flat(llm, monkeypatch):
    """R21: a thousand decode steps trace and compile nothing, leave no array behind, and memory where it was after the
    first hundred; each gives its cache to the next.
    """

    def resident():
        gc.collect()
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024, len(jax.live_arrays())

    monkeypatch.setattr(llm.engine, "_is_end", np.zeros_like(llm.engine._is_end))  # no text ends early
    llm.generate([5, 6], max_tokens=100, temperature=0)
    before = resident()
    steps, cache = sum(llm.engine.steps_run.values()), llm.engine._cache
    with CompileCounter() as compiled:
        for seed in range(10):
            llm.generate([[5, 6], [7]], max_tokens=101, temperature=1.0, seed=seed)
    after = resident()
    assert sum(llm.engine.steps_run.values()) - steps >= 1000
    assert compiled.count == 0
    assert all(x.is_deleted() for x in jax.tree.leaves(cache))  # donated
    assert after[1] == before[1]
    assert after[0] - before[0] < 8e6


def test_prompts_that_do_not_fit(llm):
    assert len(llm.generate([5] * 127, temperature=0).token_ids) == 1
    with pytest.raises(ContextLengthError, match="128 tokens, .* a context of 128"):
        llm.generate([5] * 128)
    with pytest.raises(ContextLengthError, match="129 tokens"):
        llm.logits([5] * 129)
    assert llm.logits([5] * 128).shape == (128, llm.model.vocab_size)


def test_logits_that_are_not_finite_raise(llm, monkeypatch):
    """R5: finite weights whose products overflow float32 reach no sampler unnoticed."""
    huge = jax.tree.map(lambda x: x, llm.engine._params)
    huge["output_norm"] = jax.device_put(np.full(huge["output_norm"].shape, 3e38, np.float32), llm.device)
    monkeypatch.setattr(llm.engine, "_params", huge)
    with pytest.raises(NonFiniteLogitsError, match="at position 3 are NaN or infinite"):
        llm.generate([5, 6, 7], max_tokens=3)
    with pytest.raises(NonFiniteLogitsError):
        llm.logits([5, 6, 7])


def test_an_interrupted_step_loses_its_requests_and_nothing_else(llm, monkeypatch):
    """Ctrl-C between a step and its result: the donated cache is gone, the model stays usable."""
    expected = llm.generate([5, 6, 7], max_tokens=6, temperature=0).token_ids
    stream = llm.stream([8, 9], max_tokens=50, temperature=0)
    next(stream)
    run = type(llm.engine)._run

    def interrupted(self, key, *arguments):
        run(self, key, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(llm.engine), "_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([5, 6, 7], max_tokens=6, temperature=0)
    with pytest.raises(packlight.PacklightError, match="the generation was lost"):
        list(stream)
    assert llm.generate([5, 6, 7], max_tokens=6, temperature=0).token_ids == expected


def test_what_is_not_finite_in_a_slot_harms_nobody_else(path, tmp_path_factory, config):
    """Values behind a prompt's end, left by an earlier request or by padding, count as nothing even when infinite."""
    llm = packlight.load(path, config)
    expected = llm.generate([5, 6, 7], max_tokens=4, temperature=0).token_ids
    llm.generate([[8]] * llm.plan.slots, max_tokens=1)  # so that nothing is kept of the prompt
    poison = jax.tree.map(lambda x: np.full(x.shape, np.inf, x.dtype), llm.engine._cache.state)
    state = jax.tree.map(lambda x: jax.device_put(x, llm.device, may_alias=False), poison)
    llm.engine._cache = dataclasses.replace(llm.engine._cache, state=state)
    assert llm.generate([5, 6, 7], max_tokens=4, temperature=0).token_ids == expected


def test_a_request_that_fails_leaves_its_neighbour_alone(llm, monkeypatch):
    expected = llm.generate([5, 6, 7], max_tokens=6, temperature=0).text
    good, bad = llm.stream([5, 6, 7], max_tokens=6, temperature=0), llm.stream([8, 9], max_tokens=6, temperature=0)
    engine, run = llm.engine, type(llm.engine)._run

    def spoiled(self, key, *arguments):
        result = run(self, key, *arguments)
        if key.phase is Phase.DECODE:
            result = result._replace(picked=result.picked._replace(finite=np.array([[True], [False]])))
        return result

    texts = [next(good), next(bad)]
    with monkeypatch.context() as patch:
        patch.setattr(type(engine), "_run", spoiled)
        with pytest.raises(NonFiniteLogitsError, match="at position"):
            list(bad)
    assert "".join([texts[0], *good]) == expected
    assert engine.idle


def test_a_64_bit_default_changes_nothing(path, fresh):
    build(path, fresh)
    with jax.enable_x64(True):
        again = build(path, fresh)
        assert again.hits == 1
        assert build(path, dataclasses.replace(fresh, store=False)).misses == 1


def test_a_store_without_a_home_is_said_and_survived(path, fresh):
    for folder in ("~nosuchuser/store", "a\0b"):
        built = build(path, dataclasses.replace(fresh, cache_dir=folder))
        assert built.misses == 1
        assert "executables are not kept" in built.warnings[0]


def test_an_entry_that_others_may_write_is_not_unpickled(path, fresh):
    build(path, fresh)
    entries(fresh)[0].chmod(0o666)
    again = build(path, fresh)
    assert (again.hits, again.misses) == (0, 1)
    assert "other users" in again.warnings[0]
