"""Where each character of a rendered prompt comes from: through str's methods, and through what templates do."""

import random

import chat_goldens
import pytest

from packlight.model.text.chat_environment import ChatEnvironment, told
from packlight.model.text.provenance import DATA, TEMPLATE, WORD, Text, joined, kinds_of, of

GIVEN = "ABC\tDEF\vGHI"  # what a message holds; templates below write none of these characters


def kinds_by_alphabet(text):
    return "".join(DATA if character in GIVEN else TEMPLATE for character in text)


def rendered(template, **variables):
    """What our environment makes of a template, in this process."""
    variables = {"messages": [{"role": "user", "content": GIVEN}], "bos_token": "<s>", "c": GIVEN} | variables
    return joined(ChatEnvironment(chat_goldens.NOW).from_string(template).generate(**told(variables)))


def plainly(template):
    variables = {"messages": [{"role": "user", "content": GIVEN}], "bos_token": "<s>", "c": GIVEN}
    return chat_goldens.environment().from_string(template).render(**variables)


FOLLOWED = (
    "'<a>' + c + '<b>'", "'<a>' ~ c ~ 5 ~ none", "c + '<a>' + bos_token", "'x' * 2 ~ c * 2", "2 * c", "c ~ '<b>'",
    "'<%s>' % c", "'%s<b>%s%%' % (c, 'z')", "'%(x)s<b>' % {'x': c}", "'<%s>' | format(c)",
    "'<{}>{{}}{}'.format(c, 'z')",
    "'{0.content}<b>'.format(messages[0])", "'<{x}>'.format(x=c)", "'{x}<b>'.format_map({'x': c})",
    "'<{:{w}}>'.format('x', w=3) ~ c", "c.split('\\t') | join('<a>')", "(c + '<a>' + c).split('<a>')[-1] ~ 'x'",
    "c.split() | join('-')", "c.rsplit(none, 1) | join('<e>')", "c.splitlines() | join('<l>')",
    "(c ~ '<a>').replace('<a>', '<b>')", "c | replace('D', '<d>')", "'xyz' | replace('y', c)",
    "c.partition('\\t') | join('<p>')", "c.rpartition('\\t') | join('<p>')", "(c ~ 'xy')[2:-1]", "(c ~ 'x') | reverse",
    "(c ~ 'xy') | list | join('<a>')", "'<a>'.join([c, c])", "c | first ~ 'a'", "c | last ~ 'a'", "' x' ~ c | trim",
    "(' ' ~ c ~ ' ').strip()", "('<a>' ~ c).removeprefix('<a>') ~ 'x'", "('x' ~ c).lstrip('xA') ~ 'y'",
    "('<a>\\n' ~ c.split()[0]) | indent(2, true)", "('<a>\\n\\n' ~ c.split()[0]) | indent(blank=true)",
    "c | string ~ 'x'", "c | safe ~ '<a>'", "{'x': c.split()[0], 'y': ['<z>', c.split()[1]]} | tojson(indent=2)",
    "messages | map(attribute='content') | list | join('<s>')", "c | default('x') ~ 'y'", "x | default('<n>') ~ c",
    "(c ~ 'a') | batch(3) | map('join') | join('-')", "'x y' | urlencode ~ c", "'<|a|>' | e ~ c",
    "cycler(c, 'a').next() ~ 'x'",
    "namespace(a=c).a ~ dict(a='z').a", "('z' ~ c) | truncate(9, true, '<e>')", "loop_(c)", "'ab' | upper | lower ~ c",
)  # fmt: skip
LOST = (
    "c | urlencode", "c | pprint", "[c] | string", "messages | string", "c.center(30, '*')", "c | center(30)",
    "c | wordwrap(3)", "c | striptags", "c | e + '<a>'", "'<a>' + (c | safe)", "c.encode().decode()", "c.zfill(30)",
    "{'k': c} | xmlattr", "'%20s' % c", "'{!r}'.format(c)", "'{:>20}'.format(c)", "'%c' % (50 + c | length)",
    "c.translate({65: '<s>'})", "{'k': [c]} | tojson(separators=(',', ':'))", "c | length | filesizeformat",
)  # fmt: skip
MACRO = "{% macro loop_(c) %}<m>{% for x in c %}{{ x }}{% if loop.last %}<e>{% endif %}{% endfor %}{% endmacro %}"
WRAPPED = (
    "{%% set b %%}<b>{{ %s }}{%% endset %%}{{ b | trim }}",
    "{%% macro f() %%}<f>{{ caller() }}{%% endmacro %%}{%% call f() %%}{{ %s }}<g>{%% endcall %%}",
    "{%% filter trim %%}<h>{{ %s }}{%% endfilter %%}{%% generation %%}<i>{%% endgeneration %%}",
)


