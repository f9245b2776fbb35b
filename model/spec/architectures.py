"""`Architecture`: what the one forward pass must know about a family beyond a file's hyperparameters. Imports no jax.

A family whose parts are all known is one row of ARCHITECTURES. A part that no other family has becomes a field first,
with a default that changes nothing for the others. What any file may have is no field: projections of queries, keys and
values in one tensor, biases, scales of quantized matrices, widths that are keys.
Sources: llama.cpp's graph of each family, checked by its logits.
"""

import dataclasses
from typing import Literal

RouterScores = Literal["softmax", "chosen", "sigmoid"]


@dataclasses.dataclass(frozen=True)
class Attention:
    """How queries, keys and values are made and scored."""

    # Queries and keys are normed: each head with the same weights, each head with its own, the whole projection, or
    # each head without weights.
    qk_norm: Literal["", "head", "heads", "whole", "unweighted"] = ""
    qk_norm_optional: bool = False  # a file may lack the norm's weights, and then its queries and keys are not normed
    rotates_first: bool = False  # queries and keys are normed after they were rotated
    # The mixed values are multiplied: with the sigmoid of a second half of each query head, or with what `attn_gate`
    # gives, the sigmoid of a number for each channel or the softplus of one for each head.
    gate: Literal["", "query", "channels", "heads"] = ""
    values_normed: bool = False  # each head's values are normed, without weights
    keys_as_values: bool = False  # where layers have no `attn_v`, values are what the keys' matrix gives
    # The last layers attend to keys and values of layers before them: as many as a file says, or those beyond 20.
    shares: Literal["", "stated", "beyond 20"] = ""
    softcap: float | None = None  # default of the scores' soft cap; 0: none; None: a file cannot ask for one
    sinks: bool = False  # each head has a score that takes weight and gives no value
    # Queries far into a text are sharpened: as the file states it, from the original context on or from a length that
    # it states too, or as Llama 4 does in layers that do not rotate.
    sharpens: Literal["", "stated", "stated with length", "llama4"] = ""
    alibi: float = 0.0  # the most that a head takes off a score for each position of distance (ALiBi); 0: none does
    latent: bool = False  # keys and values are made of one narrow latent, which all heads share (MLA)


@dataclasses.dataclass(frozen=True)
class Windows:
    """Which layers see a sliding window only, and how these rotate."""

    # One of n layers attends to the whole context, the others to a sliding window; 0: all slide; None: none does.
    period: int | None = None
    stated: bool = False  # a file must say which layers slide, in an array
    global_first: bool = False  # the one that attends to the whole context is the first of each n, not the last
    width: int | None = None  # default width; None: the file must give one; 0: no window unless the file gives one
    layers: int = 0  # only models with so many layers have windows; 0: all models
    chunked: bool = False  # a query sees its own chunk of the context, of `width` positions, which no key changes
    unstretched: bool = False  # sliding layers rotate without the stretching that the file asks for
    rope_base: float | None = 0.0  # default base of the sliding layers' rotation; 0: the model's; None: always that
    own_rotation: bool = False  # a file may state how many channels sliding layers rotate
    own_heads: bool = False  # a file may state how wide the heads of sliding layers are


@dataclasses.dataclass(frozen=True)
class Rope:
    """How positions rotate queries and keys."""

    style: Literal["adjacent", "halves"] = "halves"  # rotates pairs (2i, 2i+1), or (i, i + rot/2)
    # Which layers rotate: all, three of four, those with a sliding window where there are any, all unless the file says
    # that it was trained without, or none.
    layers: Literal["all", "three of four", "sliding", "stated", "none"] = "all"
    whole: bool = False  # all channels of a head rotate, and rope.dimension_count must say so
    # Pairs are shared among kinds of positions (M-RoPE), in runs or in turn; of a text all but the last kind are equal,
    # and the last is 0. A file must, or in runs may, state how many pairs each has.
    sections: Literal["", "may", "runs", "in turn"] = ""
    divided: bool = False  # a file must have divisors of the frequencies, for all channels of a head
    # Where a file states how much of YaRN's sharpening the rotation takes back, it takes back all of it.
    takes_all_back: bool = False
    two_contexts: bool = False  # a file may divide frequencies by other numbers for long contexts than for short ones


