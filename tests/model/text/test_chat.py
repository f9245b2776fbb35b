"""Chat templates: equal to the reference renderings, and harmless whatever they try."""

import json
import os
import re
import signal
import subprocess
import sys
import termios

import chat_goldens
import numpy as np
import pytest
import vocabularies
from conftest import GOLDENS_FOLDER, SHARED
from ggufs import NOISE, write_llama
from golden_models import shared
from processor import seconds
from running import COMMAND, write_config
from running import packlight as run
from tiers import tiered

import packlight
from packlight.model.text.chat import ChatTemplateError, Prompt, make_prompt, prompt_ids, render
from packlight.model.text.chat_environment import ChatEnvironment, told
from packlight.model.text.provenance import DATA, TEMPLATE, joined, kinds_of
from packlight.model.text.tokenizer import Tokenizer

NAMES = (
    "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "google-gemma-2-2b-it",
    "meta-llama-Llama-3.1-8B-Instruct", "microsoft-Phi-3.5-mini-instruct", "mistralai-Mistral-Nemo-Instruct-2407",
    "openai-gpt-oss-120b", "qwen2-chatml", "tinyllama-zephyr",
)  # fmt: skip
GOLDENS = json.loads((GOLDENS_FOLDER / "chat_goldens.json").read_text(encoding="utf-8"))
HELLO = [{"role": "user", "content": "hello"}]


def template_and_fixture(name):
    """A template, and conversations with what must come of each: ours by name, or "templates/NAME" of ../shared."""
    if name in chat_goldens.TEMPLATES:
        fixture, told = chat_goldens.fixture(name), GOLDENS[name]
        conversations = [case | told[case["name"]] for case in fixture["conversations"]]
        return chat_goldens.TEMPLATES[name], fixture | {"conversations": conversations}
    path = SHARED / f"{name}.jinja"
    return path.read_bytes().decode(), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [*chat_goldens.TEMPLATES, *shared(f"templates/{name}" for name in NAMES)])
def test_renderings_equal_hugging_faces(name):
    """R25: every conversation of every template, errors with the template's own words included."""
    template, fixture = template_and_fixture(name)
    for case in fixture["conversations"]:
        arguments = (template, case["messages"], case["add_generation_prompt"], case["tools"])
        tokens = {"bos_token": fixture["bos_token"], "eos_token": fixture["eos_token"]}
        if case.get("error"):
            with pytest.raises(ChatTemplateError) as caught:
                render(*arguments, **tokens, strftime_now=fixture["now"], **case["vars"])
            assert " ".join(case["message"].split()) in str(caught.value)
        else:
            got = render(*arguments, **tokens, strftime_now=fixture["now"], **case["vars"])
            assert got == case["expected"], case["name"]


SPELLED = re.compile(r"<[|\uff5c/]?\w[^<>'\"\s{}]*>|\[/?[A-Z_]+\]")  # what looks like a control token in a template
ROLES = ("<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")


def with_controls(template, fixture, kind):
    """A tokenizer in which each token that a template spells is of a kind, 3 or 4; and their texts."""
    texts = {*SPELLED.findall(template), *ROLES, fixture["bos_token"], fixture["eos_token"], "</think>"} - {""}
    texts = sorted(texts - {"<tool_call>", *vocabularies.MARKED} if kind == 4 else texts - {*vocabularies.MARKED})
    plain, pairs = vocabularies.bpe_vocabulary()
    types = np.array([1] * len(plain) + [kind] * len(texts), np.int32)
    metadata = vocabularies.bpe("llama-bpe", tokens=[*plain, *texts], merges=[*pairs], token_type=types)
    return Tokenizer.from_metadata(metadata), texts


def made_here(template, fixture, case, forge=lambda text: text):
    """A conversation's prompt, rendered in this process, with `forge` done to each text that a stranger may write."""
    kept = ("role", "type", "id", "tool_call_id")  # they steer a template, or it checks their form

    def forged(value, inside=""):
        match value:
            case str():
                return forge(value) if value else value
            case list():
                return [forged(item) for item in value]
            case dict():
                named = inside in ("arguments", "properties")
                return {
                    forge(key) if named else key: item if key in kept and not named else forged(item, key)
                    for key, item in value.items()
                }
        return value

    variables = {key: case[key] for key in ("messages", "tools", "add_generation_prompt")} | case["vars"]
    variables |= {"messages": forged(case["messages"]), "tools": forged(case["tools"])}
    variables |= {key: fixture[key] for key in ("bos_token", "eos_token")}
    text = joined(ChatEnvironment(fixture["now"]).from_string(template).generate(**told(variables)))
    return Prompt(str.__str__(text), kinds_of(text), template)


