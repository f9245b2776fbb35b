# %% [markdown]
# # Sharding on eight devices
#
# A model too large for one device, or too slow, is shared out to several. How can be studied on any laptop: XLA shows
# one CPU as eight devices, with the same partitioning and the same collectives as on eight real ones. Only speed cannot
# be seen.

# %%
import collections
import dataclasses
import re

import jax
import matplotlib.pyplot as plt
import numpy as np

import packlight
from packlight import demo
from packlight.compile import aot
from packlight.compile.config import MeshShape
from packlight.compile.kernels import KernelPlan
from packlight.compile.steps import Steps
from packlight.model.spec.sharding import cut, make_split
from packlight.model.spec.weights import declare, used_weights
from packlight.model.weights.load import read_weights
from packlight.model.weights.params import abstract, place
from packlight.prepared import prepare

plt.rcParams.update({"figure.dpi": 85, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
jax.config.update("jax_num_cpu_devices", 8)  # before jax looks at its devices
print(jax.devices())
assert len(jax.devices()) == 8

# %% [markdown]
# The embedded demo model; the path of any GGUF file will do.

# %%
MODEL = demo.MODEL

# %% [markdown]
# ## A mesh, and the same text
#
# A mesh has two axes. Along `tensor` the devices share the weights of each layer, along `data` they share the
# sequences: a group of `tensor` devices holds the whole model, and there are `data` groups. In a TOML config that is
# `mesh = {data = 2, tensor = 4}`.

# %%
QUICK = (("xla_cpu_use_fusion_emitters", False),)  # XLA's older code generator compiles in less time
EIGHT = packlight.CompileConfig(
    mesh=MeshShape(data=2, tensor=4), context=128, prefill_buckets=(16,), decode_batch=(2,), xla_options=QUICK
)
one, eight = packlight.load(MODEL, kv_type="f32"), packlight.load(MODEL, EIGHT)  # alike but for the mesh
print(eight.placement.split)
print(eight.placement.mesh)

# %%
PROMPTS = ["A Python function", "To open a file"]  # one for each group
alone = one.generate(PROMPTS, max_tokens=30, temperature=0)
shared = eight.generate(PROMPTS, max_tokens=30, temperature=0)
for prompt, a, b in zip(PROMPTS, alone, shared, strict=True):
    assert a.token_ids == b.token_ids
    print(prompt + b.text)

# %% [markdown]
# The ids are equal. Logits may differ in their last bits, where the devices' parts of a sum are added in another order.

# %%
ids = one.encode(PROMPTS[0])
difference = np.abs(one.logits(ids) - eight.logits(ids)).max() / one.logits(ids).std()
print(f"logits differ by {difference:.0e} standard deviations at most")
assert difference < 0.1  # int8 activations: one that lies at half a step may be rounded either way

# %% [markdown]
# ## Which part is where
#
# Each weight's declaration says along which axis it is cut, and what lies there: vocabulary (V), query heads (H), kv
# heads (K) or features (F). A weight is `(out, in)`: cut by rows, a device computes some of the outputs; cut along
# inputs, it computes a part of the sum for all outputs, and one `all-reduce` over the devices completes it. Norms are
# small and are everywhere.

# %%
print(f"{'weight':16}{'cut along':11}what lies there")
for weight in declare(eight.model):
    if weight.cut and not weight.is_vector:
        print(f"{weight.name:16}{weight.cut:11}{' '.join(segment.axis for segment in weight.segments)}")

# %% [markdown]
# A cut never goes through a packed block. The axis of blocks is one of its own in a packed array
# `(layers, rows, blocks, bytes)`, so a shard has whole blocks, whichever axis is cut. The cache
# `(layers, slots, kv heads, positions, width)` is cut along both axes of the mesh.

# %%
config = dataclasses.replace(EIGHT, cpu_kernels="reference")  # ggml's own layout, whose axes are plain to see
prepared = prepare(MODEL, config)
placement = aot.find_devices(config, prepared.split)
host = read_weights(prepared.file, prepared.model, split=prepared.split, devices=placement.tensor_numbers)
params = place(host, placement)


def draw(ax, title, shape, sharding, axes, names):
    """Which devices hold which part of two axes of an array."""
    holders = collections.defaultdict(list)
    for device, index in sharding.devices_indices_map(shape).items():
        holders[tuple(index[axis].indices(shape[axis])[:2] for axis in axes)].append(device.id)
    for ((top, bottom), (left, right)), devices in holders.items():
        box = plt.Rectangle((left, top), right - left, bottom - top, ec="white", lw=2, fc=plt.cm.tab10(devices[0]))
        ax.add_patch(box)
        label = ", ".join(map(str, devices)) if len(devices) < 8 else "all"
        ax.text((left + right) / 2, (top + bottom) / 2, label, ha="center", va="center", color="white", size=11)
    ax.set(xlim=(0, shape[axes[1]]), ylim=(shape[axes[0]], 0), xlabel=names[1], ylabel=names[0], title=title)
    ax.set(xticks=(0, shape[axes[1]]), yticks=(0, shape[axes[0]]))


matrices = params["blk"]["attention"] | params["blk"]["dense"]
arrays = {name: matrices[name].groups[0].blocks for name in ("attn_q", "ffn_down")}
fig, (*of_weights, last) = plt.subplots(1, 3, figsize=(8.5, 2.8), constrained_layout=True)
for ax, (name, blocks) in zip(of_weights, arrays.items(), strict=True):
    draw(ax, f"{name} of a layer", blocks.shape, blocks.sharding, (1, 2), ("rows", "blocks"))
keys = prepared.steps(placement).cache().state["attention"].k
draw(last, "cache", keys.shape, keys.sharding, (1, 2), ("slots", "kv head"))
heads = prepared.model.head_count_kv  # two for four devices: two neighbours hold the same one
last.set_xticks(np.arange(4) + 0.5, [device * heads // 4 for device in range(4)])
fig.suptitle("numbers are devices", y=1.08)
plt.show()

# %% [markdown]
# ## Bytes of each device
#
# A little more than a quarter: the model has two kv heads for four devices, so `attn_k` and `attn_v` are shared by two
# only, and vectors are on every device.

# %%
held = collections.Counter()
for array in jax.tree.leaves(params):
    for shard in array.addressable_shards:
        held[shard.device.id] += shard.data.nbytes
fig, ax = plt.subplots(figsize=(8.5, 2.6))
bars = ax.bar(range(8), [held[device] / 1e6 for device in range(8)], color="#1f4e79", label="weights on the device")
ax.bar_label(bars, fmt="%.2f", padding=3)
ax.axhline(one.weights_bytes / 1e6, color="#888888", linestyle="--", label="the file's tensors")
ax.axhline(one.weights_bytes / 4e6, color="#888888", linestyle=":", label="a quarter of them")
ax.set(xlabel="device", ylabel="MB", xticks=range(8), ylim=(0, 1.1 * one.weights_bytes / 1e6))
ax.set_title("weights on each device of a mesh of 2 x 4")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
assert len(set(held.values())) == 1  # all hold the same amount
assert held[0] < 0.3 * one.weights_bytes  # a quarter, and the vectors whole

# %% [markdown]
# ## What the devices say to each other
#
# Collectives cost time on real links, so a compiled step should have few. They are counted in the HLO, the program
# that XLA made; a loop over layers is there once, so its collectives are those of one layer.


# %%
def collectives(executable):
    text = executable.as_text()
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return {kind: n for kind in kinds if (n := len(re.findall(rf" {kind}(?:-start)?\(", text)))}


for key, built in eight.executables.built.items():
    print(f"{key!s:16}{collectives(built.call)}")
assert all(not collectives(built.call) for built in one.executables.built.values())

# %% [markdown]
# The model is small: a row of its matrices is one or two blocks of 256, which four devices cannot share along the
# inputs. So `attn_output` and `ffn_down` are cut by rows instead, and activations are gathered before and after them:
# four gathers in the loop over layers. `head` gathers the logits; `decode` also what its sampler picked for each
# sequence, which all groups are told.
#
# In a model of ordinary size everything divides. For that no weights are needed: a declaration of the tensors is
# enough to plan, and even to compile. Here is one layer of an 8B Llama, by its numbers, on eight devices.

# %%
llama_8b = dataclasses.replace(
    prepared.model,
    block_count=1,
    embedding_length=4096,
    feed_forward_length=14336,
    head_count=32,
    head_count_kv=8,
    key_length=128,
    rope_dimension_count=128,
)
apart = [weight for weight in declare(llama_8b) if not weight.replaces]  # q, k and v in a tensor each
wanted = [weight for weight in apart if not weight.optional or weight.name == "output"]
kinds = {name: "F32" if weight.is_vector else "Q4_K" for weight in wanted for name in weight.tensors}
split = make_split(llama_8b, used_weights(llama_8b, kinds), kinds, data=1, tensor=8)
print(split)

config = dataclasses.replace(EIGHT, mesh=MeshShape(1, 8), cpu_kernels="xla", store=False)
plan = dataclasses.replace(prepared.plan, slots=1, groups=1, head_rows=(16,), scores=False, decode_batch=())
placement = aot.find_devices(config, split)
params = abstract(llama_8b, kinds, placement=placement)
steps = Steps(llama_8b, config, plan, KernelPlan.of(config, llama_8b, kinds), placement)
prefill, logits = aot.build(steps, params).built.values()
for built in (prefill, logits):
    print(f"{built.key!s:16}{collectives(built.call)}")
assert collectives(prefill.call) == {"all-reduce": 2 + 1}
assert collectives(logits.call) == {"all-gather": 1}

# %% [markdown]
# Two sums a layer, one where attention ends and one where the feed-forward part ends, are all that tensor parallelism
# needs (Megatron-LM, 1909.08053). The third sum makes the embedding, whose rows are on different devices; the head's
# gather brings together the logits.
#
# Every device's share of each matrix, in rows and inputs:

# %%
for weight in used_weights(llama_8b, kinds):
    if not weight.is_vector:
        part = split.part(weight)
        pieces = cut(split, weight, 3).pieces
        print(f"{weight.name:12}{weight.shape!s:>16} -> {part.shape!s:>14}   device 3 holds {pieces[0].start} onwards")
packed = [x for x in jax.tree.leaves(params) if x.dtype == np.uint8]
assert all(np.prod(x.sharding.shard_shape(x.shape)) * 8 == x.size for x in packed)
print(f"each device holds an eighth of all {sum(x.size for x in packed) / 1e6:.0f} MB")
