# %% [markdown]
# # A Q4_K block by hand
#
# Most GGUF files that people download are `Q4_K_M`: the bulk of their weights is stored in format `Q4_K`, 4.5 bits for
# each weight. Here one block of 144 bytes is unpacked with nothing but numpy, and the result is compared bit for bit
# with packlight's own code and with gguf-py, the reference reader. Then follow the two questions that come next: how
# much of a weight is lost, and how a matrix is multiplied that is never unpacked as a whole.

# %%
import gguf
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import packlight
from packlight import demo
from packlight.compile.targets.hlo import materialized
from packlight.model.gguf.reader import open_gguf, read_tensor
from packlight.quant.formats.quantize import quantizer
from packlight.quant.formats.table import FORMATS
from packlight.quant.matmul import matmul
from packlight.quant.qtensor import QTensor

plt.rcParams.update({"figure.dpi": 85, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# The embedded demo model; the path of any GGUF file that has a `Q4_K` tensor will do.

# %%
MODEL = demo.MODEL

# %% [markdown]
# ## The bytes
#
# A tensor is a matrix `(out, in)`; each row is cut into blocks of 256 consecutive weights. `read_tensor` gives the
# file's own bytes with an axis for the blocks and one for the bytes of a block.

# %%
file = open_gguf(MODEL)
info = next(t for t in file.tensors.values() if t.format.name == "Q4_K")
blocks = read_tensor(info)  # uint8 (out, blocks of a row, 144)
block = blocks[0, 0]
print(f"{info.name}: {info.shape[0]} x {info.shape[1]} weights in {blocks.nbytes:,} bytes, {blocks.shape}")
assert block.shape == (144,)

# %% [markdown]
# ggml calls the fields of the block `d`, `dmin`, `scales` and `qs`:
#
# | bytes | field | what it is |
# |---|---|---|
# | 0–1 | `d` | float16: the super-block's scale |
# | 2–3 | `dmin` | float16: the super-block's scale of minima |
# | 4–15 | `scales` | 8 scales and 8 minima of 6 bits, for 8 sub-blocks of 32 weights |
# | 16–143 | `qs` | 256 codes of 4 bits |

# %%
FIELDS = {"d": (0, 2, "#d1495b"), "dmin": (2, 4, "#edae49"), "scales": (4, 16, "#66a182"), "qs": (16, 144, "#a9c7e8")}
fig, ax = plt.subplots(figsize=(8.5, 3.4))
for name, (start, end, color) in FIELDS.items():
    for at in range(start, end):
        row, column = divmod(at, 16)
        ax.add_patch(plt.Rectangle((column, row), 0.94, 0.9, color=color, label=name if at == start else None))
        ax.text(column + 0.47, row + 0.47, f"{block[at]:02x}", ha="center", va="center", family="monospace")
ax.set(xlim=(-0.1, 16), ylim=(9, -0.1), xticks=[], yticks=np.arange(9) + 0.45, yticklabels=range(0, 144, 16))
ax.tick_params(length=0)
ax.spines[:].set_visible(False)
ax.set_title("one block of Q4_K, byte by byte (hexadecimal)")
ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, frameon=False)
plt.show()

# %% [markdown]
# ## Step 1: two halves
#
# `d` and `dmin` are IEEE half-precision numbers, little-endian.

# %%
d, dmin = block[0:4].view("<f2").astype(np.float32)
print(f"d = {d}, dmin = {dmin}")

# %% [markdown]
# ## Step 2: sixteen numbers of 6 bits
#
# Twelve bytes hold eight scales (letters `A`–`H`) and eight minima (`a`–`h`). The first four of each lie in the low six
# bits of a byte. The last four are torn: their low four bits share bytes 8–11, their high two sit on top of the others.
#
#     scales[0..3]    EEAAAAAA FFBBBBBB GGCCCCCC HHDDDDDD
#     scales[4..7]    eeaaaaaa ffbbbbbb ggcccccc hhdddddd
#     scales[8..11]   eeeeEEEE ffffFFFF ggggGGGG hhhhHHHH

# %%
first, second, third = block[4:16].reshape(3, 4)
scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)])
minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)])
print("scales", scales)
print("minima", minima)
assert max(scales.max(), minima.max()) < 64

# %% [markdown]
# ## Step 3: 256 codes of 4 bits
#
# 32 bytes hold two sub-blocks: the low nibbles are the codes of the first one, the high nibbles those of the second.

# %%
pairs = block[16:].reshape(4, 32)
codes = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(8, 32)  # (sub-block, weight)
print(codes[0])

