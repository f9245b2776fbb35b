"""`packlight config`: the config that would hold, and where each of its values comes from."""

import dataclasses
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from absl import flags

from packlight.cli.flags import PLAN, Command
from packlight.cli.terminal import write, write_json
from packlight.common.text import shown_path
from packlight.model.spec.rope_changes import ROPE

if TYPE_CHECKING:
    from packlight.compile.config import CompileConfig

# flag -> the key that it changes
CHANGED = {
    "context": "context",
    "slots": "decode_batch",
    "kv_type": "kv_dtype",
    "speculate": "speculate",
    "weights": "weights",
    "weights_budget": "weights_budget",
    "weights_ahead": "weights_ahead",
}


def run(values: flags.FlagValues) -> None:
    """Prints the config as TOML, which --config takes, each value with a comment on its origin; or one JSON object."""
    from packlight.cli.loading import config_of, slots_of
    from packlight.compile.config import config_text, given_keys, parse_config
    from packlight.prepared import Changes, default_platform

    named = config_of(values)
    text, source = config_text(values.config or values.device or default_platform())
    base = named or parse_config(text, source)
    changes = Changes(
        values.context,
        slots_of(values),
        values.kv_type,
        speculate=values.speculate,
        weights=values.weights,
        weights_budget=values.weights_budget,
        weights_ahead=values.weights_ahead,
    )
    config = changes.applied(base)
    written = given_keys(text)
    origins = {each.name: shown_path(source) if each.name in written else "default" for each in fields(config)}
    for flag, key in CHANGED.items():
        if values[flag].value is not None:
            origins[key] = f"--{flag}"
        elif getattr(config, key) != getattr(base, key):
            origins[key] = "one slot, as commands have it"
    config, notes = _meant(config, values)
    if values.json:
        plain = dataclasses.asdict(config) | {"xla_options": dict(config.xla_options)}
        write_json({key: {"value": value, "from": origins[key]} for key, value in plain.items()})
    else:
        write(_toml(config, {key: "; ".join(filter(None, (origins[key], notes.get(key)))) for key in origins}))


def _meant(config: "CompileConfig", values: flags.FlagValues) -> "tuple[CompileConfig, dict[str, str]]":
    """The config with the context that a model gives it, and what values mean that leave something open."""
    from packlight.cli.inputs import model_path
    from packlight.compile.config import DEFAULT_CONTEXT
    from packlight.compile.kernels import expected
    from packlight.compile.plan import make_plan
    from packlight.model.gguf.reader import open_gguf
    from packlight.model.spec.config import ModelConfig

    notes = {}
    if not config.cache_dir:
        notes["cache_dir"] = f"means {shown_path(str(config.store_dir))}"
    if config.cpu_kernels == "auto" and config.platform == "cpu":
        notes["cpu_kernels"] = f"means {expected(config).cpu_kernels} here"
    if not config.context:
        notes["context"] = f"means what the model takes, {DEFAULT_CONTEXT} at most"
    if values.model is not None:
        model = ModelConfig.from_gguf(open_gguf(model_path(values)))
        notes["context"] = f"the model takes {model.longest_context}"
        longest = model.longest_context if config.context else model.context_length
        config = dataclasses.replace(config, context=make_plan(config, longest).context)
    return config, notes


def _toml(config: "CompileConfig", comments: dict[str, str]) -> str:
    """A config as a TOML file, each line with its comment."""
    lines = {key: f"{key} = {_value(key, getattr(config, key))}" for key in comments}
    width = max(map(len, lines.values()))
    return "".join(f"{line:<{width}}  # {comments[key]}\n" for key, line in lines.items())


def _value(key: str, value: Any) -> str:
    if key in ("mesh", "xla_options"):
        pairs = dict(value) if key == "xla_options" else dataclasses.asdict(value)
        return "{" + ", ".join(f"{_text(name)} = {_text(each)}" for name, each in pairs.items()) + "}"
    return _text(value)


def _text(value: Any) -> str:
    """JSON that is TOML too: which has no surrogates, and no DEL as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


COMMAND = Command(
    "config",
    "show the config that would hold, and where each value comes from",
    "packlight config show --context=2048 > mine.toml",
    ("action", "model", *(name for name in PLAN if name != "threads" and name not in ROPE), "json"),
    run,
    ("show",),
)
