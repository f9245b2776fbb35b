"""Whole servers on a thread of this process, for clients that others wrote."""

import contextlib
import json

from raw_http import served, until
from reply_templates import JSON, template

from packlight.server.app import make_app
from packlight.server.metrics import Metrics
from packlight.server.settings import Settings

CALLS = template(f"'<tool_call>\\n' + {JSON} + '\\n</tool_call>'", ("\n", "\n", ""))  # how a model writes calls
WEATHER = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}


def call_of(name, **arguments):
    """A call as a model with that template writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


class Site:
    """A server and the model behind it."""

    def __init__(self, llm, server):
        self.llm, self.server, self.url = llm, server, server.life.url
        self.api = f"{self.url}/v1"


@contextlib.contextmanager
def site(llm, load=lambda: None, wait=True, **settings):
    """A server of a model. load: called before it is ready. settings: of `Settings`."""

    def app():
        load()
        chosen = Settings(names=("demo",), **settings)
        return make_app(llm, chosen, Metrics(), server.life.fault)

    with served(app, wait=False) as server:
        if wait:
            until(lambda: server.life.state == "ok")
        yield Site(llm, server)