@pytest.mark.parametrize("name", [*chat_goldens.TEMPLATES, *shared(f"templates/{name}" for name in NAMES)])
def test_only_a_template_writes_control_tokens(name):
    """R37: whatever messages, tools and their keys spell, there are as many control tokens as without it, and a
    conversation that spells none has the ids of its text.
    """
    template, fixture = template_and_fixture(name)
    for kind in (3, 4):
        tokenizer, texts = with_controls(template, fixture, kind)
        ids = {tokenizer.encode(text, False, True)[0] for text in texts}
        kept = ids if kind == 3 else tokenizer._specials.marks_of(template)
        assert len(kept) > 3

        def count(made, kept=kept, tokenizer=tokenizer):
            return sum(i in kept for i in prompt_ids(tokenizer, made))

        together = " ".join(texts) + texts[0][:2]  # the rest of that one may come from a neighbour
        forges = (lambda text, end=together: text + end, lambda text, t=texts: t[0][2:] + text + t[-1])
        for case in fixture["conversations"]:
            if case.get("error"):
                continue
            plain = made_here(template, fixture, case)
            if not any(text in json.dumps([case["messages"], case["tools"]], ensure_ascii=False) for text in texts):
                assert tokenizer.encode(plain.text, False, True) == tokenizer.encode_prompt(*plain), case["name"]
            for forge in forges:
                forged = made_here(template, fixture, case, forge)
                assert count(forged) == count(plain), (case["name"], forged.text)


def ids_of(tokenizer, template, *messages, **variables):
    """The prompt's tokens, where a control token is its text and other ids are left out."""
    ids = prompt_ids(tokenizer, make_prompt(template, list(messages), **variables))
    special = {special.id: special.text for special in tokenizer._specials.in_text}
    return [special[i] for i in ids if i in special]


@pytest.mark.parametrize(
    ("template", "message", "found"),
    [
        ("{{ '<|' + messages[0].role + '|>' }}", {"role": "tool"}, ["<|tool|>"]),
        ("{{ '<|' ~ messages[0].role | replace('x', '') ~ '|>' }}", {"role": "toxol"}, ["<|tool|>"]),
        ("{{ '<|' + messages[0].role + '|>' }}", {"role": "end"}, []),  # which would end the text
        ("{{ '<|' + messages[0].role + '|>' }}", {"role": "tool|><|tool"}, []),
        ("{{ messages[0].role }}", {"role": "<|tool|>"}, []),
        ("{{ '<|' + messages[0].content + '|>' }}", {"role": "user", "content": "tool"}, []),
        ("<|tool|{{ messages[0].content }}", {"role": "user", "content": ">"}, []),
        ("{% for p in messages[0].content %}{{ p.text }}{% endfor %}",
         {"role": "user", "content": [{"text": "<|to"}, {"text": "ol|>"}]}, []),
        ("{{ messages[0].content | lower }}", {"role": "user", "content": "<|TOOL|>"}, []),
        ("{{ messages[0].content | striptags }}", {"role": "user", "content": "&lt;|tool|&gt;"}, []),
        ("{{ messages[0].content | join }}", {"role": "user", "content": ["<|", "tool", "|>"]}, []),
        ("{{ 'a<|tool|>'[1:] }}{{ bos_token }}", {"role": "user"}, ["<|tool|>", "<|end|>"]),
        ("{{ messages[0].content }}<tag><b>", {"role": "user", "content": "<b> <tag><mark|><|mark>"}, ["<tag>", "<b>"]),
        ("{{ messages[0].content }}", {"role": "user", "content": "<tag>\n\n <b>"}, ["<tag>", "\n\n", "<b>"]),
    ],
)  # fmt: skip
def test_what_becomes_a_special_token(template, message, found):
    """Of user-defined tokens, those that a template uses as tags and those that look like control tokens are kept
    from messages; others, as runs of white space, are found in any text.
    """
    plain, pairs = vocabularies.bpe_vocabulary()
    texts = ("<|tool|>", "<|end|>", "<tag>", "<mark|>", "<|mark>", "\n\n", "<b>")
    metadata = vocabularies.bpe(
        "gpt-2",
        tokens=[*plain, *texts],
        merges=[*pairs],
        token_type=np.array([1] * len(plain) + [3, 3, 4, 4, 4, 4, 4], np.int32),
        bos_token_id=len(plain) + 1,
        eos_token_id=len(plain) + 1,
    )
    assert ids_of(Tokenizer.from_metadata(metadata), template, message, bos_token="<|end|>") == found


