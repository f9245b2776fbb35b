"""Which layers stay on a GPU or TPU, by bytes, and which models cannot be streamed to one. No device is needed."""

import dataclasses

import pytest
from ggufs import write_llama
from golden_models import model

import packlight as api
from packlight.common.errors import ConfigError, MemoryLimitError
from packlight.compile.config import CompileConfig, default_config
from packlight.compile.memory import MemoryPlan
from packlight.model.weights.load import Buffer
from packlight.model.weights.pinned import Pinned, plan_pinned

# Of six layers, two tensors: "up" with 30 bytes in layer 1 and 10 in the others, "down" with 20; and a head of 7.
BUFFERS = [
    Buffer((5, 2, 5), [f"blk.{layer}.up.weight" for layer in (0, 2, 3, 4, 5)]),
    Buffer((1, 2, 15), ["blk.1.up.weight"]),
    Buffer((6, 20), [f"blk.{layer}.down.weight" for layer in range(6)]),
    Buffer((1, 7), ["output.weight"]),
]
WHOLE = 7 + 30 + 50 + 4 * 30


@pytest.mark.parametrize(
    ("budget", "kept", "step"),
    [
        (107, 0, 300),  # the head, and two places for the widest layer
        (136, 0, 300),
        (137, 1, 250),
        (186, 1, 250),
        (187, 2, 200),
        (WHOLE - 1, 2, 200),
        (WHOLE, 6, 0),  # without places for others
    ],
)
def test_the_most_layers_that_a_budget_lets_stay(budget, kept, step):
    where = plan_pinned(BUFFERS, 6, 2, budget, ())
    assert (where.sizes, where.passing, where.outside_bytes) == ((30, 50, 30, 30, 30, 30), 50, 7)
    assert (where.kept, where.step_bytes, where.ring_bytes) == (kept, step, 100 if step else 0)
    assert where.resident_bytes + where.ring_bytes <= budget


def test_a_budget_for_less_than_the_places_names_the_least():
    with pytest.raises(MemoryLimitError, match=r"^it is 0\.0 MB for streamed weights; 107 bytes are the least$"):
        plan_pinned(BUFFERS, 6, 2, 106, ("it is",))


def test_places_for_layers_are_part_of_the_scratch():
    where = Pinned((30, 50, 30), 50, 7, 2, 1)
    plan = MemoryPlan(1000, 10_000, mapped=117, residence=where)
    assert plan.held == 1000 + 10_000 + 37
    assert plan.total == plan.held + 100
    assert dataclasses.replace(plan, scratch=60).total == plan.held + 100
    assert dataclasses.replace(plan, scratch=250).total == plan.held + 250
    assert str(where).endswith(
        "layers 0-0 0.0 MB, 2 of the other 2 0.0 MB; 0.0 MB copied from pinned host memory a step"
    )


def streamed(path, platform="gpu", **keys):
    config = dataclasses.replace(default_config(platform), context=64, weights="streamed", **keys)
    return api.prepare(path, config)


def test_the_plan_of_a_file(tmp_path):
    """Layers that all fit stay, and nothing is streamed; the budget holds vectors too."""
    path = write_llama(tmp_path / "m.gguf", layers=4, embed=256, formats={"default": "Q4_K"})
    resident = api.prepare(path, dataclasses.replace(default_config("gpu"), context=64)).memory
    whole = streamed(path, weights_budget=resident.weights)
    assert (whole.kept, whole.residence.streamed) == (None, 0)
    assert whole.memory.held == resident.held
    where = streamed(path, weights_budget=1 << 40).residence
    least = dataclasses.replace(where, kept=0)
    budget = whole.memory.weights + least.outside_bytes + least.ring_bytes
    assert streamed(path, weights_budget=budget).kept == 0
    with pytest.raises(MemoryLimitError, match=f"^config key 'weights_budget' .* {budget:,} bytes are the least$"):
        _ = streamed(path, weights_budget=budget - 1).residence


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("lfm2moe", "layers with experts"),
        ("deepseek2", "layers with experts"),
        ("gemma2", "only equal layers of attention and a dense part"),
        ("qwen35", "only equal layers of attention and a dense part"),
    ],
)
def test_other_layers_are_refused_by_name(kind, said, tmp_path):
    with pytest.raises(ConfigError, match=f"^weights=streamed: .*{said}"):
        _ = streamed(model(f"own/{kind}", tmp_path), weights_budget=1 << 40).residence


def test_formats_without_a_common_layout_are_refused(tmp_path):
    mixed = {"default": "Q4_K", "blk.1.ffn_up": "IQ2_S"}
    path = write_llama(tmp_path / "m.gguf", layers=2, embed=256, formats=mixed)
    with pytest.raises(ConfigError, match=r"^weights=streamed: 'blk\.1\.ffn_up\.weight' and that of other layers"):
        _ = streamed(path, weights_budget=1 << 40).residence


def test_one_device_is_streamed_to():
    for platform in ("gpu", "tpu"):
        assert CompileConfig(platform=platform, weights="streamed").pins
        with pytest.raises(ConfigError, match="^config key 'weights' is 'mapped'; weights are mapped for one CPU"):
            CompileConfig(platform=platform, weights="mapped")
        with pytest.raises(ConfigError, match="^config key 'weights' is 'streamed'; .* not to a mesh$"):
            CompileConfig(platform=platform, weights="streamed", mesh={"tensor": 2})  # type: ignore[arg-type]
    assert not CompileConfig(weights="streamed").pins