@dataclasses.dataclass(frozen=True)
class Norms:
    """What is normed, and how. Names are of a norm's weights; "": there is none."""

    kind: Literal["rms", "layer"] = "rms"  # "layer" subtracts the mean
    biases: bool = False  # norms have biases
    before_attention: str = "attn_norm"
    attention_alone: str = ""  # where a file has it, attention reads this norm instead
    before_ffn: str = "ffn_norm"
    before_ffn_optional: bool = False  # without it attention and feed-forward are side by side, on one norm
    after_attention: str = ""  # of what attention gives, before it is added
    after_ffn: str = ""
    of_sums: bool = False  # the norms after attention and feed-forward are of what they were added to
    # Where a file has it: what the norm after attention gives is added to the layer's input once more, then normed.
    after_attention_again: str = ""
    last: str = "output_norm"
    embedding: str = ""  # of the embedded tokens
    bare_first: bool = False  # attention of the first layer reads no norm
    unsuffixed: str = ""  # the one whose name in a file has no ".weight"
    # A file must have the epsilon of layer norms, and may have that of RMS norms, which then counts.
    either_epsilon: bool = False

    @property
    def of_layers(self) -> tuple[str, ...]:
        """Those of a layer, each once."""
        names = (self.before_attention, self.before_ffn, self.after_attention, self.after_ffn)
        return tuple(dict.fromkeys(filter(None, (*names, self.attention_alone, self.after_attention_again))))

    def is_optional(self, name: str) -> bool:
        extra = name in (self.attention_alone, self.after_attention_again)
        return extra or (self.before_ffn_optional and name == self.before_ffn)


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts: which layers have it, how its router chooses and weighs, what is beside it."""

    must: bool = True  # every file of the family has one
    # What the router's logits become: a softmax over all experts, over the chosen ones alone, or sigmoids.
    scores: RouterScores = "softmax"
    # Whether a file states its own scores (expert_gating_func).
    stated: Literal["never", "may", "must"] = "never"
    # Models with one of these numbers of layers and so many tokens have sigmoids unless the file states something else.
    sigmoids_if: tuple[tuple[int, ...], int] = ((), 0)
    # Whether a file has biases that choose experts and do not count in their weights.
    choice_bias: Literal["never", "may", "must"] = "never"
    normed: bool | None = True  # the chosen experts' weights are made to sum to 1; None: if the file says so
    scaled: bool = False  # a file may scale them (expert_weights_scale)
    grouped: bool = False  # a file may let only the best groups of experts be chosen from
    scales_input: bool = False  # their weights multiply what experts read, not what they give
    leading_dense: bool = False  # a file may say how many layers, the first ones, have no experts
    every: str = ""  # key of n, where only one of n layers has experts; "": all have
    second_of_every: bool = False  # it is the second of each n, not the last
    # How many experts every token goes through, unless the file says it, or their width. None: the file must.
    shared: int | None = 0
    shared_gate: bool = False  # what they give is multiplied with a sigmoid
    # Beside them is a dense MLP, as wide as the file says. Both have norms of their own before and after, and the
    # router reads hidden states that were normed with its own weights.
    beside_dense: bool = False


@dataclasses.dataclass(frozen=True)
class Ffn:
    """The feed-forward part, of a dense layer or of each expert."""

    # "gelu", "relu2" (squared) and "xielu" have no gate; "swiglu_oai" is clamped.
    kind: Literal["swiglu", "geglu", "gelu", "relu2", "xielu", "swiglu_oai"] = "swiglu"
    fused: bool = False  # one tensor, ffn_up, holds gate and up
    sparse_layers: int = 0  # so many layers, the first ones, let only the highest twentieth of their gates through
    may_fuse: bool = False  # it does where it has as many rows as both
    stated: bool = False  # a file may state another kind (hidden_activation)
    experts: Experts | None = None

    @property
    def gated(self) -> bool:
        return self.kind in ("swiglu", "geglu", "swiglu_oai")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The head of a reranker, which a file may have. Source: llama.cpp's `build_pooling`."""

    of: Literal["cls", "last", "mean"] = "cls"  # the pooling whose vector it reads, unless a file says "mean"
    pooler: Literal["tanh", "gelu"] = "tanh"  # what goes over the outputs of `cls`, where a file has it
    one: bool = False  # `cls` has one output, the score, and there is no `cls.output`
    softmax: bool = False  # scores are shares of 1


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One family."""

    name: str  # `general.architecture`
    attention: Attention = Attention()
    windows: Windows = Windows()
    rope: Rope = Rope()
    norms: Norms = Norms()
    ffn: Ffn = Ffn()
    # Most layers have a gated delta net, whose value heads read key heads in turn, or consecutive ones the same.
    # All but one of n layers have it, or those that the file names.
    delta_net: Literal["", "in turn", "consecutive"] = ""
    # Where Mamba-2 is: in layers without kv heads; in those that have neither kv heads nor a feed-forward part, where
    # each layer is one part; beside attention in each layer; or in each, where there is nothing else.
    mamba2: Literal["", "without kv heads", "one part", "beside attention", "alone"] = ""
    without_kv_heads: Literal["", "shortconv"] = ""  # the mixer of layers without kv heads; "": there are none
    # Attention and feed-forward read the same hidden states, and both are added to them: never, always, or by a key.
    side_by_side: Literal["never", "always", "stated"] = "never"
    learned_positions: bool = False  # a table of positions is added to embeddings
    # Default of the width of a second embedding in each layer, which adds it to its output; 0: none, unless the file
    # has it; None: a file cannot have one.
    per_layer_inputs: int | None = None
    streams: bool = False  # hidden states are several streams (AltUp), with a narrow way beside attention (Laurel)
    scaled_outputs: bool = False  # a file may multiply what each layer gives with a number
    causal: bool = True  # tokens see those before them; False: all of their text, and the family generates none
    token_types: bool = False  # a vector for the type of tokens is added to embeddings: a text's are all of type 0
    ranking: Ranking | None = None
    biases: tuple[str, ...] = ()  # matrices that must have one; others may
    # Factors: embeddings times sqrt(D); embeddings, residuals, attention and logits by keys, with defaults that change
    # nothing or MiniCPM's; logits alone, which a key multiplies.
    scales: Literal["", "embedding", "stated", "minicpm", "logits"] = ""
    attention_scale: float = 0.0  # of scores; 0: 1 / sqrt(C), or as `scales` says
    softcap_stated: bool = True  # a file may state the logits' soft cap
    logit_softcap: float | None = None  # default of the logits' soft cap; 0: none; None: a file cannot ask for one

    @property
    def may_lack_kv_heads(self) -> bool:
        """Whether there may be layers without attention."""
        return bool(self.without_kv_heads) or self.mamba2 in ("without kv heads", "one part", "alone")

    @property
    def may_lack_ffn(self) -> bool:
        """Whether there may be layers without a feed-forward part."""
        return self.mamba2 in ("one part", "alone")


QKV = ("attn_q", "attn_k", "attn_v")
DENSE = ("ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
UNGATED_BIASES = ("attn_output", "ffn_up", "ffn_down")
ADJACENT = Rope("adjacent")
HEADS = Attention(qk_norm="head")  # queries and keys are normed by head
AFTER = Norms(after_attention="post_attention_norm", after_ffn="post_ffw_norm")
LAYER = Norms("layer", biases=True)
ONE_NORM = dataclasses.replace(LAYER, before_ffn="attn_norm")
BEFORE_FFN = Norms(before_ffn="post_attention_norm")
SUMS = Norms(
    "layer",
    biases=True,
    before_attention="",
    before_ffn="",
    after_attention="attn_output_norm",
    after_ffn="layer_output_norm",
    of_sums=True,
    last="",
    embedding="token_embd_norm",
)
MIXTURE = Ffn(experts=Experts())
# What came with DeepSeek V3: sigmoids, biases that choose, weights scaled, dense layers first.
SIGMOIDS = Experts(
    scores="sigmoid",
    stated="may",
    choice_bias="may",
    normed=None,
    scaled=True,
    grouped=True,
    leading_dense=True,
    shared=None,
)

LATENT = Attention(latent=True, sharpens="stated with length")
# The sigmoids that files of GLM 4.7 Flash made before 2026-01-21 do not state.
DEEPSEEK = dataclasses.replace(SIGMOIDS, scores="softmax", sigmoids_if=((47, 48), 154880))

ARCHITECTURES = {
    row.name: row
    for row in (
        Architecture("llama", rope=Rope("adjacent", whole=True), ffn=Ffn(experts=Experts(must=False))),
        Architecture(
            "mistral3",
            attention=Attention(sharpens="stated"),
            rope=Rope("adjacent", whole=True),
            ffn=Ffn(experts=Experts(must=False)),
        ),
        Architecture(
            "llama4",
            attention=Attention(qk_norm="unweighted", rotates_first=True, sharpens="llama4"),
            windows=Windows(4, width=8192, chunked=True),
            rope=Rope("adjacent", layers="three of four"),
            ffn=Ffn(
                experts=Experts(
                    scores="sigmoid", normed=False, scales_input=True, every="interleave_moe_layer_step", shared=1
                )
            ),
        ),
        Architecture("smollm3", rope=Rope("adjacent", layers="three of four")),
        Architecture("internlm2", rope=ADJACENT),
        Architecture("arcee", rope=ADJACENT, ffn=Ffn("relu2")),
        Architecture("seed_oss", norms=BEFORE_FFN),
        Architecture("apertus", attention=HEADS, ffn=Ffn("xielu")),
        Architecture("qwen2", biases=QKV),
        Architecture("qwen2vl", rope=Rope(sections="runs"), biases=QKV),
        Architecture("qwen2moe", ffn=Ffn(experts=Experts(normed=False, shared_gate=True)), biases=QKV),
        Architecture("qwen3", attention=HEADS, ranking=Ranking("last", softmax=True)),
        Architecture("qwen3moe", attention=HEADS, ffn=MIXTURE),
        Architecture("qwen3vl", attention=HEADS, rope=Rope(sections="in turn"), ranking=Ranking("last", softmax=True)),
        Architecture("qwen3vlmoe", attention=HEADS, rope=Rope(sections="in turn"), ffn=MIXTURE),
        Architecture(
            "qwen35",
            attention=Attention(qk_norm="head", gate="query"),
            rope=Rope(sections="in turn"),
            norms=BEFORE_FFN,
            delta_net="in turn",
        ),
        Architecture(
            "qwen35moe",
            attention=Attention(qk_norm="head", gate="query"),
            rope=Rope(sections="in turn"),
            norms=BEFORE_FFN,
            ffn=Ffn(experts=Experts(shared=1, shared_gate=True)),
            delta_net="in turn",
        ),
        Architecture(
            "qwen3next",
            attention=Attention(qk_norm="head", gate="query"),
            norms=BEFORE_FFN,
            ffn=Ffn(experts=Experts(shared=1, shared_gate=True)),
            delta_net="consecutive",
        ),
        Architecture(
            "mellum",
            attention=HEADS,
            windows=Windows(4, width=0, unstretched=True, rope_base=None),
            ffn=MIXTURE,
        ),
        Architecture(
            "olmo2",
            attention=Attention(qk_norm="whole"),
            windows=Windows(4, width=0, unstretched=True),
            norms=dataclasses.replace(AFTER, before_attention="", before_ffn=""),
        ),
        Architecture("olmoe", attention=Attention(qk_norm="whole"), ffn=Ffn(experts=Experts(normed=False))),
        Architecture("granite", rope=Rope("adjacent", layers="stated"), scales="stated"),
        Architecture("granitemoe", rope=Rope("adjacent", layers="stated"), ffn=MIXTURE, scales="stated"),
        Architecture(
            "granitehybrid",
            rope=Rope("adjacent", layers="stated"),
            ffn=Ffn(experts=Experts(must=False)),
            mamba2="without kv heads",
            scales="stated",
        ),
        Architecture("minicpm", rope=Rope("adjacent", two_contexts=True), scales="minicpm"),
        Architecture(
            "phi2", norms=ONE_NORM, ffn=Ffn("gelu"), side_by_side="always", biases=(*QKV, *UNGATED_BIASES, "output")
        ),
        Architecture("phi3", rope=Rope(two_contexts=True), ffn=Ffn(fused=True)),
        Architecture(
            "phimoe",
            rope=Rope(two_contexts=True),
            norms=Norms(biases=True),
            ffn=MIXTURE,
            biases=(*QKV, "attn_output", "output"),
        ),
        Architecture("starcoder2", norms=LAYER, ffn=Ffn("gelu"), biases=(*QKV, *UNGATED_BIASES)),
        Architecture("nemotron", norms=LAYER, ffn=Ffn("relu2")),
        Architecture(
            "nemotron_h",
            rope=Rope(layers="none"),
            norms=Norms(before_ffn="attn_norm", either_epsilon=True),
            ffn=Ffn("relu2"),
            mamba2="one part",
        ),
        Architecture(
            "nemotron_h_moe",
            rope=Rope(layers="none"),
            norms=Norms(before_ffn="attn_norm", either_epsilon=True),
            ffn=Ffn(
                "relu2",
                experts=dataclasses.replace(SIGMOIDS, stated="never", choice_bias="must", leading_dense=False),
            ),
            mamba2="one part",
        ),
        Architecture("mamba2", rope=Rope(layers="none"), norms=Norms(before_ffn=""), mamba2="alone"),
        Architecture(
            "stablelm",
            attention=Attention(qk_norm="heads", qk_norm_optional=True),
            norms=dataclasses.replace(LAYER, before_ffn_optional=True),
        ),
        Architecture(
            "falcon",
            rope=Rope(whole=True),
            norms=dataclasses.replace(ONE_NORM, attention_alone="attn_norm_2"),
            ffn=Ffn("gelu"),
            side_by_side="always",
        ),
        Architecture("falcon-h1", norms=Norms(unsuffixed="ffn_norm"), mamba2="beside attention"),
        Architecture(
            "gptneox", norms=LAYER, ffn=Ffn("gelu"), side_by_side="stated", biases=("attn_qkv", *UNGATED_BIASES)
        ),
        Architecture(
            "gpt2",
            rope=Rope(layers="none"),
            norms=LAYER,
            ffn=Ffn("gelu"),
            learned_positions=True,
            biases=("attn_qkv", *UNGATED_BIASES),
        ),
        Architecture(
            "starcoder",
            rope=Rope(layers="none"),
            norms=LAYER,
            ffn=Ffn("gelu"),
            learned_positions=True,
            biases=("attn_qkv", *UNGATED_BIASES),
        ),
        Architecture(
            "command-r",
            attention=Attention(qk_norm="heads", qk_norm_optional=True),
            rope=ADJACENT,
            norms=Norms("layer", before_ffn="attn_norm"),
            side_by_side="always",
            scales="logits",
        ),
        Architecture(
            "cohere2",
            windows=Windows(4, rope_base=None),
            rope=Rope("adjacent", layers="sliding"),
            norms=Norms("layer", before_ffn="attn_norm"),
            side_by_side="always",
            scales="logits",
        ),
        Architecture(
            "exaone4",
            attention=HEADS,
            windows=Windows(4, width=4096, layers=64, rope_base=None),
            rope=Rope(layers="sliding"),
            norms=dataclasses.replace(AFTER, before_attention="", before_ffn=""),
        ),
        Architecture("glm4", rope=Rope("adjacent", sections="may"), norms=AFTER, ffn=Ffn(fused=True)),
        Architecture(
            "glm4moe",
            attention=Attention(qk_norm="head", qk_norm_optional=True),
            rope=Rope(sections="may"),
            norms=BEFORE_FFN,
            ffn=Ffn(experts=SIGMOIDS),
        ),
        Architecture("ernie4_5", rope=ADJACENT),
        Architecture(
            "ernie4_5-moe",
            rope=ADJACENT,
            ffn=Ffn(experts=Experts(choice_bias="may", leading_dense=True, every="interleave_moe_layer_step")),
        ),
        Architecture("hunyuan-dense", attention=Attention(qk_norm="head", rotates_first=True)),
        Architecture("hunyuan-moe", attention=Attention(qk_norm="head", rotates_first=True), ffn=MIXTURE),
        Architecture(
            "minimax-m2",
            attention=Attention(qk_norm="whole"),
            ffn=Ffn(experts=Experts(stated="must", choice_bias="must")),
        ),
        Architecture(
            "deepseek2",
            attention=LATENT,
            rope=Rope("adjacent", takes_all_back=True),
            ffn=Ffn(experts=DEEPSEEK),
        ),
        Architecture("mistral4", attention=LATENT, rope=ADJACENT, ffn=Ffn(experts=DEEPSEEK)),
        Architecture("bailingmoe2", attention=HEADS, ffn=Ffn(experts=dataclasses.replace(SIGMOIDS, stated="must"))),
        Architecture(
            "afmoe",
            attention=Attention(qk_norm="head", gate="channels"),
            windows=Windows(4, width=0),
            rope=Rope(layers="three of four"),
            norms=AFTER,
            ffn=Ffn(experts=dataclasses.replace(SIGMOIDS, choice_bias="must")),
            scales="embedding",
        ),
        Architecture(
            "laguna",
            attention=Attention(qk_norm="head", gate="heads"),
            windows=Windows(4, global_first=True, unstretched=True, own_rotation=True),
            ffn=Ffn(experts=SIGMOIDS),
        ),
        Architecture("gemma", ffn=Ffn("geglu"), scales="embedding"),
        Architecture(
            "gemma2",
            attention=Attention(softcap=50.0),
            windows=Windows(2, width=4096),
            norms=AFTER,
            ffn=Ffn("geglu"),
            scales="embedding",
            logit_softcap=30.0,
        ),
        Architecture(
            "gemma3",
            attention=HEADS,
            windows=Windows(6, width=0, unstretched=True, rope_base=10000.0),
            norms=AFTER,
            ffn=Ffn("geglu"),
            scales="embedding",
            logit_softcap=0.0,
        ),
        Architecture(
            "gemma3n",
            attention=Attention(qk_norm="head", values_normed=True, shares="beyond 20"),
            windows=Windows(5, unstretched=True, rope_base=10000.0),
            norms=AFTER,
            ffn=Ffn("geglu", sparse_layers=10),
            per_layer_inputs=256,
            streams=True,
            scales="embedding",
            attention_scale=1.0,
            softcap_stated=False,
            logit_softcap=30.0,
        ),
        Architecture(
            "gemma4",
            attention=Attention(qk_norm="head", values_normed=True, keys_as_values=True, shares="stated"),
            windows=Windows(stated=True, unstretched=True, rope_base=10000.0, own_rotation=True, own_heads=True),
            rope=Rope(divided=True),
            norms=AFTER,
            ffn=Ffn("geglu", experts=Experts(must=False, beside_dense=True)),
            per_layer_inputs=0,
            scaled_outputs=True,
            scales="embedding",
            attention_scale=1.0,
            logit_softcap=30.0,
        ),
        Architecture(
            "gpt-oss",
            attention=Attention(sinks=True),
            windows=Windows(2),
            norms=BEFORE_FFN,
            ffn=Ffn("swiglu_oai", experts=Experts(scores="chosen")),
            biases=(*QKV, "attn_output", *EXPERTS),
        ),
        Architecture(
            "lfm2",
            attention=HEADS,
            windows=Windows(0, width=0),
            norms=Norms(last="token_embd_norm"),
            without_kv_heads="shortconv",
        ),
        Architecture(
            "lfm2moe",
            attention=HEADS,
            norms=Norms(last="token_embd_norm"),
            ffn=Ffn(experts=Experts(stated="must", choice_bias="may", leading_dense=True)),
            without_kv_heads="shortconv",
        ),
        Architecture(
            "bert",
            rope=Rope(layers="none"),
            norms=SUMS,
            ffn=Ffn("gelu"),
            learned_positions=True,
            causal=False,
            token_types=True,
            ranking=Ranking(),
        ),
        Architecture("nomic-bert", norms=SUMS, causal=False, token_types=True, ranking=Ranking()),
        Architecture(
            "nomic-bert-moe",
            norms=SUMS,
            ffn=Ffn("gelu", experts=Experts(normed=False, every="moe_every_n_layers", second_of_every=True)),
            causal=False,
            token_types=True,
            ranking=Ranking(),
        ),
        Architecture(
            "jina-bert-v2",
            attention=Attention(qk_norm="whole", qk_norm_optional=True, alibi=8.0),
            rope=Rope(layers="none"),
            norms=dataclasses.replace(SUMS, after_attention_again="attn_norm_2"),
            ffn=Ffn("geglu", may_fuse=True),
            causal=False,
            token_types=True,
            ranking=Ranking(one=True),
            biases=("attn_output", "ffn_down"),
        ),
        Architecture(
            "modern-bert",
            windows=Windows(3, global_first=True, width=0, unstretched=True, rope_base=10000.0),
            norms=Norms("layer", embedding="token_embd_norm", bare_first=True),
            ffn=Ffn("geglu", fused=True, stated=True),
            causal=False,
            ranking=Ranking("mean", pooler="gelu"),
        ),
        Architecture(
            "gemma-embedding",
            attention=HEADS,
            windows=Windows(6, unstretched=True, rope_base=10000.0),
            norms=AFTER,
            ffn=Ffn("geglu"),
            causal=False,
            scales="embedding",
        ),
    )
}
