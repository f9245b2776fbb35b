"""The commands, one file each, in the order in which help lists them."""

from packlight.cli.commands.bench import COMMAND as BENCH
from packlight.cli.commands.cache import COMMAND as CACHE
from packlight.cli.commands.chat import COMMAND as CHAT
from packlight.cli.commands.compile import COMMAND as COMPILE
from packlight.cli.commands.completion import COMMAND as COMPLETION
from packlight.cli.commands.config import COMMAND as CONFIG
from packlight.cli.commands.embed import COMMAND as EMBED
from packlight.cli.commands.generate import COMMAND as GENERATE
from packlight.cli.commands.inspect import COMMAND as INSPECT
from packlight.cli.commands.models import COMMAND as MODELS
from packlight.cli.commands.perplexity import COMMAND as PERPLEXITY
from packlight.cli.commands.pull import COMMAND as PULL
from packlight.cli.commands.quantize import COMMAND as QUANTIZE
from packlight.cli.commands.rerank import COMMAND as RERANK
from packlight.cli.commands.serve import COMMAND as SERVE
from packlight.cli.commands.tokenize import COMMAND as TOKENIZE

COMMANDS = {
    command.name: command
    for command in (
        *(GENERATE, CHAT, SERVE, PULL, MODELS, INSPECT, TOKENIZE, EMBED, RERANK, PERPLEXITY, BENCH),
        *(QUANTIZE, COMPILE, CACHE, CONFIG, COMPLETION),
    )
}
