"""The flags of the commands: how each is defined, what it means, and which command takes which. Imports no numpy.

Help, completions and the man page are made of these tables (`cli.help`, `cli.completion`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from absl import flags

from packlight.bench.options import FLAGS as BENCH_FLAGS
from packlight.model.sampling.config import PARAMETERS
from packlight.model.sampling.parameters import Biases, Integer, Parameter, Real, Schema, Switch, Text, Texts
from packlight.model.spec.rope_changes import ROPE

FlagRow = tuple[Callable[..., Any], Any, str]  # how absl defines it, its default, what it means
KINDS: dict[type, Callable[..., Any]] = {  # of sampling parameters
    Real: flags.DEFINE_float,
    Integer: flags.DEFINE_integer,
    Switch: flags.DEFINE_bool,
    Text: flags.DEFINE_string,
    Schema: flags.DEFINE_string,
    Texts: flags.DEFINE_multi_string,
    Biases: flags.DEFINE_multi_string,
}
PLAIN: dict[type, Callable[..., Any]] = {str: flags.DEFINE_string, float: flags.DEFINE_float, int: flags.DEFINE_integer}


def _flag_of(parameter: Parameter) -> FlagRow:
    default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
    return KINDS[type(parameter.kind)], default, parameter.help


# Every flag; a command's row says which of them it takes.
FLAGS: dict[str, FlagRow] = {
    "model": (
        flags.DEFINE_string,
        None,
        "file or name (GGUF, of a split one its first part; hf:OWNER/REPO[:Q4_K_M], all that pull takes; ollama:NAME)",
    ),
    "prompt": (flags.DEFINE_string, None, "the text"),
    "prompt_file": (flags.DEFINE_string, None, "file with the text (default: what comes on stdin)"),
    "parse_special": (flags.DEFINE_bool, True, "read control tokens in the prompt as such; --noparse_special: as text"),
    "display_prompt": (flags.DEFINE_bool, True, "show the prompt before its continuation, where that is a terminal"),
    **{parameter.name: _flag_of(parameter) for parameter in PARAMETERS},
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
    "slots": (flags.DEFINE_integer, None, "sequences at a time (default: the named config's, or 1)"),
    "device": (flags.DEFINE_string, None, "cpu, gpu or tpu (default: the first that jax finds of tpu, gpu, cpu)"),
    "threads": (flags.DEFINE_integer, None, "cores to use (default: all that the process may use)"),
    "kv_type": (flags.DEFINE_string, None, "of keys and values: f32, f16, bf16, q8_0 or q4_0 (default: the config's)"),
    "speculate": (flags.DEFINE_integer, None, "drafts that a step verifies at most (default: the config's, or 0)"),
    "draft_model": (flags.DEFINE_string, None, "file or name of a smaller model with the same tokens, to make drafts"),
    **{name: (PLAIN[row.kind], None, row.help) for name, row in ROPE.items()},
    "weights": (
        flags.DEFINE_string,
        None,
        "resident, mapped or streamed: in memory, in a file that stands for it, the latter within a budget "
        "(default: the config's)",
    ),
    "weights_budget": (
        flags.DEFINE_integer,
        None,
        "bytes of streamed weights in memory at most; 0: what the machine leaves (default: the config's, or 0)",
    ),
    "weights_ahead": (
        flags.DEFINE_integer,
        None,
        "streamed layers that are asked for before a step comes to them (default: the config's, or 2)",
    ),
    "system": (flags.DEFINE_string, None, "system message that a chat begins with"),
    "file": (
        flags.DEFINE_string,
        None,
        "text file: to predict, or texts one a line (blank ones are left out)",
    ),
    "chunks": (flags.DEFINE_integer, None, "chunks of the text to use at most (default: all)"),
    "pooling": (
        flags.DEFINE_string,
        None,
        "how a text's vectors become one: mean, cls (first), last; or rank, none (default: as the file says, or mean)",
    ),
    "query": (flags.DEFINE_string, None, "what documents are to be relevant to"),
    "save_logits": (flags.DEFINE_string, None, "write the predictions to this file, as a base for --kl_divergence"),
    "kl_divergence": (flags.DEFINE_string, None, "compare with the predictions in this file; its text is used"),
    "chat_template": (flags.DEFINE_string, None, "file with a chat template, instead of the model's own"),
    "on_full": (
        flags.DEFINE_string,
        "drop",
        "a full context: drop, the oldest turns leave it; stop, no message is answered",
    ),
    "history_file": (
        flags.DEFINE_string,
        None,
        "file of what was entered, '' for none (default: $PACKLIGHT_HISTORY, or the user's own)",
    ),
    "folder": (flags.DEFINE_string, None, "folder whose models are listed too, with those of the folders in it"),
    "json": (flags.DEFINE_bool, False, "print one JSON object instead of text"),
    "action": (flags.DEFINE_string, None, "what to do: the word behind the command"),
    "add_special": (flags.DEFINE_bool, True, "put the tokens around the text that the file wants there, such as bos"),
    "dry_run": (flags.DEFINE_bool, False, "say what would go, and remove nothing"),
    "host": (flags.DEFINE_string, "127.0.0.1", "address or name to listen on; 0.0.0.0 and :: are the whole network's"),
    "port": (flags.DEFINE_integer, 8080, "port to listen on; 0 is any that is free, which is said"),
    "api_key_file": (
        flags.DEFINE_string,
        None,
        "file of keys, one a line, of which a request needs one (so does a key in $PACKLIGHT_API_KEY)",
    ),
    "alias": (flags.DEFINE_string, None, "name that clients see the model under (default: the file's, without .gguf)"),
    "allowed_hosts": (flags.DEFINE_list, [], "further names that this server goes by, with commas; *: any"),
    "cors_origins": (
        flags.DEFINE_list,
        [],
        "origins whose web pages may use this server, with commas (https://example.org); *: all",
    ),
    "max_queue": (flags.DEFINE_integer, None, "requests that may wait for a slot (default: 4 a slot, at least 32)"),
    "queue_timeout": (flags.DEFINE_float, 600.0, "seconds that a request may wait for a slot"),
    "drain_seconds": (flags.DEFINE_float, 30.0, "seconds that running requests have to end in, after SIGTERM"),
    "unknown_fields": (
        flags.DEFINE_string,
        "error",
        "unknown fields of a request: error, it is refused; warn, a header of the answer names them",
    ),
    "prefix_cache": (
        flags.DEFINE_integer,
        None,
        "MiB at most for beginnings of texts without a slot (default: a quarter of what is free, at most 2048)",
    ),
    "generic_tools": (
        flags.DEFINE_bool,
        False,
        "tell a model of tools in our own words where its chat template has no place for them",
    ),
    "log_prompts": (flags.DEFINE_bool, False, "write prompts and answers into the messages too"),
    "quiet": (flags.DEFINE_bool, False, "only the answer on stdout, and errors on stderr"),
    "verbose": (flags.DEFINE_bool, False, "show the plan in full, and what happens inside"),
    "log_file": (flags.DEFINE_string, None, "file to add all messages to, with times; --quiet keeps none from it"),
    "helpfull": (flags.DEFINE_bool, False, "show all flags of the command"),
    **BENCH_FLAGS,
}
STRUCTURED = ("json_schema", "regex", "grammar")
SAMPLING = tuple(parameter.name for parameter in PARAMETERS)
SERVING = ("host", "port", "api_key_file", "alias", "allowed_hosts", "cors_origins")
SERVING += (
    "max_queue",
    "queue_timeout",
    "drain_seconds",
    "unknown_fields",
    "prefix_cache",
    "generic_tools",
    "log_prompts",
)
STREAMING = ("weights_budget", "weights_ahead")
PLAN = ("config", "context", "slots", "kv_type", "speculate", "weights", *STREAMING, "device", "threads", *ROPE)
DRAFTING = ("draft_model",)  # of commands that generate texts, and of what builds their executables
PROCESSES = ("coordinator", "num_processes", "process_id")
MESSAGES = ("quiet", "verbose", "log_file")
COMMON = (*MESSAGES, "helpfull")  # every command takes them


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its name, what it does in a line of at most 64 characters, an example, the names of its flags beside
    COMMON, its function, and what may stand behind its name as `action`, if anything.
    """

    name: str
    summary: str
    example: str
    own: tuple[str, ...]
    run: Callable[[flags.FlagValues], None]
    actions: tuple[str, ...] = ()

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of all its flags."""
        return (*self.own, *COMMON)

    def define(self) -> flags.FlagValues:
        """The command's flags, not parsed yet."""
        values = flags.FlagValues()
        for name in self.takes:
            define, default, text = FLAGS[name]
            define(name, default, text, flag_values=values)
        return values