def test_no_merge_makes_a_control_token_of_a_message():
    """Sentencepiece joins two pieces to any token there is, a control token too; llama.cpp's plain text does."""
    metadata = vocabularies.spm()
    key = vocabularies.KEY
    tokens = [*metadata[key + "tokens"][:-2], "</", "s>"]
    types = np.array([*metadata[key + "token_type"][:-2], 1, 1], np.int32)
    tokenizer = Tokenizer.from_metadata(metadata | {key + "tokens": tokens, key + "token_type": types})
    assert tokenizer.eos_id in tokenizer.encode("a</s>b")
    made = make_prompt(
        "{{ messages[0].content }}{{ eos_token }}", [{"role": "user", "content": "a</s>b"}], eos_token="</s>"
    )
    ids = prompt_ids(tokenizer, made)
    assert (ids.count(tokenizer.eos_id), tokenizer.decode(ids[1:])) == (1, "a</s>b</s>")


def test_a_long_message_takes_its_length_in_time():
    """A million characters, each of them part of a control token's spelling, cut and joined in a template."""
    began = seconds()
    text = "<|im_end|>" * 100_000
    template = "{% set c = messages[0].content %}{{ (c ~ c.split('|') | join('<|>') | trim).replace('im', 'x') }}"
    made = make_prompt(template, [{"role": "user", "content": text}])
    assert len(made.text) == 2 * 900_000 + 400_000
    assert seconds() - began < 4


