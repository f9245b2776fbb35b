# %% [markdown]
# # The compile step and its cache
#
# jax compiles a function for the shapes it is called with. A server that did so on demand would stop for seconds
# whenever a prompt has a new length. packlight decides all shapes ahead, from a config; compiles one executable for
# each; keeps them on disk; and never compiles again. Here all of that is counted.

# %%
import dataclasses
import pathlib
import tempfile

import jax
import matplotlib.pyplot as plt

import packlight
from packlight import demo
from packlight.compile import aot
from packlight.compile.config import parse_config
from packlight.compile.counter import CompileCounter
from packlight.model.spec.weights import formats
from packlight.model.weights.params import abstract
from packlight.model.weights.placement import Placement
from packlight.prepared import prepare

plt.rcParams.update({"figure.dpi": 85, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# The embedded demo model; the path of any GGUF file will do.

# %%
MODEL = demo.MODEL

# %% [markdown]
# ## The config
#
# A TOML file, as `--config=FILE` takes it. Keys that are absent keep their defaults, unknown ones are errors. The cache
# is a new folder here, so that the first start is a first start.

# %%
folder = tempfile.TemporaryDirectory()
config = parse_config(
    """
    platform = "cpu"
    context = 200               # tokens of prompt and answer together
    prefill_buckets = [16, 64]  # a prompt runs in chunks of these lengths
    decode_batch = [2]          # how many sequences a decode step serves
    head_rows = 16
    [xla_options]               # XLA's older code generator compiles in less time
    xla_cpu_use_fusion_emitters = false
    """,
    source="notebook",
)
config = dataclasses.replace(config, cache_dir=folder.name)

# %% [markdown]
# ## The plan
#
# What follows from it is arithmetic and needs no jax: the finite set of executables. `prefill[T, S]` runs T tokens of
# one prompt with S cached positions in view, `head[R]` gives the logits of R rows, `score[R]` log-probabilities,
# `decode[B, S]` the next token of B sequences, and `copy[1, S]` gives a slot what another one has of a text.

# %%
prepared = prepare(MODEL, config)
plan = prepared.plan
print(*plan.steps, sep="\n")
assert len(plan.steps) == 2 + 2 + 1 + 1 + 1

# %% [markdown]
# A prompt of any length is covered by chunks, the last one padded. More buckets waste less work on padding and take
# longer to compile.

# %%
lengths = range(1, plan.context)
fig, ax = plt.subplots(figsize=(8.5, 2.8))
colors = {16: "#a9c7e8", 64: "#1f4e79"}
bottom = [0] * len(lengths)
for bucket, color in colors.items():
    rows = [sum(c.key.rows for c in plan.chunks(0, n) if c.key.rows == bucket) for n in lengths]
    ax.bar(lengths, rows, 1.0, bottom=bottom, color=color, label=f"prefill[{bucket}]")
    bottom = [b + r for b, r in zip(bottom, rows, strict=True)]
ax.plot(lengths, lengths, color="#d1495b", label="tokens of the prompt")
ax.set(xlabel="prompt length", ylabel="rows computed", title="which chunks run a prompt; above the line is padding")
ax.legend(frameon=False)
plt.show()
for n in lengths:
    chunks = plan.chunks(0, n)
    assert sum(c.count for c in chunks) == n
    assert {c.key for c in chunks} <= set(plan.steps)

# %% [markdown]
# ## First start and second start
#
# `CompileCounter` counts the backend compilations of the whole process, as jax itself reports them.


# %%
def start(config):
    """A loaded model, and how many compilations building its steps took."""
    with CompileCounter() as compiled:
        llm = packlight.load(MODEL, config)
    steps = llm.executables
    print(f"{steps.misses} missed, {steps.hits} found, {compiled.count} compilations, ", end="")
    print(f"{llm.timings['compile_s']:.2f} s")
    return llm, compiled.count


_, cold_compiles = start(config)
llm, warm_compiles = start(config)
assert cold_compiles >= len(plan.steps)
assert warm_compiles == 0

# %% [markdown]
# The report of each executable, as `packlight compile` prints it. Arguments are weights and cache, which every step
# shares; scratch is what it needs beside them. The cache is donated: a step writes it in place, so it makes no new
# memory.

# %%
print(f"{'step':18}{'store':6}{'arguments MB':>13}{'scratch MB':>12}{'new MB':>8}")
for key, built in llm.executables.built.items():
    megabytes = (built.argument_bytes / 1e6, built.scratch_bytes / 1e6, built.new_bytes / 1e6)
    print(f"{key!s:18}{'hit' if built.hit else 'miss':6}{megabytes[0]:13.2f}{megabytes[1]:12.2f}{megabytes[2]:8.2f}")
    assert built.hit
    assert built.new_bytes < llm.kv_bytes

# %% [markdown]
# ## Nothing compiles while it serves
#
# Prompts of many lengths, one and two sequences, every kind of sampling: whatever a request may change is an argument
# of the executable, an array, and not a part of the program.

# %%
with CompileCounter() as compiled:
    for n in (1, 15, 16, 17, 100, 190):
        llm.generate(list(range(3, 3 + n)), max_tokens=3, temperature=0)
    llm.generate(["A Python function", "To open a file"], max_tokens=8, seed=1)
    for sampling in ({"temperature": 1.5}, {"top_k": 3}, {"repeat_penalty": 1.3}, {"mirostat": 2}):
        llm.generate("A Python function", max_tokens=4, **sampling)
print(f"{compiled.count} compilations; executables run:")
for key, count in llm.engine.steps_run.items():
    print(f"{key!s:18}{count:5}")
assert compiled.count == 0

# %% [markdown]
# ## What an entry's name depends on
#
# An entry of the store is named by a SHA-256 over everything that could change the executable: the step, shapes and
# formats of its arguments, the model's hyperparameters, the config, the device, the versions of jax and of packlight's
# own sources, XLA's flags. `digests` computes the names without compiling anything.

# %%
kinds = formats(prepared.file)


def digests(config):
    """The names under which the store would have the steps of this config."""
    prepared = prepare(MODEL, config)
    placement = Placement.on(jax.devices("cpu"))
    params = abstract(prepared.model, kinds, prepared.kernels.layouts, placement)
    steps = prepared.steps(placement)
    return {key: aot.entry_digest(steps, key, params) for key in prepared.plan.steps}


stored = {path.stem for path in pathlib.Path(folder.name).glob("*.aot")}
assert set(digests(config).values()) == stored
print(*(f"{key!s:18}{digest[:16]}..." for key, digest in digests(config).items()), sep="\n")

# %% [markdown]
# So each change of the config can be asked which of its steps are already there:

# %%
CHANGES = {
    "nothing": {},
    "memory_limit = 2 GB": {"memory_limit": 2_000_000_000},
    "prefill_buckets = [16]": {"prefill_buckets": (16,)},
    "prefill_buckets = [16, 32, 64]": {"prefill_buckets": (16, 32, 64)},
    "length_buckets = [128]": {"length_buckets": (128,)},
    "decode_batch = [1, 2]": {"decode_batch": (1, 2)},
    "decode_batch = [4]": {"decode_batch": (4,)},
    "context = 150": {"context": 150},
    "kv_dtype = bfloat16": {"kv_dtype": "bfloat16"},
    "cpu_kernels = reference": {"cpu_kernels": "reference"},
    "no option of XLA": {"xla_options": ()},
}
found = {}
for name, change in CHANGES.items():
    names = digests(dataclasses.replace(config, **change))
    found[name] = {key: digest in stored for key, digest in names.items()}

fig, ax = plt.subplots(figsize=(8.5, 3.2))
for y, steps in enumerate(found.values()):
    hits = sum(steps.values())
    ax.barh(y, hits, color="#66a182", label=None if y else "found in the store")
    ax.barh(y, len(steps) - hits, left=hits, color="#d1495b", label="to compile" if y == 1 else None)
ax.set_yticks(range(len(found)), found)
ax.invert_yaxis()
ax.set(xlabel="executables", title="what a changed config finds of the first one's executables")
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

assert all(found["nothing"].values())
assert all(found["memory_limit = 2 GB"].values())
assert all(found["prefill_buckets = [16]"].values())
for name in ("prefill_buckets = [16, 32, 64]", "decode_batch = [1, 2]"):
    assert sum(not hit for hit in found[name].values()) == 1
assert [key.phase for key, hit in found["kv_dtype = bfloat16"].items() if hit] == ["head", "head"]
assert not any(found["cpu_kernels = reference"].values())
assert not any(found["no option of XLA"].values())

# %% [markdown]
# A limit of memory is not part of a program; one bucket or batch more is one executable more. More slots, or another
# type of its numbers, change the cache, which is an argument of prefill and decode, but not of the head. The context is
# in every name, and so are the kernels and XLA's options.
#
# The values of the weights are in no name: another file with the same shapes and formats, a fine-tune of the same
# model, finds all of its executables.
#
# ## A damaged entry
#
# An entry is machine code, so it bears a seal that only this user's secret makes. One whose seal does not match is
# compiled again, with a warning, and replaced.

# %%
victim = pathlib.Path(folder.name, f"{digests(config)[plan.steps[0]]}.aot")
content = bytearray(victim.read_bytes())
content[len(content) // 2] ^= 1  # one bit
victim.write_bytes(content)

llm, compiles = start(config)
print(*llm.executables.warnings, sep="\n")
assert (llm.executables.misses, compiles >= 1) == (1, True)
_, compiles = start(config)
assert compiles == 0
folder.cleanup()