# %% [markdown]
# ## Step 4: the weights
#
# Sub-block $s$ has 16 levels, evenly spaced by $d \cdot sc_s$, of which the lowest is $-d_{min} \cdot mn_s$:
#
# $$w = d \cdot sc_s \cdot q - d_{min} \cdot mn_s$$
#
# In float32 both products are exact: $d$ has 11 significant bits, $sc_s$ 6 and $q$ 4, which makes 21 of float32's 24.
# Only the subtraction rounds, once. So there is one right answer, to the last bit, and no excuse for another.

# %%
step = (d * scales)[:, None]  # float32 (8, 1)
low = (dmin * minima)[:, None]
weights = (step * codes - low).reshape(256)

ours = packlight.unpack(block, "Q4_K")
theirs = gguf.quants.dequantize(block[None], gguf.GGMLQuantizationType.Q4_K)[0]
assert weights.dtype == ours.dtype == theirs.dtype == np.float32
assert np.array_equal(weights.view(np.uint32), ours.view(np.uint32))
assert np.array_equal(weights.view(np.uint32), theirs.view(np.uint32))
print("all 256 weights are equal bit for bit: by hand, packlight, gguf-py")

# %%
fig, ax = plt.subplots(figsize=(8.5, 3))
for s in range(8):
    levels = step[s] * np.arange(16) - low[s]
    ax.hlines(levels, 32 * s, 32 * s + 31, color="#c9d9ea", linewidth=0.8, zorder=0)
ax.plot(weights, ".", color="#1f4e79", markersize=4)
ax.set(xlabel="weight (a sub-block of 32 between two ticks)", ylabel="value", xticks=range(0, 257, 32), xlim=(-2, 257))
ax.set_title("each sub-block has 16 levels of its own; every weight lies on one")
plt.show()

# %% [markdown]
# The same four steps for the whole tensor, once more with nothing in between:


# %%
def unpack_q4_k(blocks):  # uint8 (..., 144) -> float32 (..., 256)
    lead = blocks.shape[:-1]
    d, dmin = np.moveaxis(np.ascontiguousarray(blocks[..., :4]).view("<f2").astype(np.float32), -1, 0)
    a, b, c = np.moveaxis(blocks[..., 4:16].reshape(*lead, 3, 4), -2, 0)
    scales = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], -1)
    minima = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], -1)
    pairs = blocks[..., 16:].reshape(*lead, 4, 32)
    codes = np.stack([pairs & 15, pairs >> 4], -2).reshape(*lead, 8, 32)
    values = (d[..., None] * scales)[..., None] * codes - (dmin[..., None] * minima)[..., None]
    return values.reshape(*lead, 256)


matrix = unpack_q4_k(blocks).reshape(info.shape)
expected = gguf.quants.dequantize(blocks.reshape(info.shape[0], -1), gguf.GGMLQuantizationType.Q4_K)
assert np.array_equal(matrix.view(np.uint32), expected.view(np.uint32))
print(f"{matrix.size:,} weights, all equal")

# %% [markdown]
# ## Bits per weight
#
# The codes take 4 bits; scales, minima and the two halves are shared by many weights and add half a bit.

# %%
for name, (start, end, _) in FIELDS.items():
    print(f"{name:7}{8 * (end - start) / 256:7.4f} bits per weight")
print(f"{'sum':7}{8 * block.size / 256:7.4f}, and packlight's table says {FORMATS['Q4_K'].bits_per_weight}")
assert FORMATS["Q4_K"].bits_per_weight == 4.5

# %% [markdown]
# ## What is lost
#
# The weights of a trained network are close to normally distributed. A quarter of a million such numbers are packed
# here with llama.cpp's method (`quant.formats.quantize`) and unpacked again. No weight moves by much more than half a
# step of its sub-block, so the histogram of errors ends where a normal one would have tails.

# %%
floats = np.random.default_rng(0).normal(0, 0.02, (1024, 256)).astype(np.float32)


def through(qtype):
    """The numbers after packing them as `qtype` and unpacking them."""
    packed = np.asarray(jax.jit(quantizer(qtype))(floats.reshape(-1, FORMATS[qtype].elements)))
    return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[qtype]).reshape(floats.shape)


def relative_error(qtype):
    return np.sqrt(np.mean((through(qtype) - floats) ** 2)) / floats.std()


errors = {kind: relative_error(kind) for kind in ("Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0")}
fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
fig.get_layout_engine().set(wspace=0.1)
for kind, color in (("Q4_K", "#d1495b"), ("Q6_K", "#1f4e79")):
    error = (through(kind) - floats).ravel() / floats.std()
    left.hist(error, bins=200, range=(-0.25, 0.25), density=True, histtype="step", color=color, label=kind)
