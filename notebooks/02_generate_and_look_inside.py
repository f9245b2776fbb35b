# %% [markdown]
# # Generate, and look inside
#
# From a prompt to text and back to the numbers it came from: tokens, logits, what the sampler does to them, and the
# attention probabilities of every head, from a forward pass written out in one cell.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import packlight
from packlight import demo
from packlight.model.network.ffn.dense import feed_forward
from packlight.model.network.forward import embed, head
from packlight.model.network.mixers.attention import project
from packlight.model.network.norms import norm
from packlight.model.network.products import linear
from packlight.model.network.state import Numerics, Rows
from packlight.model.network.step import Step
from packlight.model.weights.load import read_weights
from packlight.model.weights.params import place
from packlight.prepared import prepare

plt.rcParams.update({"figure.dpi": 85, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
BLUE, RED = "#1f4e79", "#d1495b"

# %% [markdown]
# The embedded demo model; the path of another GGUF file will do. The forward pass near the end is architecture
# `llama`'s.

# %%
MODEL = demo.MODEL

# %%
llm = packlight.load(MODEL)
cfg = llm.model
print(f"{cfg.architecture.name}: {cfg.block_count} layers of {cfg.head_count} heads, {cfg.vocab_size} tokens")
print(f"{llm.weights_bytes / 1e6:.1f} MB of packed weights, {llm.kv_bytes / 1e6:.1f} MB of cache")

# %% [markdown]
# ## Text
#
# `generate` gives a whole `Completion`. At temperature 0 the sampler is greedy: it takes the most probable token, and
# the text is the same every time.

# %%
PROMPT = "A Python function"
done = llm.generate(PROMPT, max_tokens=40, temperature=0)
print(PROMPT + done.text)
print(f"\n{len(done.token_ids)} tokens, ended by {done.finish_reason}, {done.timings['decode_tok_s']:,.0f} tokens/s")
assert llm.generate(PROMPT, max_tokens=40, temperature=0).token_ids == done.token_ids

# %% [markdown]
# `stream` yields the same text in pieces, as soon as each is safe to show: a character whose bytes are spread over
# several tokens comes whole.

# %%
pieces = list(llm.stream(PROMPT, max_tokens=40, temperature=0))
print("|".join(pieces))
assert "".join(pieces) == done.text

# %% [markdown]
# Several prompts decode together, each in a slot of the cache; each gets the tokens it would get alone.

# %%
prompts = [PROMPT, "To open a file", "A dictionary is"]
together = llm.generate(prompts, max_tokens=30, temperature=0)
for prompt, each in zip(prompts, together, strict=True):
    print(prompt + each.text)
    assert each.token_ids == llm.generate(prompt, max_tokens=30, temperature=0).token_ids

# %% [markdown]
# ## Tokens and logits
#
# The tokenizer cuts the text into tokens of its vocabulary; a BOS token marks the beginning. For every token of the
# prompt the model gives a vector of logits, one for each token of the vocabulary: its scores for what comes next.

# %%
OPEN = "The method returns a"
ids = llm.encode(OPEN)
logits = llm.logits(ids)
print([(i, llm.decode([i])) for i in ids])
print("logits", logits.shape, logits.dtype)
assert logits.shape == (len(ids), cfg.vocab_size)
assert logits[-1].argmax() == llm.generate(OPEN, max_tokens=1, temperature=0).token_ids[0]  # what greedy takes

# %% [markdown]
# Softmax turns logits into probabilities: $p_i = e^{z_i} / \sum_j e^{z_j}$.


# %%
def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def shown(token):
    """A token's text with its spaces and line ends visible."""
    return llm.tokenizer.piece(int(token)).decode(errors="replace").replace(" ", "␣").replace("\n", "↵") or "·"


probabilities = softmax(logits[-1].astype(np.float64))
top = np.argsort(-probabilities)[:12]
fig, ax = plt.subplots(figsize=(8.5, 2.8))
bars = ax.bar([shown(i) for i in top], probabilities[top], color=BLUE)
ax.bar_label(bars, [f"{100 * p:.1f} %" for p in probabilities[top]], padding=2)
ax.set(yticks=[], ylim=(0, 1.15 * probabilities.max()), title=f"the most probable tokens after “{OPEN}”")
plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
ax.spines["left"].set_visible(False)
plt.show()

# %% [markdown]
# ## What the sampler does
#
# Drawing from all of that distribution gives a nonsensical token now and then: the tail is long and adds up. So the
# default chain, llama.cpp's, cuts it off first: keep the `top_k` most probable tokens, of these the fewest that reach
# `top_p` together, of these the ones at least `min_p` times as probable as the best. Then the logits are divided by
# the temperature: below 1 the distribution sharpens, above 1 it flattens.


# %%
def chain(logits, temperature=0.8, top_k=40, top_p=0.95, min_p=0.05):
    """The probabilities that the default chain draws with: float64 (V,)."""
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    p = softmax(logits[order])
    kept = np.cumsum(p) - p < top_p  # those before it have not reached top_p
    kept &= p >= min_p * p[0]
    result = np.zeros_like(logits)
    result[order[kept]] = softmax(logits[order[kept]] / temperature)
    return result


# %% [markdown]
# Drawn and computed: 300 completions of one token each, at three temperatures. The points are how often a token came.

# %%
N = 300
temperatures = (0.4, 0.8, 1.6)
next_logits = logits[-1].astype(np.float64)
fig, axes = plt.subplots(1, 3, figsize=(8.5, 2.8), sharey=True, constrained_layout=True)
for ax, temperature in zip(axes, temperatures, strict=True):
    # without the cuts every token can come
    for cuts, color in (({}, BLUE), ({"top_k": 0, "top_p": 1.0, "min_p": 0.0}, RED)):
        drawn = [c.token_ids for c in llm.generate(OPEN, n=N, max_tokens=1, temperature=temperature, seed=1, **cuts)]
        counts = np.bincount([tokens[0] for tokens in drawn if tokens], minlength=cfg.vocab_size)
        expected = chain(next_logits, temperature, **cuts)
        deviation = np.sqrt(N * expected * (1 - expected))
        assert (np.abs(counts - N * expected) <= 5 * deviation + 1).all()
        assert counts[expected == 0].sum() == 0
        at = np.arange(8) + (0.2 if cuts else -0.2)
        ax.bar(at, expected[top[:8]], 0.38, color=color, alpha=0.45, label="all tokens" if cuts else "default cuts")
        ax.plot(at, counts[top[:8]] / N, ".", color=color)
    ax.set(xticks=range(8), title=f"temperature {temperature}")
    ax.set_xticklabels([shown(i) for i in top[:8]], rotation=60)
axes[0].set_ylabel("probability")
axes[-1].legend(frameon=False)
plt.show()

# %% [markdown]
# And what that does to a text:

# %%
for temperature in (0, *temperatures):
    text = llm.generate(PROMPT, max_tokens=40, temperature=temperature, seed=3).text
    print(f"{temperature:>4}: {PROMPT}{text}".replace("\n", " "))

# %% [markdown]
# ## How surprised the model is
#
# The logits after each token say how probable the model held the one that really follows. $-\log_2 p$ is its surprise
# in bits, and $2$ to the power of its mean over a text is the perplexity. Surprise is next to nothing in fixed phrases
# ("does not exist", "number of"), and highest where a text may go anywhere, or where no text of the kind ever went.

# %%
TEXT = "If the file does not exist, an error is raised. Return the number of items in the list of purple elephants."
ids = llm.encode(TEXT)
p = softmax(llm.logits(ids).astype(np.float64))
surprise = -np.log2(p[np.arange(len(ids) - 1), ids[1:]])
fig, ax = plt.subplots(figsize=(8.5, 2.6))
ax.bar(range(len(surprise)), surprise, color=BLUE)
ax.set(ylabel="bits", xlim=(-0.7, len(surprise) - 0.3), title=f"surprise; perplexity {2 ** surprise.mean():.1f}")
ax.set_xticks(range(len(surprise)), [shown(i) for i in ids[1:]], rotation=90, family="monospace", fontsize=8)
plt.show()

# %% [markdown]
# ## The forward pass, written out
#
# The executables give logits only, not what happens on the way. Here is the same pass step by step, with the functions
# that the executables are traced from (`model.network`) and one change: attention is written as a softmax over
# a whole matrix of scores, which fits for a short text, so that its probabilities can be kept. B, T, S, H, K and C are
# batch, query and key time, query heads, kv heads and the width of a head.

# %%
assert cfg.architecture.name == "llama"
prepared = prepare(MODEL)
params = place(read_weights(llm.file, cfg, layouts=prepared.kernels.layouts), llm.placement)
numerics = Numerics(prepared.kernels.products, jnp.dtype(jnp.float32), llm.plan.capacity, llm.plan.context)


def forward(ids):
    """Logits (T, V), and the attention probabilities of every layer: (L, H, T, S)."""
    blk, kept = params["blk"], []  # by part: "layer" has the norms of all, "attention" and "dense" their matrices
    positions = jnp.arange(len(ids), dtype=jnp.int32)
    start = jnp.zeros(1, jnp.int32)
    step = Step.of(cfg, numerics, params, Rows(start[0], start, start + len(ids), start == 0), len(ids))
    x = embed(step, params, jnp.asarray([ids], jnp.int32))  # (B, T, D)
    past = positions[:, None] >= positions[None, :]  # causal: a query sees keys up to its own
    for number, layer in enumerate(cfg.layers):
        index, ((mixer,), ffn) = jnp.int32(number), (layer.mixers, layer.ffn)
        h = norm(step, x, blk["layer"], "attn_norm", index)
        q, k, v, _ = project(step, mixer, blk[mixer.name], index, h)
        q, k = step.turns.rotate(q, False), step.turns.rotate(k, False)
        k, v = (jnp.repeat(each, cfg.head_count // cfg.head_count_kv, axis=2) for each in (k, v))
        scores = jnp.einsum("bthc,bshc->bhts", q, k) / np.float32(cfg.key_length**0.5)
        attention = jax.nn.softmax(jnp.where(past[None, None], scores, -jnp.inf), axis=-1)
        mixed = jnp.einsum("bhts,bshc->bthc", attention, v).reshape(1, len(ids), -1)
        x = x + linear(mixed, blk[mixer.name], "attn_output", index, numerics)
        h = norm(step, x, blk["layer"], "ffn_norm", index)
        x = x + feed_forward(step, ffn, blk[ffn.name], index, h)
        kept.append(attention[0])
    return np.asarray(head(cfg, params, norm(step, x, params, "output_norm")[0], numerics)), np.stack(kept)


SENTENCE = "The function takes a list and returns the list"
ids = llm.encode(SENTENCE)
logits, attention = forward(ids)
expected = llm.logits(ids)
difference = np.abs(logits - expected).max() / expected.std()
print(f"from the executables' logits: {difference:.1e} standard deviations at most")
# The native kernels round activations to int8: where one lies at half a step, another order of sums rounds it the other
# way, which is worth some thousandths. A wrong formula is off by more than 1.
assert difference < 0.1
assert (logits.argmax(-1) == expected.argmax(-1)).mean() > 0.8

# %% [markdown]
# Each row of a head's matrix is a query, and says how its attention is distributed over the keys: it sums to 1 and is 0
# to the right of the diagonal.

# %%
assert np.allclose(attention.sum(-1), 1, atol=1e-5)
assert (np.triu(attention, 1) == 0).all()

labels = [shown(i) for i in ids]
rows = (0, cfg.block_count - 1)
fig, axes = plt.subplots(2, 4, figsize=(9.5, 5.6), sharex=True, sharey=True, constrained_layout=True)
for row, layer in zip(axes, rows, strict=True):
    for number, ax in enumerate(row):
        image = ax.imshow(attention[layer, number], vmin=0, vmax=1, cmap="Blues")
        ax.set_title(f"layer {layer}, head {number}")
        ax.set_xticks(range(len(ids)), labels, rotation=90, family="monospace", fontsize=8)
        ax.set_yticks(range(len(ids)), labels, family="monospace", fontsize=8)
        ax.spines[:].set_visible(False)
fig.colorbar(image, ax=axes, shrink=0.6, label="attention probability")
plt.show()

# %% [markdown]
# Two habits that heads of most models have: some look at the token before, and many, where nothing else fits, at the
# very first one, which serves as an attention sink. Averaged over the queries of this text, of each head:

# %%
T = len(ids)
steps = np.arange(1, T)
habits = {
    "to the first token": attention[:, :, 2:, 0].mean(-1),
    "to the token before": attention[:, :, steps, steps - 1].mean(-1),
    "to itself": attention[:, :, steps, steps].mean(-1),
}
fig, axes = plt.subplots(1, 3, figsize=(8.5, 2.6), sharey=True, constrained_layout=True)
for ax, (name, share) in zip(axes, habits.items(), strict=True):
    image = ax.imshow(share, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ax.set(title=name, xlabel="head", yticks=range(cfg.block_count))
    ax.spines[:].set_visible(False)
axes[0].set_ylabel("layer")
fig.colorbar(image, ax=axes, label="attention")
plt.show()
