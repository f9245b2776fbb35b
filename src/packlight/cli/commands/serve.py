"""`packlight serve`: a model behind OpenAI's API."""

import dataclasses
import gc
import math
import os
import pathlib
from typing import TYPE_CHECKING

from absl import flags

from packlight.cli.flags import DRAFTING, PLAN, SAMPLING, SERVING, STRUCTURED, Command
from packlight.cli.inputs import sampling_fields
from packlight.cli.terminal import close_stderr, detail, say, warn
from packlight.common.cleanup import undo_all
from packlight.common.errors import ConfigError

if TYPE_CHECKING:
    from packlight.prepared import Prepared
    from packlight.server.guard import App
    from packlight.server.settings import Settings

UNKNOWN_FIELDS = ("error", "warn")
# What a flag may say of every text whose request does not: how tokens are drawn.
DEFAULTS = tuple(name for name in SAMPLING if name not in (*STRUCTURED, "logprobs", "logit_bias", "stop", "seed"))


def run(values: flags.FlagValues) -> None:
    """Serves the model until SIGTERM or Ctrl-C; running requests end first, unless there is a second one."""
    from packlight.cli.loading import load, prepared_from, use_threads

    try:
        from packlight.server.life import Life, drained_by_signals
        from packlight.server.metrics import Metrics
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("packlight"):
            raise
        raise ConfigError("packlight serve needs the extra 'serve': pip install 'packlight[serve]'") from None
    settings = settings_of(values)
    metrics = Metrics()

    def app() -> "App":
        from packlight.server.app import make_app

        kept = None if values.prefix_cache is None else values.prefix_cache << 20
        prepared = prepared_from(values, alone=False)
        if values.slots is None and values.config is None:
            prepared = _fewer_slots(prepared)
        llm = load(prepared.with_prefix_cache(kept))
        file = pathlib.Path(llm.file.path)
        names = tuple(dict.fromkeys((*settings.names, file.stem, file.name)))
        gc.collect()
        gc.freeze()  # what stays is not looked through again: with jax that takes longer than /health may
        return make_app(llm, dataclasses.replace(settings, names=names), metrics, life.fault)

    life = Life(app, settings, metrics, say, detail)
    use_threads(values.threads)  # of this thread, from which those of the engine come
    with drained_by_signals(life):
        loaded = life.run()
    if not loaded:  # a compilation under way stops for nothing
        undo_all()
        close_stderr()
        os._exit(0)


def _fewer_slots(prepared: "Prepared") -> "Prepared":
    """The same with as many slots as the memory has room for, said where that are fewer."""
    for slots in (prepared.config.slots, 2, 1):
        fitting = dataclasses.replace(prepared, changes=dataclasses.replace(prepared.changes, slots=slots))
        limit = fitting.memory_limit
        if limit is None or fitting.memory.total <= limit.bytes:
            if slots < prepared.config.slots:
                say(f"slots {slots}: {prepared.config.slots} do not fit {limit}")
            return fitting
    return prepared


def settings_of(values: flags.FlagValues) -> "Settings":
    """What the flags and the environment say. Raises ConfigError."""
    from packlight.model.sampling.config import SamplingConfig
    from packlight.server.keys import VARIABLE, read_keys
    from packlight.server.limits import Limits
    from packlight.server.settings import Settings

    if values.unknown_fields not in UNKNOWN_FIELDS:
        raise ConfigError(f"--unknown_fields={values.unknown_fields} is none of {', '.join(UNKNOWN_FIELDS)}")
    for name in ("max_queue", "prefix_cache"):
        if (values[name].value or 0) < 0:
            raise ConfigError(f"--{name}={values[name].value} is less than 0")
    for name, seconds in (("queue_timeout", values.queue_timeout), ("drain_seconds", values.drain_seconds)):
        if not 0 <= seconds < math.inf:
            raise ConfigError(f"--{name}={seconds} is no number of seconds")
    defaults = {name: value for name, value in sampling_fields(values).items() if values[name].present}
    SamplingConfig(**defaults)  # bad values are refused before anything is read
    keys, warnings = read_keys(values.api_key_file, os.environ)
    os.environ.pop(VARIABLE, None)  # processes that this one starts have no use for it
    settings = Settings(
        host=values.host,
        port=values.port,
        keys=keys,
        allowed_hosts=tuple(values.allowed_hosts),
        cors_origins=tuple(values.cors_origins),
        limits=Limits(drain_seconds=values.drain_seconds, queue_timeout=values.queue_timeout),
        names=() if values.alias is None else (values.alias,),
        max_queue=values.max_queue,
        defaults=defaults,
        warn_unknown=values.unknown_fields == "warn",
        generic_tools=values.generic_tools,
        log_prompts=values.log_prompts,
    )
    warn(warnings)
    return settings


COMMAND = Command(
    "serve",
    "answer requests in OpenAI's API, over HTTP",
    "packlight serve --model=model.gguf --slots=8",
    ("model", *SERVING, *DEFAULTS, *DRAFTING, *PLAN),
    run,
)
