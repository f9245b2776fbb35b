"""Plan and config: every length has a bucket, nothing reaches past the cache, every key is checked."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.common.errors import ConfigError
from packlight.compile.config import (
    PLATFORMS,
    SHIPPED,
    CompileConfig,
    MeshShape,
    default_config,
    parse_config,
    read_config,
)
from packlight.compile.plan import Phase, StepKey, make_plan

buckets = st.lists(st.integers(1, 600), min_size=1, max_size=4, unique=True).map(lambda v: tuple(sorted(v)))


@given(context=st.integers(1, 3000), prefill=buckets, lengths=buckets, data=st.data())
def test_every_prompt_runs_in_declared_steps_inside_the_cache(context, prefill, lengths, data):
    """R20: any tokens from any position are covered exactly once, by steps of the plan, within the capacity."""
    plan = make_plan(CompileConfig(prefill_buckets=prefill, length_buckets=lengths, context=context), 3000)
    start = data.draw(st.integers(0, context - 1))
    count = data.draw(st.integers(1, context - start))
    position = start
    for chunk in plan.chunks(start, count):
        assert chunk.key in plan.steps
        assert chunk.start == position
        assert 1 <= chunk.count <= chunk.key.rows
        assert chunk.key.length <= plan.capacity
        end = chunk.start + chunk.key.rows
        assert end <= chunk.key.length or chunk.key.rows == plan.prefill_buckets[0]  # with padding
        position += chunk.count
    assert position == start + count


def test_every_prompt_length_of_the_shipped_configs():
    for platform, stride in (("cpu", 1), ("gpu", 17), ("tpu", 17)):
        plan = make_plan(default_config(platform), 4096)
        for count in range(1, plan.context + 1, stride):
            assert {c.key for c in plan.chunks(0, count)} <= set(plan.steps)


def test_chunks_weigh_padding_against_passes_over_the_weights():
    plan = make_plan(CompileConfig(prefill_buckets=(16, 128, 512)), 2048)

    def shape(count):
        return [(c.key.rows, c.count) for c in plan.chunks(0, count)]

    assert shape(5) == [(16, 5)]
    assert shape(34) == [(128, 34)]  # one padded pass, where three of 16 would read the weights three times
    assert shape(129) == [(128, 128), (16, 1)]
    assert shape(300) == [(512, 300)]
    assert shape(1030) == [(512, 512), (512, 512), (16, 6)]


def test_native_kernels_go_over_the_weights_in_the_time_of_a_few_rows():
    """So several small chunks take less time than one that is padded; experts, of which few rows choose few, more."""
    config = CompileConfig(prefill_buckets=(16, 64, 128, 512), cpu_kernels="native")

    def rows(count, **model):
        return [c.key.rows for c in make_plan(config, 2048, **model).chunks(0, count)]

    assert (rows(20), rows(34), rows(66), rows(300)) == ([16, 16], [64], [64, 16], [128, 128, 64])
    assert (rows(430), rows(430, mixed=True), rows(500)) == ([128, 128, 128, 64], [512], [512])


def test_decode_steps_cover_slots_and_lengths():
    plan = make_plan(CompileConfig(decode_batch=(1, 4), length_buckets=(256,)), 1024)
    assert plan.decode_key([0], 200) == (StepKey(Phase.DECODE, 1, 256), 0)
    assert plan.decode_key([1], 257) == (StepKey(Phase.DECODE, 1, plan.capacity), 1)
    assert plan.decode_key([1, 2], 9) == (StepKey(Phase.DECODE, 4, 256), 0)
    eight = make_plan(CompileConfig(decode_batch=(1, 2, 4, 8)), 256)
    starts = {(3, 4): (2, 3), (7, 6): (2, 6), (2, 4): (4, 2), (5, 7): (4, 4), (0, 7): (8, 0)}
    for slots, (rows, first) in starts.items():
        key, at = eight.decode_key(slots, 9)
        assert (key.rows, at) == (rows, first)
        assert {eight.row(slot, key, at) for slot in slots} == {slot - first for slot in slots}


def test_groups_of_devices_share_the_slots():
    plan = make_plan(CompileConfig(mesh=MeshShape(data=2), decode_batch=(2, 6)), 256)
    assert [plan.rank(slot) for slot in range(6)] == [0, 1, 2, 0, 1, 2]
    small, large = StepKey(Phase.DECODE, 2, plan.capacity), StepKey(Phase.DECODE, 6, plan.capacity)
    assert plan.decode_key([0, 3], 9) == (small, 0)
    assert plan.decode_key([4], 9) == plan.decode_key([1, 4], 9) == (small, 1)
    assert plan.decode_key([1, 5], 9) == (large, 0)
    assert [plan.row(slot, small, 1) for slot in (1, 4)] == [0, 1]
    assert [plan.row(slot, large, 0) for slot in range(6)] == list(range(6))
    assert [plan.group(slot) for slot in range(6)] == [0, 0, 0, 1, 1, 1]
    assert plan.head_key(1) == StepKey(Phase.HEAD, 1)
    assert plan.head_key(20) == StepKey(Phase.HEAD, 32)


def test_one_step_scores_as_many_rows_as_the_largest_head_step():
    def steps(**changes):
        plan = dataclasses.replace(make_plan(CompileConfig(), 512), **changes)
        return [key for key in plan.steps if key.phase is Phase.SCORE]

    assert steps() == [StepKey(Phase.SCORE, 32)]
    assert steps(scores=False) == steps(head_rows=()) == steps(generates=False) == []


@given(
    context=st.integers(1, 3000), lengths=buckets, rows=st.integers(1, 600), groups=st.integers(1, 3), data=st.data()
)
def test_every_text_runs_whole_in_a_declared_step(context, lengths, rows, groups, data):
    """Each once, in the smallest bucket that holds it, so that its length alone says in which step."""
    config = CompileConfig(
        encode_buckets=lengths, encode_rows=rows, context=context,
        mesh=MeshShape(data=groups), decode_batch=(groups,),
    )  # fmt: skip
    plan = make_plan(config, 3000, generates=False, encodes=True)
    counts = data.draw(st.lists(st.integers(1, context), max_size=40))
    groups_run = plan.text_groups(counts)
    assert sorted(number for _, numbers in groups_run for number in numbers) == list(range(len(counts)))
    for key, numbers in groups_run:
        assert key in plan.steps
        assert len(numbers) <= key.rows
        for number in numbers:
            assert key.length == next(tokens for tokens, _ in plan.texts if tokens >= counts[number])


def test_short_texts_run_together():
    plan = make_plan(CompileConfig(), 512, generates=False, encodes=True)
    assert {key.phase for key in plan.steps} == {Phase.ENCODE}
    assert plan.texts == ((32, 4), (64, 2), (128, 1), (256, 1), (512, 1))
    groups = [(key.rows, numbers) for key, numbers in plan.text_groups([20, 400, 30, 32, 1, 7])]
    assert groups == [(4, (0, 2, 3, 4)), (4, (5,)), (1, (1,))]


def test_an_encoder_has_buckets_up_to_its_context():
    """Its texts run whole: they are not cut into chunks."""
    plan = make_plan(CompileConfig(encode_buckets=(100, 500)), 3000, generates=False, encodes=True)
    assert [tokens for tokens, _ in plan.texts] == [112, 512, 1024, 2048, 3008]
    assert make_plan(CompileConfig(), 40, generates=False, encodes=True).texts == ((32, 4), (48, 2))
    assert not make_plan(CompileConfig(), 512).texts
    with pytest.raises(ValueError, match="do not fit a context of 40"):
        make_plan(CompileConfig(), 40, encodes=True).text_groups([41])


def test_tokens_beyond_the_context_are_refused():
    plan = make_plan(CompileConfig(), 64)
    with pytest.raises(ValueError, match="do not fit a context of 64"):
        plan.chunks(0, 65)


def test_context_is_the_files_up_to_4096_unless_set():
    assert make_plan(CompileConfig(), 512).context == 512
    assert make_plan(CompileConfig(), 131072).context == 4096
    assert make_plan(CompileConfig(context=8192), 131072).context == 8192
    with pytest.raises(ConfigError, match="'context' is 8192; the model has only 512"):
        make_plan(CompileConfig(context=8192), 512)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1", "unknown key 'colour'; known: platform"),
        ("platform = 'npu'", "'platform' is 'npu'; it is one of cpu, gpu, tpu"),
        ("context = -1", "'context' is -1"),
        ("context = true", "'context' is True"),
        ("context = 1.5", "'context' is 1.5"),
        ("prefill_buckets = []", "'prefill_buckets' is empty"),
        ("prefill_buckets = [16, 8]", "it ascends without repeats"),
        ("decode_batch = [0]", "'decode_batch' is 0"),
        ("decode_batch = 4", "it is a list of integers"),
        ("kv_dtype = 'int8'", "'kv_dtype' is 'int8'"),
        ("activation_dtype = 'float16'", "'activation_dtype' is 'float16'"),
        ("cpu_kernels = 'fast'", "'cpu_kernels' is 'fast'; it is one of auto, native, xla, reference"),
        ("cpu_kernels = 'native'\nactivation_dtype = 'bfloat16'", "native kernels take float32"),
        ("platform = 'gpu'\ncpu_kernels = 'xla'", "'cpu_kernels' is 'xla' but the platform is 'gpu'"),
        ("store = 1", "'store' is 1; it is true or false"),
        ("cache_dir = 3", "'cache_dir' is 3; it is a path"),
        ("mesh = 8", "'mesh' is a table of data and tensor"),
        ("mesh = {model = 2}", "'mesh' is a table of data and tensor"),
        ("mesh = {tensor = 0}", "'mesh.tensor' is 0; it is an integer >= 1"),
        ("mesh = {data = 3}", "'decode_batch' holds 1, no multiple of the mesh's 3 data groups"),
        ("xla_options = 3", "'xla_options' is a table"),
        ("xla_options = {a = [1]}", "key 'xla_options': 'a' is [1]; it is a number, true or false"),
        ("xla_options = {xla_dump_to = '/tmp'}", "'xla_dump_to' is '/tmp'; it is a number, true or false"),
        ("platform = ", "Invalid value"),
        ("x = " + "[" * 5000, "config test: "),
    ],
)
def test_bad_config_is_refused_by_name(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "test")
    assert str(caught.value).startswith("config test: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_config_files(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        read_config(tmp_path / "binary.toml")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_sound_and_say_when_to_use_them(name):
    import importlib.resources

    text = (importlib.resources.files("packlight.configs") / f"{name}.toml").read_text()
    assert text.startswith("# For ")
    config = parse_config(text, name)
    assert config.platform == (name if name in PLATFORMS else "cpu")
    assert make_plan(config, 2048).steps


def test_plan_and_config_import_no_jax():
    code = "import packlight.compile.config, packlight.compile.plan, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_plan_key_has_an_effect():
    """R27 for the keys that shape the plan; the others are toggled in test_aot."""
    base = CompileConfig()
    for change in (
        {"context": 100},
        {"prefill_buckets": (8,)},
        {"decode_batch": (2,)},
        {"length_buckets": (128,)},
        {"head_rows": 4},
        {"mesh": MeshShape(data=2), "decode_batch": (2, 4)},
    ):
        assert make_plan(dataclasses.replace(base, **change), 1024) != make_plan(base, 1024), change
