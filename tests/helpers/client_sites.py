"""Fixtures: servers that the clients of others talk to, of the embedded model and scripted ones. What they need is
imported where they are asked for: not every environment of tests has a server.
"""

import contextlib
import os

import pytest

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}


@pytest.fixture(scope="session")
def real():
    """The embedded model."""
    from sites import site

    import packlight
    from packlight import demo

    with packlight.load(demo.MODEL, slots=4) as llm, site(llm) as server:
        yield server


@pytest.fixture(scope="session")
def scripted():
    """A function: the server whose model says this. template: in which it is asked."""
    from fake_engine import fake_llm
    from sites import site

    from packlight import demo

    with contextlib.ExitStack() as stack:
        servers = {}

        def server(answer, template=None):
            if (answer, template) not in servers:
                llm = fake_llm(demo.MODEL, answer)
                if template is not None:
                    llm.file.metadata["tokenizer.chat_template"] = template
                servers[answer, template] = stack.enter_context(site(llm))
            return servers[answer, template]

        yield server