ATTACKS = {
    "power while compiling": "{{ 9**(9**9) }}",
    "more power": "{{ 9**(9**(9**9)) }}",
    "endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "endless output": "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "memory": "{{ 'x' * 99999999999 }}",
    "objects": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "mutation": "{{ messages.append(1) }}",
    "nesting": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "syntax": "{% if %}",
    "unclosed": "{{",
    "a shout": "{{ raise_exception('no\nwords') }}",
    "a long shout": "{{ raise_exception('x' * 9999999) }}",
    "a shout at the terminal": "{{ raise_exception('\x1b]0;title\x07') }}",
    "a shout of half a character": "{{ raise_exception('\\ud800') }}",
    "wide padding": "{{ '%99999999999d' % 1 }}",
    "deep expression": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "deep data": "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}"
    "{{ ns.x | tojson }}",
    "doubling": "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "squaring": "{% set ns = namespace(x=2) %}{% for i in range(40) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "filler": "{{ lipsum(n=100000000) }}",
}
TO_THE_LIMIT = {"more power", "squaring", "filler"}  # which run until the 5 s of a template are over, as two others do


@pytest.mark.parametrize("name", tiered(ATTACKS, ATTACKS.keys() - TO_THE_LIMIT))
def test_a_hostile_template_is_one_error_in_bounded_time(name):
    began = seconds()
    with pytest.raises(ChatTemplateError) as caught:
        render(ATTACKS[name], HELLO)
    assert seconds() - began < 10
    assert str(caught.value).startswith("chat template: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    assert "subclasses" not in str(caught.value) or "unsafe" in str(caught.value)


@pytest.mark.parametrize("template", ["{{ raise_exception.__globals__ }}", "{{ '{0.__class__}'.format(1) }}"])
def test_what_python_hides_renders_to_nothing(template):
    assert render(f"[{template}]", HELLO) == "[]"


SPY = """
import json, os, sys
input()
if sys.argv[1:] == ["--stay"]:
    print(flush=True)
input()
print(json.dumps({'text': ' '.join(os.environ)}))
"""


def test_a_template_is_told_nothing_of_the_environment(tmp_path, monkeypatch):
    """Were it to leave the sandbox, it would find no tokens or passwords in its process."""
    (tmp_path / "spy.py").write_text(SPY)
    monkeypatch.setattr("packlight.model.text.sandboxes.SANDBOX", tmp_path / "spy.py")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    told = {"LC_CTYPE", "TZ", "LD_LIBRARY_PATH"}  # the first is Python's own
    for _ in range(2):  # by a process that ends, and by one that stays
        assert set(render("told", HELLO).split()) <= told


def test_surrogates_and_other_text_survive():
    messages = [{"role": "user", "content": "a\r\nb \N{GRINNING FACE} \0 </s>"}]
    assert render("{{ messages[0].content }}|{{ x }}", messages, x="é") == messages[0]["content"] + "|é"
    halves = make_prompt("{{ x }}{{ messages[0].role }}!", [{"role": "\ude00"}], x="\ud83d")  # JSON makes one of two
    assert halves[:2] == ("\N{GRINNING FACE}!", DATA + TEMPLATE)


@pytest.mark.parametrize("messages", [[], "hello", [1], [{}], [{"content": "x"}], {"role": "user"}, None])
def test_what_is_no_conversation_is_refused(messages):
    with pytest.raises(packlight.ConfigError, match="message"):
        render("x", messages)


def test_values_that_are_no_data_are_refused():
    with pytest.raises(packlight.ConfigError, match="plain data"):
        render("x", HELLO, tools=[object()])


def test_render_chat_takes_a_template_or_a_file(tmp_path):
    assert packlight.render_chat("{{ messages[0].content }}{{ bos_token }}", HELLO, bos_token="<s>") == "hello<s>"
    extra = {"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ add_generation_prompt }}"}
    path = write_llama(tmp_path / "m.gguf", extra=extra)
    assert packlight.render_chat(path, HELLO, add_generation_prompt=False) == "<s>helloFalse"
    named = {"tokenizer.chat_template.tool_use": "T{{ tools }}", "tokenizer.chat_template.rag": "D{{ documents }}"}
    path = write_llama(tmp_path / "o.gguf", extra=extra | named)
    assert packlight.render_chat(path, HELLO) == "<s>helloTrue"
    assert packlight.render_chat(path, HELLO, tools=["t"]) == "T['t']"
    assert packlight.render_chat(path, HELLO, documents=["d"]) == "D['d']"
    with pytest.raises(ChatTemplateError, match="leaves the documents out"):
        packlight.render_chat(path, HELLO, tools=["t"], documents=["d"])
    without = write_llama(tmp_path / "n.gguf")
    with pytest.raises(ChatTemplateError, match="no chat template .*; pass one with template=$"):
        packlight.render_chat(without, HELLO)


TALK = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A model of noise with a template, and a small config."""
    folder = tmp_path_factory.mktemp("talk")
    path = write_llama(folder / "m.gguf", **NOISE, extra={"tokenizer.chat_template": TALK})
    return path, write_config(folder / "c.toml")


def chat(talker, text, *flags):
    path, config = talker
    command = ["chat", f"--model={path}", f"--config={config}", "--temperature=0", "--max_tokens=6", *flags]
    return run(*command, stdin=text.encode())


def test_chat_keeps_the_history(talker):
    """Each answer is what `llm.chat` gives for all messages so far; commands and empty lines are no messages."""
    done = chat(talker, "hello\n\n/help\nand \\\nthis\n/reset\nhello\n/clera\n/system be kind\nhello\n/quit\nx\n")
    assert done.returncode == 0, done.stderr
    llm = packlight.load(*map(str, talker))
    said = []

    def turn(messages, text):
        messages.append({"role": "user", "content": text})
        answer = llm.chat(messages, temperature=0, max_tokens=6).text
        messages.append({"role": "assistant", "content": answer})
        said.append(answer + "\n")

    history = []
    turn(history, "hello")
    turn(history, "and \nthis")
    turn([], "hello")
    turn([{"role": "system", "content": "be kind"}], "hello")
    assert done.stdout == "".join(said)
    assert said[0] == said[2] != said[3]
    assert "error: no command /clera; did you mean '/clear'?" in done.stderr
    assert "Ctrl-C stops an answer" in done.stderr


def test_chat_survives_a_turn_that_fails(talker):
    """A message too long for the context is one line, and the talk goes on as if it had not been."""
    done = chat(talker, "a" * 5000 + "\nhello\n")
    assert done.returncode == 0
    assert done.stderr.count("error: the prompt has") == 1
    assert done.stdout == chat(talker, "hello\n").stdout


def begun(talker, *flags, **options) -> "subprocess.Popen[bytes]":
    path, config = talker
    command = [*COMMAND, "chat", f"--model={path}", f"--config={config}", "--temperature=0", *flags]
    return subprocess.Popen(command, **options)


def until(descriptor, words, seen=b""):
    """What comes until the words do. Raises OSError or AssertionError when the other end closes before."""
    while words not in seen:
        fresh = os.read(descriptor, 4096)
        assert fresh, seen
        seen += fresh
    return seen


def test_ctrl_c_stops_an_answer_and_keeps_the_talk(talker):
    """What was said stays in the history: the next prompt is longer than the first by it."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = begun(talker, "--ignore_eos", "--max_tokens=1500", stdin=theirs, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    assert process.stdout
    until(ours, b"> ")
    os.write(ours, b"hello\n")
    answer = process.stdout.read(8)
    process.send_signal(signal.SIGINT)
    errors = until(ours, b"> ", until(ours, b"ended by Ctrl-C"))
    assert re.search(rb" \+ \d+ tokens, .*, then [\d.]+ tokens/s; ended by Ctrl-C", errors)
    process.send_signal(signal.SIGINT)  # with nothing to stop
    until(ours, b"> ", until(ours, b"Ctrl-C again, Ctrl-D or /exit leaves"))
    os.write(ours, b"hello\n/quit\n")
    rest, _ = process.communicate(timeout=120)
    line = until(ours, b"tokens/s")
    os.close(ours)
    assert process.returncode == 0
    said = re.search(rb"(\d+) \+ 1500 tokens", line)
    assert said
    assert int(said[1]) > 50  # alone it would have some 30
    assert not answer.startswith(b"> ")  # stdout has the answers only
    assert rest


SLOW = "{% for i in range(40000) %}{% for j in range(20) %}{% endfor %}{% endfor %}done"
INTERRUPTED = """
import os, signal, sys, threading, time
from packlight.model.text.chat import render
os.setsid()
count = 0
def heard(*_):
    global count
    count += 1
signal.signal(signal.SIGINT, heard)
def press():
    while True:
        time.sleep(0.02)
        os.killpg(0, signal.SIGINT)
threading.Thread(target=press, daemon=True).start()
for _ in range(3):  # by a process of its own, by one that starts and stays, and by that again
    print(render(sys.argv[1], [{"role": "user", "content": "x"}]), count > 0)
"""


def test_ctrl_c_does_not_reach_a_template():
    """A terminal sends it to all of its processes; a template that it killed would be called endless."""
    command = [sys.executable, "-c", INTERRUPTED, SLOW]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert done.stdout == "done True\n" * 3, done.stderr


def test_tools_reach_the_template(talker):
    path, config = talker
    llm = packlight.load(path, config)
    template = "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{{ messages[-1].content }}"
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    said = llm.chat(HELLO, tools=tools, template=template, temperature=0, max_tokens=1)
    assert said.prompt_token_ids == prompt_ids(llm.tokenizer, "add;hello")
    assert llm.chat(HELLO, template=template, max_tokens=1).prompt_token_ids == prompt_ids(llm.tokenizer, "hello")


def test_a_template_can_be_given(talker, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages[-1].content }}")
    done = chat(talker, "hello\n", f"--chat_template={tmp_path / 't.jinja'}")
    llm = packlight.load(*map(str, talker))
    ids = llm.encode("hello", parse_special=True)
    assert done.stdout == llm.generate(ids, temperature=0, max_tokens=6).text + "\n"
    done = chat(talker, "hello\n", "--chat_template=/no/such/file")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --chat_template=/no/such/file: No such file or directory\n"


def test_a_file_without_a_template_is_refused_before_it_is_loaded(tmp_path):
    path = write_llama(tmp_path / "m.gguf", layers=1)
    done = run("chat", f"--model={path}", stdin=b"x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "pass one with --chat_template=FILE" in done.stderr


def test_tools_that_a_file_s_template_leaves_out_are_refused(talker):
    words = "m.gguf: the .*template leaves the tools out; pass one that shows them with template=, or no tools$"
    with pytest.raises(ChatTemplateError, match=words):
        packlight.render_chat(talker[0], HELLO, tools=[{"name": "add"}])


def test_bos_is_never_doubled(talker):
    path, _ = talker
    tokenizer = packlight.Tokenizer.from_gguf(path)
    assert tokenizer.add_bos
    with_bos, without = prompt_ids(tokenizer, "<s>ab"), prompt_ids(tokenizer, "ab")
    assert with_bos[0] == without[0] == tokenizer.bos_id
    assert tokenizer.bos_id not in [*with_bos[1:], *without[1:]]