@pytest.mark.parametrize("expression", FOLLOWED)
def test_characters_are_followed_through(expression):
    """Data stays data and the template's writing stays its own, also in macros and blocks; the text is jinja2's."""
    for template in ("{{ %s }}", *WRAPPED):
        template = MACRO + template % expression
        text = rendered(template)
        assert text == plainly(template)
        plain = str.__str__(text).replace("5", "x").replace("None", "x" * 4)  # numbers are words
        assert kinds_of(text).replace(WORD, TEMPLATE) == kinds_by_alphabet(plain)


@pytest.mark.parametrize("expression", LOST)
def test_where_characters_cannot_be_followed_all_are_data(expression):
    template = "{{" + expression + "}}"
    text = rendered(template)
    assert text == plainly(template)
    assert set(kinds_of(text)) == {DATA}


TEXTUAL = (
    lambda a, b: a + b, lambda a, b: a.join([b, a, b]), lambda a, b: a.replace(b[:1] or "<", b),
    lambda a, b: b[1::2] + a[::-1],
    lambda a, b: a[:1].join(b.split(a[1:2] or " ")), lambda a, b: b[:1].join(a.rsplit(None, 1)),
    lambda a, b: a.join(b.splitlines(True)), lambda a, b: b.strip(a) + a.lstrip() + a.rstrip(b),
    lambda a, b: b.join(a.partition(b[:1] or "<")), lambda a, b: a.join(b.rpartition(a[:1] or "<")),
    lambda a, b: a.removeprefix(b[:2]) + b.removesuffix(a[-1:]), lambda a, b: b[:0].join(a) + a[2:] * 2,
    lambda a, b: a.replace("%", "") % () + of("<%s>%s", TEMPLATE) % (a, b),
)  # fmt: skip


def test_any_chain_of_str_methods_is_str_s_with_every_character_followed():
    """Texts of two alphabets show in each character where it came from."""
    rng = random.Random(3)
    for _ in range(2000):
        pool = [of("".join(rng.choices("<|> ab%", k=4)), TEMPLATE), Text("".join(rng.choices(GIVEN, k=6))), of("", "0")]
        for _ in range(3):
            method, a, b = rng.choice(TEXTUAL), rng.choice(pool), rng.choice(pool)
            text, plain = method(a, b), method(str.__str__(a), str.__str__(b))
            assert text == plain
            assert kinds_of(text) == kinds_by_alphabet(plain)
            pool.append(text[:50])


@pytest.mark.parametrize(
    ("template", "text", "kinds"),
    [
        ("{{ messages[0].role }}", "user", WORD * 4),
        ("{{ '<|' ~ messages[0].role | upper ~ '|>' }}", "<|USER|>", "00" + WORD * 4 + "00"),
        ("{{ tools[0].name }}{{ tools | tojson }}", 'f[{"name": "f"}]', "2" + "000" + "2222" + "0000" + "2" + "000"),
        ("{{ documents }}{{ strftime_now('%Y') }}{{ missing }}", "['d']2025", "33333" + "0000"),
        ("{{ messages[2].n | tojson }}", "[7, true]", "0" + DATA + "00" + DATA * 4 + "0"),
        ("{{ messages[1].role }}", "a|b", DATA * 3),
        ("{{ messages[1].parts[0].role }}", "user", DATA * 4),
        ("{{ model_identity ~ eos_token }}", "I</s>", DATA + TEMPLATE * 4),
    ],
)
def test_what_a_template_is_told_has_its_kind(template, text, kinds):
    messages = [{"role": "user"}, {"role": "a|b", "parts": [{"role": "user"}]}, {"role": "", "n": [7, True]}]
    given = {"tools": [{"name": "f"}], "documents": ["d"], "model_identity": "I", "eos_token": "</s>"}
    got = rendered(template, messages=messages, **given)
    assert (got, kinds_of(got)) == (text, kinds)
