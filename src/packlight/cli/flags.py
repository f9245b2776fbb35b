"""The flags of the commands: how each is defined, what it means, and which command takes which. Imports no numpy."""

import dataclasses
from collections.abc import Callable
from typing import Any

from absl import flags

from packlight.bench.options import FLAGS as BENCH_FLAGS

# Every flag: how absl defines it, its default, what it means. `COMMANDS` says which command has which.
FLAGS: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "model": (flags.DEFINE_string, None, "GGUF file; of a split one, its first part"),
    "prompt": (flags.DEFINE_string, None, "the text: to continue, or to embed"),
    "prompt_file": (flags.DEFINE_string, None, "file with the text to continue (default: what comes on stdin)"),
    "max_tokens": (flags.DEFINE_integer, None, "tokens to generate at most (default: until the end)"),
    "temperature": (flags.DEFINE_float, 0.8, "how freely tokens are drawn; 0 is greedy"),
    "top_k": (flags.DEFINE_integer, 40, "draw from the k most probable tokens; 0 is off"),
    "top_p": (flags.DEFINE_float, 0.95, "draw from the most probable tokens that reach p; 1 is off"),
    "min_p": (flags.DEFINE_float, 0.05, "draw from tokens at least min_p times the best; 0 is off"),
    "top_n_sigma": (flags.DEFINE_float, -1.0, "draw from logits within n standard deviations of the best; -1 is off"),
    "typical_p": (flags.DEFINE_float, 1.0, "draw from the tokens of typical surprise that hold p; 1 is off"),
    "xtc_probability": (flags.DEFINE_float, 0.0, "how often to drop the most probable tokens (XTC); 0 is off"),
    "xtc_threshold": (flags.DEFINE_float, 0.1, "probability from which XTC drops all tokens but one"),
    "dynatemp_range": (flags.DEFINE_float, 0.0, "vary the temperature by this much with the entropy; 0 is off"),
    "dynatemp_exponent": (flags.DEFINE_float, 1.0, "how entropy maps to the temperature"),
    "repeat_penalty": (flags.DEFINE_float, 1.0, "divide the logits of recent tokens by this; 1 is off"),
    "frequency_penalty": (flags.DEFINE_float, 0.0, "take this off a recent token's logit each time it occurs"),
    "presence_penalty": (flags.DEFINE_float, 0.0, "take this off a recent token's logit once"),
    "repeat_last_n": (flags.DEFINE_integer, 64, "tokens that count as recent; -1 is all"),
    "dry_multiplier": (flags.DEFINE_float, 0.0, "penalty on tokens that go on repeating a sequence (DRY); 0 is off"),
    "dry_base": (flags.DEFINE_float, 1.75, "DRY: growth of the penalty per token"),
    "dry_allowed_length": (flags.DEFINE_integer, 2, "DRY: length of a sequence that may repeat freely"),
    "dry_penalty_last_n": (flags.DEFINE_integer, 64, "DRY: tokens to look for repetitions in; -1 is all"),
    "dry_sequence_breakers": (
        flags.DEFINE_multi_string,
        ["\n", ":", '"', "*"],
        "DRY: a text no repetition reaches over",
    ),
    "mirostat": (flags.DEFINE_integer, 0, "Mirostat version 1 or 2 in place of the other steps; 0 is off"),
    "mirostat_tau": (flags.DEFINE_float, 5.0, "Mirostat: surprise to aim at, in bits"),
    "mirostat_eta": (flags.DEFINE_float, 0.1, "Mirostat: learning rate"),
    "logit_bias": (
        flags.DEFINE_multi_string,
        [],
        "TOKEN_ID+BIAS or TOKEN_ID-BIAS, also -inf; may be given several times",
    ),
    "ignore_eos": (flags.DEFINE_bool, False, "forbid the tokens that end a text"),
    "json_schema": (flags.DEFINE_string, None, "write JSON that matches this schema; @FILE reads it from a file"),
    "regex": (flags.DEFINE_string, None, "write text that matches this regular expression"),
    "grammar": (flags.DEFINE_string, None, "write text that matches this grammar (GBNF or Lark); @FILE reads a file"),
    "logprobs": (flags.DEFINE_integer, None, "with --json: log-probabilities of the n most probable tokens, up to 20"),
    "seed": (flags.DEFINE_integer, None, "seed of the draws (default: a random one, which is shown)"),
    "stop": (flags.DEFINE_multi_string, [], "end before this text; may be given several times"),
    "config": (flags.DEFINE_string, None, "TOML file that says what to compile (default: this platform's)"),
    "coordinator": (flags.DEFINE_string, None, "host:port of process 0, when several processes run one model together"),
    "num_processes": (flags.DEFINE_integer, None, "how many processes there are; the config's mesh spans them all"),
    "process_id": (flags.DEFINE_integer, None, "number of this process; 0 writes the text"),
    "target": (
        flags.DEFINE_string,
        None,
        "hardware to compile for, here or not: cpu, cuda:h100, cuda:h200, tpu:v5e, tpu:v5e:2x2, tpu:v5p, tpu:v6e",
    ),
    "type": (flags.DEFINE_string, None, "what to quantize to: Q4_0, Q8_0, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K or F16"),
    "out": (flags.DEFINE_string, None, "file to write (default: the model's name with the type in it)"),
    "context": (flags.DEFINE_integer, None, "tokens of prompt and answer together (default: the config's)"),
    "system": (flags.DEFINE_string, None, "system message that a chat begins with"),
    "file": (flags.DEFINE_string, None, "text file: to predict, or of texts to embed, one a line"),
    "chunks": (flags.DEFINE_integer, None, "chunks of the text to use at most (default: all)"),
    "pooling": (
        flags.DEFINE_string,
        None,
        "how the vectors of a text's tokens become one: mean or last (default: as the file says, or mean)",
    ),
    "save_logits": (flags.DEFINE_string, None, "write the predictions to this file, as a base for --kl_divergence"),
    "kl_divergence": (flags.DEFINE_string, None, "compare with the predictions in this file; its text is used"),
    "chat_template": (flags.DEFINE_string, None, "file with a chat template, instead of the model's own"),
    "json": (flags.DEFINE_bool, False, "print one JSON object instead of text"),
    **BENCH_FLAGS,
}
SAMPLING = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "top_n_sigma", "typical_p"),
    *("xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent", "repeat_penalty", "frequency_penalty"),
    *("presence_penalty", "repeat_last_n", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
    *("dry_sequence_breakers", "mirostat", "mirostat_tau", "mirostat_eta", "logit_bias", "ignore_eos"),
    *("json_schema", "regex", "grammar"),
)
PROCESSES = ("coordinator", "num_processes", "process_id")


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its name, what it does in a line, an example, the names of its flags and its function."""

    name: str
    summary: str
    example: str
    takes: tuple[str, ...]
    run: Callable[[flags.FlagValues], None]

    def define(self) -> flags.FlagValues:
        """The command's flags, not parsed yet."""
        values = flags.FlagValues()
        for name in self.takes:
            define, default, text = FLAGS[name]
            define(name, default, text, flag_values=values)
        return values

    def help(self) -> str:
        lines = [f"{self.name}: {self.summary}", f"    {self.example}"]
        width = max(map(len, self.takes)) + 1
        for name in self.takes:
            _, default, text = FLAGS[name]
            lines.append(f"  --{name:<{width}}{text}" + (f" (default: {default})" if default else ""))
        return "\n".join(lines) + "\n"
