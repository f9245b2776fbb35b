"""Which keys and tensors the goldens of `recipes` notice: each changed alone, and how far that moves our numbers.

    python tests/goldens/mutations.py [NAME ...]

A table of each recipe's changes, with the error that the test of its golden would find, in deviations of the logits;
ends with 1 if that test would still pass. The keys that only say a tensor's shape are left out: such a file is refused.
"""

import dataclasses
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np  # noqa: E402  after the path
import pytest  # noqa: E402
from golden_models import gelu_table, golden  # noqa: E402
from recipe_files import base_name, shapes, write  # noqa: E402
from recipes import RECIPES, Recipe  # noqa: E402
from steps import load  # noqa: E402

from packlight.common.errors import PacklightError  # noqa: E402

SHAPES = ("block_count", "embedding_length", "feed_forward_length", "expert_count", "expert_feed_forward_length")
SHAPES += ("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length")
SHAPES += ("leading_dense_block_count", "shortconv.l_cache", "full_attention_interval", "ssm.conv_kernel")
SHAPES += ("ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size")
SHAPES += ("expert_shared_feed_forward_length", "expert_shared_count")
SHAPES += ("interleave_moe_layer_step", "nextn_predict_layers", "moe_latent_size")
SHAPES += ("attention.key_length_swa", "attention.value_length_swa")
SHAPES += ("attention.shared_kv_layers", "embedding_length_per_layer_input")
# What changes nothing, in llama.cpp either.
QUIET = {
    ("window", "attention.sliding_window"): "llama has no windows",
    ("phi3", "attention.sliding_window"): "llama.cpp does not use it",
    ("phi3", "rope.scaling.original_context_length"): "no divisors to choose among",
    ("phi3-longrope", "rope_factors_short"): "the long ones are used",
    ("phi3-short", "rope_factors_long"): "the short ones are used",
    ("phi3-short", "context_length"): "still within the original context",
    ("qwen2vl", "attention.layer_norm_rms_epsilon"): "next to none, as llama.cpp reads none",
    ("granite-nope", "attn_k.bias"): "the same is added to all scores where nothing rotates",
    ("minicpm4", "rope.scaling.type"): "the divisors say it",
    ("minicpm4", "rope_factors_short"): "the long ones are used",
    ("phimoe", "rope_factors_short"): "the long ones are used",
    **{("glm4moe", f"nextn.{name}"): "not run" for name in ("enorm", "hnorm", "shared_head_norm")},
}
NOTICED = 1e-3  # of the logits' deviation, where the test fails


def changed(key: str, value: Any) -> Any:
    """Another sane value of a key."""
    match key.rpartition(".")[2], value:
        case "type", _:
            return "none"
        case "sliding_window_pattern", list():
            return [not slides for slides in value]
        case "dimension_sections", [first, *middle, last]:
            return [first + last, *middle, 0]
        case _, bool():
            return not value
        case _, list():
            return [1.5 * each for each in value]
        case "context_length", _:
            return value // 4
        case "original_context_length", _:
            return 640 - value  # beyond a context of 512, or within it
        case "dimension_count", _:
            return value - 2
        case "expert_gating_func", _:
            return 3 - value  # softmax, sigmoid
        case _, int():
            return value + 1
        case _:
            return value * 1.5


def mutants(recipe: Recipe) -> Iterator[tuple[str, Recipe, tuple[str, ...]]]:
    """What changes, the recipe with it, and the vectors that become neutral."""
    for key, value in recipe.metadata.items():
        if key not in SHAPES and (key != "context_length" or recipe.rope[1:]):  # which chooses among divisors
            yield key, dataclasses.replace(recipe, keys={**recipe.keys, key: changed(key, value)}), ()
    vectors = [name for name, shape in shapes(recipe).items() if len(shape) == 1 or name.endswith(".bias")]
    for base in dict.fromkeys(map(base_name, vectors)):
        yield base, recipe, (base,)


def main(names: list[str]) -> int:
    unseen = 0
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = pathlib.Path(folder) / "m.gguf"
        gelu_table(patch)
        for name in names or RECIPES:
            told = golden(f"own/{name}", pathlib.Path(folder))
            for what, recipe, neutral in mutants(RECIPES[name]):
                try:
                    model = load(write(path, recipe, neutral=neutral, twin=True))
                    logits = told.picked(model.all_logits(told.ids, rows=64))
                    error = float(np.abs(logits - told.logits).max() / told.logits.std())
                    found, quiet = f"{error:.2g}", QUIET.get((name, what))
                    if error <= NOTICED:
                        found += f"  ({quiet})" if quiet else "  NOT NOTICED"
                        unseen += quiet is None
                except PacklightError as refused:
                    found = f"refused: {str(refused).partition(': ')[2]}"
                print(f"{name:15} {what:45} {found}", flush=True)
    return int(unseen > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
