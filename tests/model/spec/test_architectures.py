"""Every architecture's declaration against its test file: no tensor and no key may be missed unseen."""

import dataclasses

import encoders
import numpy as np
import pytest
from encoders import ENCODERS
from golden_models import metadata, model
from recipes import RECIPES

from packlight.common.errors import GGUFError, PacklightError, UnsupportedError
from packlight.model.gguf.reader import open_gguf
from packlight.model.spec.architectures import ARCHITECTURES
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.weights import check, is_ignored

# Keys that do not count where a file has another one, and one that says nothing of the model's own numbers.
OVERRIDDEN = {
    "expert_shared_count": "expert_shared_feed_forward_length",
    "attention.layer_norm_epsilon": "attention.layer_norm_rms_epsilon",
}
UNSAID = ("vocab_size", "pooling_type")
# What the format itself makes optional: without them the head is the embedding, and rotation is not stretched.
OPTIONAL = {"output.weight", "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
# And of a reranker's head: what comes before the scores, and biases.
OPTIONAL |= {"cls.weight", "cls.bias", "cls.norm.weight", "cls.output.bias"}


@pytest.fixture(params=[*RECIPES, *ENCODERS])
def file(request, tmp_path):
    name = request.param
    if name in ENCODERS:
        return open_gguf(encoders.write(tmp_path / "m.gguf", ENCODERS[name]))
    return open_gguf(model(f"own/{name}", tmp_path))


def test_every_architecture_has_a_recipe():
    assert {recipe.architecture for recipe in (*RECIPES.values(), *ENCODERS.values())} == set(ARCHITECTURES)


def test_no_tensor_can_be_missing(file):
    """R4."""
    cfg = ModelConfig.from_gguf(file)
    assert len(check(file, cfg)) > 8
    alone = {w.tensors[0] for w in check(file, cfg) if w.optional and len(w.tensors) == 1}  # in no other layer either
    for name in file.tensors.keys() - OPTIONAL - alone:
        if is_ignored(cfg, name) or name.endswith((".scale", "_scale.weight")):
            continue  # not read, or 1 where it is absent
        rest = {k: v for k, v in file.tensors.items() if k != name}
        asked = name.replace("ssm_in", "attn_qkv")  # of two ways to store it the usual one
        with pytest.raises(GGUFError, match=f"'({name}|{asked})' is missing"):
            check(dataclasses.replace(file, tensors=rest), cfg)


def is_overridden(key, keys, prefix):
    return key in OVERRIDDEN and f"{prefix}{OVERRIDDEN[key]}" in keys


def test_no_hyperparameter_is_silent(file):
    """R14: without a key of the file reading fails naming it, or records the default; all others are listed unread."""
    cfg = ModelConfig.from_metadata(file.metadata)
    prefix = f"{cfg.architecture.name}."
    keys = [k for k in file.metadata if k.startswith(prefix) and k not in cfg.unread]
    assert len(keys) > 6
    for key in keys:
        rest = {k: v for k, v in file.metadata.items() if k != key}
        try:
            without = ModelConfig.from_metadata(rest)
        except PacklightError as error:
            assert f"key '{prefix}" in str(error)  # noqa: PT017  either way is right
        else:
            said = key in dict(without.defaulted) or key.removeprefix(prefix) in UNSAID
            assert said or is_overridden(key.removeprefix(prefix), keys, prefix)


def test_every_hyperparameter_changes_the_config(file):
    """A number read from the file and used nowhere would be as bad as one not read."""
    cfg = ModelConfig.from_metadata(file.metadata)
    prefix = f"{cfg.architecture.name}."
    for key, value in file.metadata.items():
        if not key.startswith(prefix) or key in cfg.unread or type(value) not in (int, float):
            continue
        if is_overridden(key.removeprefix(prefix), file.metadata, prefix):
            continue
        try:
            other = ModelConfig.from_metadata(file.metadata | {key: value * 2 or 1})
        except PacklightError:
            continue  # an impossible value, refused
        assert dataclasses.replace(other, name="", defaulted=()) != dataclasses.replace(cfg, name="", defaulted=()), key


def test_gemmas_largest_models_scale_attention_by_the_embedding():
    """llama.cpp knows the 27B models by their depth."""
    keys = metadata("gemma2")
    small = ModelConfig.from_metadata(keys)
    large = ModelConfig.from_metadata(keys | {"gemma2.block_count": 46})
    assert small.attention_scale == 0  # 1 / sqrt(C)
    assert large.attention_scale == (small.embedding_length / small.head_count) ** -0.5
    assert np.isclose(small.embedding_scale, 8)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen9", r"unknown architecture 'qwen9'; \d+ are supported \(docs/models.md\); did you mean 'qwen\w+'\?"),
        ("xyz", r"unknown architecture 'xyz'; \d+ are supported \(docs/models.md\); among them are llama, qwen3"),
        ("clip", r"'clip' is the half of a model that reads images or sound \(mmproj\); the file beside it holds the"),
    ],
)
def test_an_unknown_architecture_is_refused_with_what_is_near(name, said):
    with pytest.raises(UnsupportedError, match=said):
        ModelConfig.from_metadata(metadata("qwen2") | {"general.architecture": name})