left.set(xlabel="error, in standard deviations of the weights", yticks=[], title="error of a weight")
left.legend(frameon=False)
for kind, error in errors.items():
    bits = FORMATS[kind].bits_per_weight
    right.plot(bits, error, "o", color="#1f4e79")
    below = kind in ("Q4_K", "Q5_K")  # the older format of as many bits stands close above
    right.annotate(kind, (bits, error), xytext=(5, -10 if below else 4), textcoords="offset points")
ticks = (0.005, 0.01, 0.02, 0.04, 0.08)
right.set(yscale="log", xlabel="bits per weight", xlim=(4.2, 9.2), title="RMS error, relative to the weights")
right.set_yticks(ticks, [f"{100 * t:g} %" for t in ticks])
right.minorticks_off()
plt.show()

# %% [markdown]
# Each further bit halves the error. At equal bits the K formats are better: `Q4_K` and `Q4_0`
# have 4.5 both, but `Q4_K` chooses a minimum as well as a scale for each sub-block, and searches for the pair that
# leaves the least error.

# %%
for kind, error in errors.items():
    print(f"{kind}: {FORMATS[kind].bits_per_weight:.4g} bits, relative RMS error {100 * error:.2f} %")
assert errors["Q4_K"] < errors["Q4_0"] < 0.12
assert errors["Q5_K"] < 0.6 * errors["Q4_K"]

# %% [markdown]
# ## A product with a packed matrix
#
# `matmul(x, w, path)` multiplies activations with a `QTensor`, the packed bytes. Path `reference` unpacks the matrix,
# then multiplies. Path `xla` unpacks a tile of rows that fits the processor's cache, multiplies it and goes on to the
# next. Both are the same sums.

# %%
w = QTensor.of(jnp.asarray(blocks), "Q4_K")
x = jnp.asarray(np.random.default_rng(1).normal(size=(3, w.shape[1])), jnp.float32)
# XLA's older CPU code generator gives the same values and compiles this in a fraction of the time.
product = jax.jit(matmul, static_argnums=2, compiler_options={"xla_cpu_use_fusion_emitters": False})
exact = np.asarray(x, np.float64) @ matrix.astype(np.float64).T
for path in ("reference", "xla"):
    y = np.asarray(product(x, w, path))
    print(f"{path:10}{y.shape}, largest error {np.abs(y - exact).max() / exact.std():.1e} standard deviations")
    assert np.abs(y - exact).max() < 1e-5 * exact.std()

# %% [markdown]
# What differs is memory. Both paths are compiled here for a matrix of 4096 x 14336, the size of `ffn_down` in an 8B
# model (from its shape alone: nothing is allocated), and XLA says how much scratch the program needs. `materialized`
# looks through the compiled program for an array as large as the matrix.

# %%
rows, width = 4096, 14336
large = QTensor.of(jax.ShapeDtypeStruct((rows, width // 256, 144), jnp.uint8), "Q4_K")
one_token = jax.ShapeDtypeStruct((1, width), jnp.float32)
megabytes = {"packed": rows * width * 4.5 / 8 / 1e6, "as float32": rows * width * 4 / 1e6}
for path in ("reference", "xla"):
    compiled = product.lower(one_token, large, path).compile()
    whole = materialized(compiled.as_text())
    megabytes[f"scratch of {path}"] = compiled.memory_analysis().temp_size_in_bytes / 1e6
    print(f"{path:10} unpacks the whole matrix into memory: {'yes' if whole else 'no'}")
    assert bool(whole) == (path == "reference")

# %%
fig, ax = plt.subplots(figsize=(8.5, 2))
bars = ax.barh(list(megabytes), list(megabytes.values()), color=["#a9c7e8", "#a9c7e8", "#d1495b", "#66a182"])
ax.bar_label(bars, fmt="%.1f MB", padding=4)
ax.invert_yaxis()
ax.set(xticks=[], xlim=(0, 275), title="memory of a product with a 4096 x 14336 matrix in Q4_K")
ax.spines["bottom"].set_visible(False)
plt.show()
assert megabytes["scratch of xla"] < 0.02 * megabytes["as float32"]

# %% [markdown]
# Generating a token reads every weight once, so its speed is that of memory. Read packed, the matrix is 33 MB; read
# as float32 it would be seven times that. This is why packlight keeps weights packed all the way, and why its fast
# kernels (`native` on a CPU, `mosaic` on GPUs and TPUs) unpack in registers and never write an unpacked weight at all.
