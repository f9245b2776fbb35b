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


def call_of(function, **arguments):
    """A call as a model with that template writes it."""
    return f"<tool_call>\n{json.dumps({'name': function, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


class Site:
    """A server and the model behind it."""

    def __init__(self, llm, server, metrics):
        self.llm, self.server, self.metrics, self.url = llm, server, metrics, server.life.url
        self.api = f"{self.url}/v1"

    @property
    def waiting(self):
        """Requests in the queue."""
        name = b"\npacklight_waiting "
        return int(float(self.metrics.text().partition(name)[2].split()[0]))


@contextlib.contextmanager
def site(llm, load=lambda: None, wait=True, **settings):
    """A server of a model. load: called before it is ready. settings: of `Settings`."""
    metrics = Metrics()

    def app():
        load()
        chosen = Settings(names=("demo",), **settings)
        return make_app(llm, chosen, metrics, lambda error: server.life.fault(error))

    with served(app, wait=False) as server:
        if wait:
            until(lambda: server.life.state == "ok" or server.ended, 60)
            assert not server.ended, server.ended
        yield Site(llm, server, metrics)
