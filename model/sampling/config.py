"""What the user asks of the sampler: the table of sampling parameters. Knows no arrays, no text model, and no jax.

A new parameter is one field here, and its type in `packlight.arguments`. Its check, documentation and flag follow. One
that an executable takes also becomes a field of `model.sampling.chain.SlotSampling`, where the code that uses it reads
it.
"""

import dataclasses
import secrets

from packlight.common.arguments import suggesting
from packlight.common.errors import ConfigError
from packlight.model.sampling.parameters import (
    FLOAT32_MAX,
    UINT32_MAX,
    Biases,
    Integer,
    Real,
    Schema,
    Switch,
    Text,
    Texts,
    documentation,
    row,
    rows,
)

MOST_LOGPROBS = 20  # as the OpenAI API and vLLM have it
MOST_BIASES = 1024


@suggesting
@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How one request picks its tokens: a chain in llama.cpp's order with its defaults.

    Numbers of other types (numpy's) become Python's, lists become tuples. Raises ConfigError naming the field and the
    value: wrong type (bool and str are no numbers, one str is no list of texts), NaN, infinite, or out of range.
    Source: llama.cpp `common_params_sampling` for defaults and for what disables a step.
    """

    temperature: float = row(
        0.8,
        Real(0.0),
        "how freely tokens are drawn; 0 is greedy",
        more="A value below float32's smallest normal, 1.2e-38, is greedy too.",
        dtype="float32",
    )
    top_k: int = row(40, Integer(0), "draw from the k most probable tokens; 0 is off", dtype="int32")
    top_p: float = row(
        0.95,
        Real(0.0, 1.0),
        "draw from the most probable tokens that reach p; 1 is off",
        more="These are as few as possible: 0 keeps one.",
        dtype="float32",
    )
    min_p: float = row(
        0.05,
        Real(0.0, 1.0),
        "draw from tokens at least min_p times the best; 0 is off",
        more="1 keeps the best.",
        dtype="float32",
    )
    seed: int | None = row(
        None,
        Integer(0, UINT32_MAX, optional=True),
        "seed of the draws (default, and -1 at the terminal: a random one, which is shown)",
        more="`with_seed` draws the random one.",
        dtype="uint32",
    )
    max_tokens: int | None = row(
        None,
        Integer(0, optional=True),
        "tokens to generate at most (default, and -1 at the terminal: until the end)",
        more="The end is an end token or that of the context; 0 gives an empty text.",
    )
    stop: tuple[str, ...] = row(
        (), Texts(), "end before this text; may be given several times", more="In Python a list of texts."
    )
    logit_bias: tuple[tuple[int, float], ...] = row(
        (),
        Biases(MOST_BIASES),
        "TOKEN_ID+BIAS or TOKEN_ID-BIAS, also -inf; may be given several times",
        more="A mapping from token ids to what is added to their logits, at most 1024; -inf forbids a token.",
    )
    ignore_eos: bool = row(False, Switch(), "forbid the tokens that end a text")
    repeat_penalty: float = row(
        1.0,
        Real(2.0**-126),
        "divide the logits of recent tokens by this; 1 is off",
        more="Negative logits are multiplied.",
    )
    frequency_penalty: float = row(
        0.0, Real(-FLOAT32_MAX), "take this off a recent token's logit each time it occurs", more="0 is off."
    )
    presence_penalty: float = row(
        0.0, Real(-FLOAT32_MAX), "take this off a recent token's logit once", more="0 is off."
    )
    repeat_last_n: int = row(
        64, Integer(-1), "tokens that count as recent; -1 is all", more="They include the prompt's. 0: no penalties."
    )
    dry_multiplier: float = row(
        0.0,
        Real(0.0),
        "penalty on tokens that go on repeating a sequence (DRY); 0 is off",
        more="After n >= allowed_length repeated tokens the next one costs multiplier * base^(n - allowed_length).",
    )
    dry_base: float = row(1.75, Real(0.0), "DRY: growth of the penalty per token")
    dry_allowed_length: int = row(2, Integer(1), "DRY: length of a sequence that may repeat freely")
    dry_penalty_last_n: int = row(
        64, Integer(-1), "DRY: tokens to look for repetitions in; -1 is all", more="0 turns DRY off."
    )
    dry_sequence_breakers: tuple[str, ...] = row(
        ("\n", ":", '"', "*"), Texts(longest=40, most=64), "DRY: a text no repetition reaches over"
    )
    top_n_sigma: float = row(
        -1.0,
        Real(-1.0),
        "draw from logits within n standard deviations of the best; -1 is off",
        more="0 is off too.",
        dtype="float32",
    )
    typical_p: float = row(
        1.0, Real(0.0, 1.0), "draw from the tokens of typical surprise that hold p; 1 is off", dtype="float32"
    )
    xtc_probability: float = row(
        0.0,
        Real(0.0, 1.0),
        "how often to drop the most probable tokens (XTC); 0 is off",
        more="The least probable of those that reach the threshold stays.",
        dtype="float32",
    )
    xtc_threshold: float = row(
        0.1,
        Real(0.0, 1.0),
        "probability from which XTC drops all tokens but one",
        more="Over 0.5 is off.",
        dtype="float32",
    )
    dynatemp_range: float = row(
        0.0, Real(0.0), "vary the temperature by this much with the entropy; 0 is off", dtype="float32"
    )
    dynatemp_exponent: float = row(1.0, Real(0.0), "how entropy maps to the temperature", dtype="float32")
    mirostat: int = row(
        0,
        Integer(0, 2),
        "Mirostat version 1 or 2 in place of the other steps; 0 is off",
        more="Only the logit bias and the temperature come before it.",
        dtype="int32",
    )
    mirostat_tau: float = row(5.0, Real(0.0), "Mirostat: surprise to aim at, in bits", dtype="float32")
    mirostat_eta: float = row(0.1, Real(0.0), "Mirostat: learning rate", dtype="float32")
    logprobs: int | None = row(
        None,
        Integer(0, MOST_LOGPROBS, optional=True),
        "log-probabilities of the n most probable tokens, up to 20; at the terminal with --json",
        more="They are reported beside each token that was chosen.",
        dtype="int32",
        absent=-1,
    )
    prompt_logprobs: int | None = row(
        None,
        Integer(0, MOST_LOGPROBS, optional=True),
        "the same of the prompt's tokens, up to 20; at the terminal with --json",
        more="All of the prompt is read for it, whatever the cache has. With max_tokens=0 nothing else is done.",
    )
    json_schema: str | None = row(
        None,
        Schema(),
        "write JSON that matches this schema; a flag's @FILE reads it from a file",
        more='A text or a mapping. This and the next two exclude each other and need the extra "grammar".',
    )
    regex: str | None = row(None, Text(), "write text that matches this regular expression")
    grammar: str | None = row(
        None,
        Text(from_file=True),
        "write text that matches this grammar (GBNF or Lark); a flag's @FILE reads a file",
    )
    prediction: str | None = row(
        None,
        Text(from_file=True),
        "a text that is expected, for drafts (speculate); a flag's @FILE reads a file",
        more="It changes nothing but speed.",
    )

    def __post_init__(self) -> None:
        for parameter in PARAMETERS:
            checked = parameter.kind.check(parameter.name, getattr(self, parameter.name))
            object.__setattr__(self, parameter.name, checked)
        if sum(value is not None for value in (self.json_schema, self.regex, self.grammar)) > 1:
            raise ConfigError("json_schema, regex and grammar exclude each other: a text must be one of them")

    @property
    def constrained(self) -> bool:
        """Whether the text must match something."""
        return (self.json_schema, self.regex, self.grammar) != (None, None, None)

    @property
    def answered(self) -> bool:
        """Whether a token is wanted: with `max_tokens=0` a prompt is read for its own sake, or the cache's."""
        return self.max_tokens != 0

    @property
    def penalizes(self) -> bool:
        """Whether tokens seen so far change the logits."""
        repeats = self.repeat_penalty != 1 or self.frequency_penalty or self.presence_penalty
        return not self.mirostat and bool((repeats and self.repeat_last_n) or self.dries)

    @property
    def dries(self) -> bool:
        """Whether DRY is on. Source: llama.cpp `llama_sampler_init_dry`."""
        return not self.mirostat and bool(self.dry_multiplier and self.dry_base >= 1 and self.dry_penalty_last_n)

    def with_seed(self) -> "SamplingConfig":
        """The same request with a seed: its own, or one from the operating system's randomness where it is None."""
        return self if self.seed is not None else dataclasses.replace(self, seed=secrets.randbits(32))


PARAMETERS = rows(SamplingConfig)
SamplingConfig.__doc__ = f"{SamplingConfig.__doc__}\n{documentation(PARAMETERS)}\n"
