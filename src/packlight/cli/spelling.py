"""Command lines as people type them: llama.cpp's names of flags, hyphens, a file without `--model`, and near misses.

`spelled` turns them into the names of `packlight.cli.flags` before they are parsed. Imports no numpy.
"""

import re
from collections.abc import Iterable, Mapping

from absl import flags

from packlight.cli.terminal import say
from packlight.common.errors import Argument, ConfigError, PacklightError
from packlight.common.text import near

# Other names of our flags, of several the first that the command takes; most are llama.cpp's (its common/arg.cpp).
ALIASES: Mapping[str, tuple[str, ...]] = {
    "m": ("model",),
    "p": ("prompt",),
    "f": ("prompt_file", "file"),
    **dict.fromkeys(("n", "predict", "n_predict"), ("max_tokens",)),
    **dict.fromkeys(("c", "ctx_size"), ("context",)),
    **dict.fromkeys(("np", "parallel"), ("slots",)),
    "t": ("threads",),
    "s": ("seed",),
    "temp": ("temperature",),
    "j": ("json_schema",),
    **dict.fromkeys(("sys", "system_prompt"), ("system",)),
    "chat_template_file": ("chat_template",),
    **dict.fromkeys(("a", "served_model_name"), ("alias",)),
    **dict.fromkeys(("ctk", "cache_type_k"), ("kv_type",)),
    **dict.fromkeys(("draft", "draft_max", "draft_n", "spec_draft_n_max"), ("speculate",)),
    **dict.fromkeys(("md", "model_draft", "spec_draft_model"), ("draft_model",)),
    **dict.fromkeys(("dev", "platform"), ("device",)),
    **dict.fromkeys(("o", "output"), ("out",)),
    **dict.fromkeys(("v", "log_verbose"), ("verbose",)),
    **dict.fromkeys(("q", "silent", "log_disable"), ("quiet",)),
}
# Flags of llama.cpp without a value that are a value of one of ours.
VALUES: Mapping[str, tuple[str, str]] = {"mmap": ("weights", "mapped"), "no_mmap": ("weights", "resident")}
# Flags of llama.cpp that have nothing to set here, each with what is so instead; the SWITCHES have no value.
SWITCHES = {
    **dict.fromkeys(("cnv", "conversation", "i", "interactive"), "packlight chat is the command for a conversation"),
    **dict.fromkeys(("no_cnv", "no_conversation"), "generate continues the prompt as it is"),
    "mlock": "the system decides which pages of memory stay",
    **dict.fromkeys(("cb", "cont_batching"), "requests always share the steps of the slots"),
    "metrics": "the server always has /metrics",
    "jinja": "chat templates are always rendered as Jinja",
    **dict.fromkeys(("co", "color"), "a terminal gets colours unless NO_COLOR=1 is set"),
}
MOOT: Mapping[str, str] = {
    **SWITCHES,
    **dict.fromkeys(
        ("ngl", "gpu_layers", "n_gpu_layers"),
        "all layers run on the device that --device names, or are shared by the mesh of --config",
    ),
    **dict.fromkeys(("fa", "flash_attn"), "attention never holds all scores at once"),
    **dict.fromkeys(("b", "batch_size", "ub", "ubatch_size"), "prefill_buckets of the config say how prompts are cut"),
    **dict.fromkeys(("ctv", "cache_type_v"), "values are cached in the type of keys, which --kv_type names"),
    **dict.fromkeys(
        ("ngld", "gpu_layers_draft", "n_gpu_layers_draft", "spec_draft_ngl"), "a draft model runs where the other does"
    ),
    **dict.fromkeys(
        ("ctkd", "ctvd", "cache_type_k_draft", "cache_type_v_draft"), "--kv_type is a draft model's cache's too"
    ),
    **dict.fromkeys(("tb", "threads_batch"), "prompts and text use the threads that --threads names"),
}
# What stands without a flag's name: the model's file, and for some commands more. Source: llama.cpp's llama-quantize.
POSITIONAL: Mapping[str, tuple[str, ...]] = {
    "quantize": ("model", "out", "type"),
    "models": ("folder",),
    "cache": ("action",),
    "config": ("action", "model"),
    "completion": ("action",),
}
# Parameters of the API that a flag stands for in other words.
WORDS = {"template": "--chat_template=FILE"}
FLAG = re.compile(r"--?(?=[A-Za-z])([\w-]+)(?:(=)(.*))?", re.DOTALL)
# What may be the value of a flag out of MOOT: a file that follows one is none.
MOOT_VALUE = re.compile(r"-?\d+(\.\d+)?|on|off|auto|all|none|true|false|b?f(16|32)|i?q\d\w*", re.IGNORECASE)


def message(error: Exception) -> str:
    """What an error says, in one line; parameters have the names of their flags."""
    text = error.worded(_flag) if isinstance(error, PacklightError) else str(error)
    return " ".join(text.split())


def _flag(argument: Argument) -> str:
    return WORDS.get(argument.name, f"--{argument}")


def spelled(command: str, arguments: Iterable[str], values: flags.FlagValues) -> tuple[list[str], bool]:
    """The arguments with our names of flags, and whether they ask for help. Values of flags stay as they are.

    values: the command's flags. A flag that has nothing to set here is said and left out. Raises ConfigError for a name
    that is nobody's, with the one that is near.
    """
    out: list[str] = []
    left = list(arguments)
    named: set[str] = set()  # flags that were given by name
    placed: dict[str, str] = {}  # flags that were given by place, with their values
    while left:
        word = left.pop(0)
        found = FLAG.fullmatch(word)
        if found is None:
            places = POSITIONAL.get(command, ("model",))
            free = [name for name in places if name in values and name not in named and name not in placed]
            if not free or word.startswith("-"):
                raise ConfigError(f"unexpected argument {word!r}; flags are written --name=value")
            placed[free[0]] = word
            out.append(f"--{free[0]}={word}")
            continue
        typed, equals, value = found[1].replace("-", "_"), found[2], found[3]
        if typed in ("h", "help"):
            return [], True
        if typed == "version":
            raise ConfigError("--version stands alone: packlight --version")
        if typed in VALUES and VALUES[typed][0] in values and not equals:
            name, value = VALUES[typed]
            named.add(name)
            out.append(f"--{name}={value}")
            continue
        if typed in MOOT:
            say(f"{word.partition('=')[0]} changes nothing: {MOOT[typed]}")
            if not equals and typed not in SWITCHES and left and MOOT_VALUE.fullmatch(left[0]):
                left.pop(0)
            continue
        name = next((name for name in ALIASES.get(typed, (typed,)) if name in values), typed)
        if name in values:
            if name in placed:
                raise ConfigError(f"unexpected argument {placed[name]!r} beside {word!r}")
            named.add(name)
            out.append(f"--{name}" if equals is None else f"--{name}={value}")
            if equals is None and not values[name].boolean:
                out += left[:1]
                left = left[1:]
            continue
        positive = typed.removeprefix("no").removeprefix("_")
        if typed.startswith("no") and positive in values and values[positive].boolean:
            if equals:
                raise ConfigError(f"{word}: --no{positive} takes no value; it is --{positive}=false")
            out.append(f"--no{positive}")
            continue
        hint = near(typed, [*values, "help", "version"], "--{}")
        raise ConfigError(f"unknown flag {word.partition('=')[0]!r}{hint}; see packlight {command} --help")
    return out, False
