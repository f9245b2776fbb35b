"""Every sampling parameter of the one table, by HTTP: its value reaches the engine, an impossible one is refused."""

import json

import pytest
from asgi import call
from test_api import Served

from packlight.model.sampling.config import PARAMETERS
from packlight.model.sampling.parameters import Biases, Integer, Parameter, Real, Schema, Switch, Texts
from packlight.server import fields

ROUTES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": [5, 6]},
}
TABLE = {each.name: each for each in PARAMETERS}
TEXTS = {"regex": "a+", "grammar": 'root ::= "a"', "prediction": "an answer"}


def named(route: str) -> list[tuple[str, Parameter]]:
    """The fields of a route that say a sampling parameter, under each of its names."""
    found = {each.name: TABLE[each.target] for each in fields.BODIES[route] if each.target in TABLE}
    if "messages" in ROUTES[route]:  # whose `logprobs` is a switch
        found["top_logprobs"] = found.pop("logprobs")
    return [*found.items()]


CASES = [(route, *each) for route in ROUTES for each in named(route)]
IDS = [f"{route.removeprefix('/v1/')} {name}" for route, name, _ in CASES]


def another(parameter: Parameter) -> object:
    """A value in JSON that is not the default."""
    match parameter.kind:
        case Real() as kind:
            more = parameter.default + 0.25
            return more if more <= kind.high else parameter.default - 0.25
        case Integer():
            return 1 if parameter.default is None else parameter.default + 1
        case Switch():
            return not parameter.default
        case Texts():
            return ["x", "yz"]
        case Biases():
            return {"5": 1.5}
        case Schema():
            return {"type": "object"}
    return TEXTS[parameter.name]


def impossible(parameter: Parameter) -> list[object]:
    match parameter.kind:
        case Real() as kind:
            return [2 * kind.high, kind.low - max(1, abs(kind.low)), "1", True]
        case Integer() as kind:
            return [kind.high + 1, kind.low - 2, 1.5, True]  # one below the lowest, -1 may stand for none
        case Switch():
            return [1, "true"]
        case Texts():
            return [[5], {"a": "b"}]
        case Biases():
            return [{"x": 1}, {"-1": 1}, {"5": 1e39}, {"5": "1"}]
    return [5, ["a"]]


def body(route: str, name: str, value: object) -> dict[str, object]:
    return ROUTES[route] | ({"logprobs": True} if name == "top_logprobs" else {}) | {name: value}


@pytest.fixture(scope="module")
def served():
    return Served(answer="ok")


@pytest.mark.parametrize("route", ROUTES)
def test_every_parameter_has_a_field(route):
    assert {parameter.name for _, parameter in named(route)} == set(TABLE)


@pytest.mark.parametrize(("route", "name", "parameter"), CASES, ids=IDS)
def test_a_value_reaches_the_engine(served, route, name, parameter):
    value = another(parameter)
    status, _, said = served.ask(route, body(route, name, value))
    assert status == 200, said
    found = getattr(served.llm.engine.seen[-1].sampling, parameter.name)
    wanted = ((5, 1.5),) if value == {"5": 1.5} else parameter.kind.check(name, value)
    assert found == wanted != parameter.default


@pytest.mark.parametrize(("route", "name", "parameter"), CASES, ids=IDS)
def test_an_impossible_value_is_refused_by_name(served, route, name, parameter):
    async def work(_):
        values = impossible(parameter)
        return [(value, await call(served.app, "POST", route, body(route, name, value))) for value in values]

    before = len(served.llm.engine.seen)
    for value, (status, _, said) in served.run(work):
        error = json.loads(said)["error"]
        assert (status, error["param"], error["code"]) == (400, name, "invalid_value"), value
        assert name in error["message"], value
    assert len(served.llm.engine.seen) == before
