"""`packlight chat`: a conversation with a model."""

import os
import signal
import sys

from absl import flags

from packlight.cli.flags import DRAFTING, PLAN, SAMPLING, Command
from packlight.cli.inputs import file_text, sampling_fields, text_of
from packlight.cli.terminal import say
from packlight.common.errors import ConfigError

ON_FULL = ("drop", "stop")


def run(values: flags.FlagValues) -> None:
    """Talks with the model in its own chat template until the input ends."""
    from packlight.cli.conversation import Conversation
    from packlight.cli.entering import History, entries, history_path, read_line
    from packlight.cli.loading import load, prepared_from
    from packlight.model.sampling.config import SamplingConfig
    from packlight.model.text.chat import template_of
    from packlight.serve.prefix import in_words

    sampling = sampling_fields(values)
    config = SamplingConfig(**sampling)  # bad values are refused before anything is read
    template = None if values.chat_template is None else file_text("chat_template", values.chat_template)
    system = None if values.system is None else text_of("system", values.system)
    if values.on_full not in ON_FULL:
        raise ConfigError(f"--on_full={values.on_full} is none of {', '.join(ON_FULL)}")
    prepared = prepared_from(values)
    prepared.prompts.check_sampling(config)
    if template is None:
        template_of(prepared.file.metadata, os.path.basename(prepared.file.path))
    talk = Conversation(load(prepared), template, system, sampling, values.on_full == "drop")
    say(in_words(prepared.plan, prepared.plan.cache(prepared.model, prepared.config.kv_dtype, prepared.split)))
    history = History(history_path(values.history_file))
    if sys.stdin.isatty():
        say("/help lists the commands, Ctrl-D ends")
        signal.signal(signal.SIGINT, signal.default_int_handler)
    talk.run(entries(read_line), history)


COMMAND = Command(
    "chat",
    "talk with a model in its own chat template",
    "packlight chat --model=model.gguf --system='Answer in one sentence.'",
    (
        "model",
        "system",
        "chat_template",
        "on_full",
        "history_file",
        *(name for name in SAMPLING if name not in ("logprobs", "prompt_logprobs")),
        *DRAFTING,
        *PLAN,
    ),
    run,
)
