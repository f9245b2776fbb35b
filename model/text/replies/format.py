"""How a model writes thinking and calls of tools, as data. Knows no template and no tokens."""

import dataclasses
import enum


class Shape(enum.Enum):
    """How one call is written, between what opens and closes it."""

    JSON = "json"  # {"name": N, "arguments": {...}}
    LIST = "json list"  # [{"name": N, "arguments": {...}}, ...]
    NAMED = "name and json"  # N, a marker, {...}
    TAGGED = "tagged arguments"  # N, then each argument's name and raw value between markers
    GEMMA = "gemma"  # N{key:value,...}, where a token quotes texts
    CHANNELS = "channels"  # messages with a channel and a recipient, as gpt-oss writes them


@dataclasses.dataclass(frozen=True)
class Messages:
    """What a template wants of the messages that it is given."""

    arguments_as_text: bool = False  # of calls: JSON in a str, where others want the mapping
    null_content: bool = False  # a message with calls and no text has None as content, where others want ""
    short_ids: bool = False  # ids of calls have nine letters and digits
    developer: bool = False  # it knows the role "developer"
    system: bool = True  # it knows the role "system"; else that text goes before the next user's
    calls: bool = True  # it writes calls of earlier turns; else they are put into the text
    results: bool = True  # it knows the role "tool"; else results are told as the user's
    descriptions: bool = False  # every tool needs a description
    reasoning: str = ""  # the key under which it reads an earlier turn's thinking; "" where it reads none
    reasoning_with_content: bool = True  # a message with calls may have thinking and text


@dataclasses.dataclass(frozen=True)
class ReplyFormat:
    """What a model's reply is made of.

    Markers are as the template writes them, white space included: a parser takes any white space where they have some,
    a grammar writes them to the letter.
    """

    think_open: str = ""
    think_close: str = ""  # "" where the model does not think aloud
    shape: Shape | None = None  # None: the template has no place for tools
    section_open: str = ""  # before the first call
    call_open: str = ""  # before each; where both are "" a reply that is JSON is a call
    call_close: str = ""
    section_close: str = ""
    separator: str = ""  # white space between two calls
    also_open: str = ""  # what some models of the family write before a call that needs no marker
    name_key: str = "name"  # of JSON
    arguments_key: str = "arguments"
    id_key: str = ""  # of JSON that has the call's id, behind the arguments
    id_open: str = ""  # NAMED: between the name and the id, where there is one
    arguments_open: str = ""  # NAMED: behind the name or the id. TAGGED: behind the name
    key_open: str = ""  # TAGGED: before an argument's name, before its value, and behind that
    value_open: str = ""
    value_close: str = ""
    quote: str = ""  # GEMMA: around a text
    parallel: bool = False  # the template writes several calls
    generic: bool = False  # the form is ours: the template shows no calls, and we tell the model in our own words
    messages: Messages = Messages()

    @property
    def bare(self) -> bool:
        """Whether a call needs no marker."""
        return not (self.section_open or self.call_open).strip()

    @property
    def opens(self) -> str:
        """What a call, or the first of several, begins with."""
        return self.section_open + self.call_open

    def begins_thinking(self, prompt: str) -> bool:
        """Whether a reply to this rendered prompt begins inside of thinking."""
        return bool(self.think_open.strip()) and prompt.rstrip().endswith(self.think_open.strip())

    def with_generic_tools(self) -> "ReplyFormat":
        """The format for a template that has no place for tools: we tell the model of them, in a form of our own."""
        kept = {"think_open": self.think_open, "think_close": self.think_close}
        return dataclasses.replace(GENERIC, **kept, messages=dataclasses.replace(self.messages, calls=False))


GENERIC = ReplyFormat(shape=Shape.LIST, call_open='{"tool_calls": ', call_close="}", parallel=True, generic=True)
