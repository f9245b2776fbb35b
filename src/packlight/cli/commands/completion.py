"""`packlight completion`: what makes a shell complete command lines."""

from absl import flags

from packlight.cli.flags import Command
from packlight.cli.terminal import write
from packlight.common.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")


def run(values: flags.FlagValues) -> None:
    """Prints the script for a shell."""
    from packlight.cli.completion import SCRIPTS

    if values.action is None:
        raise ConfigError(f"for which shell? packlight completion {'|'.join(SHELLS)}")
    write(SCRIPTS[values.action]())


COMMAND = Command(
    "completion",
    "write a shell's completion: bash, zsh or fish",
    'eval "$(packlight completion bash)"',
    ("action",),
    run,
    SHELLS,
)
