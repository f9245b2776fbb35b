"""Grammars and schemas that lead from rule to rule without end in sight: refused in a line, as reading them would end
the process. What is as deep as is allowed is read, in a thread, whose stack is smaller.
"""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packlight.common.errors import ConfigError
from packlight.model.sampling.nesting import DEEPEST, check_lark, check_schema

pytest.importorskip("llguidance")
READ = """
import sys, threading
import llguidance
kind, text = sys.argv[1], sys.stdin.read()
made = []
def read():
    matcher = llguidance.LLMatcher
    grammar = matcher.grammar_from_json_schema(text) if kind == "json_schema" else matcher.grammar_from_lark(text)
    made.append(matcher.validate_grammar_with_warnings(grammar)[0])
thread = threading.Thread(target=read)
thread.start()
thread.join()
print(made == [False])
"""


def chain(levels):
    """A grammar of so many rules, each the next."""
    rules = "".join(f"r{at}: r{at + 1}\n" for at in range(levels - 2))
    return f'start: r0\n{rules}r{levels - 2}: "a"\n' if levels > 1 else 'start: "a"\n'


def references(count, around=lambda inner: inner):
    """A schema whose definitions lead on so many times."""
    parts = {str(at): around({"$ref": f"#/$defs/{at + 1}"}) for at in range(count)}
    return {"$ref": "#/$defs/0", "$defs": parts | {str(count): {"type": "null"}}}


def brackets(count):
    return f'start: {"(" * count}"a"{")" * count}\n'


def properties(inner):
    return {"type": "object", "properties": {"a": inner}}


DEEP = {
    "rules": lambda n: ("grammar", chain(n)),
    "brackets": lambda n: ("grammar", brackets(n - 1)),
    "terminals": lambda n: ("grammar", chain(n).replace("r", "R").replace("staRt: R0", "start: R0")),
    "references": lambda n: ("json_schema", json.dumps(references(n // 2 - 1))),
    "references in properties": lambda n: ("json_schema", json.dumps(references(n // 4 - 1, properties))),
    "a schema in a grammar": lambda n: ("grammar", f"start: %json {json.dumps(references(n // 2 - 1))}\n"),
}


def check(kind, text):
    check_schema(json.loads(text)) if kind == "json_schema" else check_lark(text)


@pytest.mark.parametrize("kind", DEEP)
def test_what_is_too_deep_is_refused_and_what_is_not_can_be_read(kind):
    name, text = DEEP[kind](DEEPEST - 20)
    check(name, text)
    read = [sys.executable, "-c", READ, name]
    done = subprocess.run(read, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout == "True\n" or kind == "brackets"  # which have a bound there too
    for more in (2 * DEEPEST + 50, 30_000):
        with pytest.raises(ConfigError, match="more than 1,000 deep within each other"):
            check(*DEEP[kind](more))


def test_wide_ones_and_loops_are_not_deep():
    check_lark(
        "start: " + " | ".join(f"r{at}" for at in range(5000)) + "\n" + "".join(f'r{n}: "a"\n' for n in range(5000))
    )
    check_lark('start: value\nvalue: list | "x"\nlist: "[" value ("," value)* "]"\n')
    check_schema({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}})
    parts = {str(n): {"type": "null"} for n in range(3000)}
    check_schema({"properties": {n: {"$ref": f"#/$defs/{n}"} for n in parts}, "$defs": parts})
    check_schema(True)


def test_texts_comments_and_expressions_hold_no_rules():
    check_lark('start: "(((((" /((/ // ((((\n' + "".join(f'r{n}: "r{n + 1}"\n' for n in range(3000)))


def test_a_reference_by_name_may_lead_anywhere():
    """So each counts as all of the schema."""

    def named(count):
        return {str(n): {"$anchor": f"n{n}", "items": {"$ref": f"#n{n + 1}"}} for n in range(count)}

    check_schema({"$ref": "#n0", "$defs": named(50)})
    with pytest.raises(ConfigError, match="deep"):
        check_schema({"$ref": "#n0", "$defs": named(500)})


@given(
    st.recursive(
        st.none() | st.text("#/$ref", max_size=4),
        lambda inner: (
            st.dictionaries(st.sampled_from(["$ref", "$defs", "a", "0"]), inner, max_size=3)
            | st.lists(inner, max_size=3)
        ),
        max_leaves=20,
    )
)
@settings(deadline=None)
def test_any_json_is_looked_at(schema):
    check_schema(schema)
