"""schemathesis asks every route of openapi.json whatever comes to its mind: no answer is a fault, and each has the
shape that the document says.
"""

import contextlib

import hypothesis
import pytest
from fake_engine import fake_llm
from sites import site

from packlight import demo

schemathesis = pytest.importorskip("schemathesis", reason="the extra dev-serve is not installed")

pytestmark = pytest.mark.clients
schemathesis.checks.load_all_checks()  # they register when they are imported
CHECKS = [
    schemathesis.checks.CHECKS.get_one(name)
    for name in ("not_a_server_error", "status_code_conformance", "content_type_conformance",
                 "response_schema_conformance")
]  # fmt: skip
TRIES = 60  # of a route


@pytest.fixture(scope="module")
def asked():
    with site(fake_llm(demo.MODEL, "A scripted answer.")) as server:
        yield server, schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_no_request_is_a_fault(asked):
    server, document = asked
    routes = [each.ok() for each in document.get_all_operations()]
    assert len(routes) == 15
    for route in routes:
        assert tried(route, schemathesis.GenerationMode.POSITIVE) > 0
        tried(route, schemathesis.GenerationMode.NEGATIVE)
    assert not server.server.said("error:")


def tried(route, mode):
    """How many requests were made."""
    count = 0

    @hypothesis.settings(max_examples=TRIES, deadline=None, derandomize=True, database=None,
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    @hypothesis.given(case=route.as_strategy(generation_mode=mode))
    def check(case):
        nonlocal count
        count += 1
        case.call_and_validate(checks=CHECKS)

    with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # what has no parameters has no wrong ones
        check()
    return count
