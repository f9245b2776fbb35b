"""`packlight chat`: its commands, what a second turn reads, a full context, stopped answers, files of conversations."""

import json
import os
import re
import signal

import pytest
from running import packlight as run

import packlight
from packlight import demo
from packlight.cli import conversation, messages
from packlight.cli.conversation import COMMANDS, Conversation, command_of, read_messages
from packlight.cli.entering import Entry, History
from packlight.cli.inputs import sampling_fields
from packlight.common.errors import ConfigError

TALK = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
CONFIG = packlight.CompileConfig(context=256, prefill_buckets=(16, 64), decode_batch=(1,), head_rows=1)


@pytest.fixture(scope="module")
def llm():
    return packlight.load(demo.MODEL, CONFIG, slots=1)


@pytest.fixture
def completions(monkeypatch):
    """What the answers of a conversation were, in order."""
    found = []
    speed = conversation.speed
    monkeypatch.setattr(conversation, "speed", lambda done, *ended: found.append(done) or speed(done, *ended))
    return found


def chat(llm, *texts, system=None, drops=True, **sampling):
    """A conversation in which these lines were entered."""
    from packlight.cli.commands import COMMANDS as ALL

    values = ALL["chat"].define()
    values(["chat"])
    fields = sampling_fields(values) | {"temperature": 0.0, "max_tokens": 8} | sampling
    talk = Conversation(llm, TALK, system, fields, drops)
    enter(talk, *texts)
    return talk


def enter(talk, *texts):
    talk.run((text if isinstance(text, Entry) else Entry(text) for text in texts), History(None))


def contents(talk):
    return [message["content"] for message in talk.messages]


def common(a, b):
    return next((i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))


def fresh(llm, completion, **sampling):
    """The ids of the same prompt in a slot that knows nothing of it."""
    llm.logits([5, 6])
    again = llm.generate(completion.prompt_token_ids, temperature=0, max_tokens=8, **sampling)
    assert again.cached_tokens == 0
    return again.token_ids


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/exit", ("/exit", "")),
        ("/bye ", ("/exit", "")),
        ("/QUIT", ("/exit", "")),
        ("/?", ("/help", "")),
        ("/reset", ("/clear", "")),
        ("/system  be kind", ("/system", "be kind")),
        ("/system be\nkind", ("/system", "be\nkind")),
        ("/system", ("/system", "")),
        ("/save a b.json", ("/save", "a b.json")),
        ("/etc/hosts is what?", None),
        ("/etc is a folder", None),
        ("/hexagon", None),
        ("/", None),
        ("//", None),
        ("/clear\nthis", None),
        (" /clear", None),
        ("what does /clear do", None),
        ("/clera", "no command /clera; did you mean '/clear'? A space before it makes it a message"),
        ("/qiut", "no command /qiut; did you mean '/quit'"),
        ("/sytem be kind", "no command /sytem; did you mean '/system'"),
        ("/help me", "/help takes nothing behind it. A space before"),
        ("/save", "/save wants a file: /save FILE"),
        ("/load  ", "/load wants a file"),
    ],
)
def test_what_is_a_command(text, command):
    if isinstance(command, str):
        with pytest.raises(ConfigError, match="^" + re.escape(command)):
            command_of(Entry(text))
    else:
        assert command_of(Entry(text)) == command
    assert command_of(Entry(text, quoted=True)) is None


def test_every_command_is_in_the_help_and_says_what_it_did(llm, tmp_path, capsys):
    file = tmp_path / "talk.json"
    chat(
        llm,
        "Hello",
        "/tokens",
        f"/save {file}",
        "/undo",
        "/clear",
        f"/load {file}",
        "/system kind",
        "/help",
        "/bye",
        "x",
    )
    said = capsys.readouterr().err
    for name in COMMANDS:
        assert f"\n{name}" in said
    for words in (
        "tokens of 256; messages: 2\n",
        f"saved to {file}: 2 messages\n",
        "taken back: Hello; messages left: 0\n",
        "\nbegun anew\n",
        f"loaded from {file}: 2 messages\n",
        "begun anew with this system message\n",
    ):
        assert said.count(words) == 1, words


def test_a_second_turn_reads_only_what_is_new(llm, completions):
    chat(llm, "A Python function", "And a class?", "Hm")
    first, second, third = completions
    assert len({len(each.prompt_token_ids) for each in completions}) == 3
    for before, after in ((first, second), (second, third)):
        held = [*before.prompt_token_ids, *before.token_ids]
        held = held if before.finish_reason == "stop" else held[:-1]  # the last one was not read yet
        assert after.cached_tokens == common(held, after.prompt_token_ids) >= len(before.prompt_token_ids)
        assert after.timings["prefill_tok_s"] == pytest.approx(
            (len(after.prompt_token_ids) - after.cached_tokens) / after.timings["ttft_s"]
        )
    assert second.token_ids == fresh(llm, second)
    assert third.token_ids == fresh(llm, third)


def test_an_answer_again_and_a_turn_taken_back(llm, completions, capsys):
    """Both find their prompt in the cache; what was said since is forgotten."""
    talk = chat(llm, "A Python function", "And a class?", "/regen", "/undo", "And a module?")
    one, two, again, other = completions
    assert again.prompt_token_ids == two.prompt_token_ids
    assert again.cached_tokens == len(two.prompt_token_ids) - 1
    assert again.token_ids == two.token_ids  # greedy
    assert contents(talk) == ["A Python function", one.text, "And a module?", other.text]
    assert other.cached_tokens == common(again.prompt_token_ids, other.prompt_token_ids) > len(one.prompt_token_ids)
    assert other.token_ids == fresh(llm, other)
    capsys.readouterr()
    enter(talk, "/undo", "/undo", "/undo", "/regen")
    assert talk.messages == []
    assert capsys.readouterr().err.splitlines() == [
        "taken back: And a module?; messages left: 2",
        "taken back: A Python function; messages left: 0",
        "error: there is no message to take back",
        "error: there is no message to answer again",
    ]


def test_commands_answer_under_quiet_too(llm, capsys, monkeypatch):
    """What nobody asked for is not said."""
    monkeypatch.setattr(messages.current, "quiet", True)
    talk = chat(llm, "Hello", "/undo", "/tokens", system="Be kind.")
    used = len(llm.chat_prompt(talk.messages, template=TALK))
    assert capsys.readouterr().err.splitlines() == [
        "taken back: Hello; messages left: 1",
        f"{used} tokens of 256; messages: 1",
    ]


def test_nothing_is_no_conversation_to_save(llm, capsys, tmp_path):
    chat(llm, f"/save {tmp_path / 'talk.json'}")
    assert capsys.readouterr().err == "error: there is nothing to save\n"
    assert not list(tmp_path.iterdir())


def test_an_answer_again_draws_otherwise(llm, completions):
    chat(llm, "A", "/regen", "/regen", "B", temperature=1.0, seed=2**32 - 1)
    assert [each.seed for each in completions] == [2**32 - 1, 0, 1, 2**32 - 1]


def test_the_oldest_turns_leave_a_full_context(llm, completions, capsys):
    """They leave the prompt, not the conversation; the system message stays, and every message is answered."""
    texts = [f"{i} {'word ' * 12}" for i in range(12)]
    talk = chat(llm, *texts, system="Be kind.")
    said = capsys.readouterr().err
    assert contents(talk)[1::2] == texts
    assert all(len(each.prompt_token_ids) + 8 <= 256 for each in completions)
    last = llm.decode(completions[-1].prompt_token_ids)
    assert "[system]Be kind.[user]" in last
    assert "[user]0 word" not in last
    assert last.count("[user]") >= 3
    assert last.endswith(f"[user]{texts[-1]}[assistant]")
    dropped = re.findall("the context of 256 tokens is full: the oldest ([0-9]+) messages are read no longer", said)
    assert 1 <= len(dropped) <= 4  # each makes room for several turns
    enter(talk, "/tokens")
    assert re.search(rf"messages: 25, of which the oldest {dropped[-1]} are read", capsys.readouterr().err)
    enter(talk, *["/undo"] * 11, "/tokens")  # what is left fits again
    assert "read no longer" not in capsys.readouterr().err


def test_a_full_context_may_stop_the_conversation(llm, capsys):
    texts = [f"{i} {'word ' * 12}" for i in range(12)]
    talk = chat(llm, *texts, drops=False)
    said = capsys.readouterr().err
    answered = len(talk.messages) // 2
    assert contents(talk)[::2] == texts[:answered]
    assert len(re.findall("error: the prompt has [0-9]+ tokens, which leaves no room", said)) == 12 - answered > 0
    assert "read no longer" not in said


def test_an_answer_that_is_cut_off_is_said(llm, capsys):
    chat(llm, "A Python function", ignore_eos=True)
    assert "the answer is cut off: that is all of --max_tokens\n" in capsys.readouterr().err
    chat(llm, "A Python function", ignore_eos=True, max_tokens=None)
    assert "the answer is cut off: the context of 256 tokens is full\n" in capsys.readouterr().err


def test_a_message_that_is_too_long_costs_itself(llm, capsys):
    """No turn leaves for it."""
    talk = chat(llm, "Hello", "word " * 400, "/tokens")
    assert len(talk.messages) == 2
    said = capsys.readouterr().err
    assert said.count("error: the prompt has") == 1
    assert "read no longer" not in said


def test_ctrl_c_keeps_what_was_said(llm, monkeypatch, capsys, completions):
    """And the next turn goes on from there."""
    pieces = []

    def press(piece):
        pieces.append(piece)
        if len(pieces) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(conversation, "write", press)
    before = signal.getsignal(signal.SIGINT)
    talk = chat(llm, "A Python function", ignore_eos=True, max_tokens=None)
    assert signal.getsignal(signal.SIGINT) == before
    assert contents(talk) == ["A Python function", "".join(pieces[:4])]
    assert re.search(r" \+ \d+ tokens, .*, then [\d.]+ tokens/s; ended by Ctrl-C\n", capsys.readouterr().err)
    enter(talk, "Hm")
    assert completions[0].text.startswith("".join(pieces[:4]))
    assert completions[1].cached_tokens >= len(llm.chat_prompt(talk.messages[:1], template=TALK))
    assert completions[1].token_ids[:8] == fresh(llm, completions[1], ignore_eos=True)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_while_a_prompt_is_read_takes_the_message_back(llm, monkeypatch, capsys, presses):
    """Once waits for the prompt, twice does not; the next message is answered."""
    talk, read = chat(llm, "Hello"), llm.engine._prefill

    def press(*arguments):
        for _ in range(presses):
            os.kill(os.getpid(), signal.SIGINT)
        return read(*arguments)

    with monkeypatch.context() as pressed:
        pressed.setattr(llm.engine, "_prefill", press)
        enter(talk, "And?")
    assert len(talk.messages) == 2
    assert "stopped before it said anything: the conversation is as it was\n" in capsys.readouterr().err
    enter(talk, "And?")
    assert len(talk.messages) == 4


def test_ctrl_c_before_a_word_takes_the_message_back(llm, monkeypatch, capsys):
    talk = chat(llm, "Hello")
    render = llm.chat_prompt

    def press(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return render(*arguments, **options)

    monkeypatch.setattr(llm, "chat_prompt", press)
    enter(talk, "And?")
    assert len(talk.messages) == 2
    assert "stopped before it said anything: the conversation is as it was\n" in capsys.readouterr().err


def test_a_conversation_goes_on_in_another_process_s_words(llm, tmp_path, completions):
    file = tmp_path / "talk.json"
    talk = chat(llm, "Hello 😀", f"/save {file}", f"/save {file}", system="Be kind.")
    assert json.loads(file.read_text(encoding="utf-8")) == talk.messages
    other = chat(llm, f"/load {file}", "And?", "/clear", "New")
    assert completions[1].prompt_token_ids == llm.chat_prompt(
        [*talk.messages, {"role": "user", "content": "And?"}], template=TALK
    )
    assert contents(other)[:2] == ["Be kind.", "New"]
    file.write_text(json.dumps({"model": "x", "messages": [{"role": "user", "content": "Hello"}]}))
    assert contents(chat(llm, f"/load {file}", "/regen"))[0] == "Hello"
    file.write_text('[{"role": "user"}]')
    assert chat(llm, f"/load {file}", "/undo").messages == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "No such file or directory"),
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"{}", "messages are a list of"),
        (b"[]", "messages are a list of"),
        (b"[1]", "message 0 is no mapping with a 'role'"),
        (b'[{"role": "user", "content": 1}]', "the content of message 0 is no text"),
        (b'{"messages": "hello"}', "messages are a list of"),
        (b"\xff", "not UTF-8 text"),
        (b'[{"role": "user", "content": "\\ud800"}]', "not UTF-8 text"),
        (b"[" * 100_000, "maximum recursion depth"),
        (b"9" * 5000, "Exceeds the limit"),
    ],
)
def test_a_file_that_is_no_conversation_costs_a_line(llm, tmp_path, capsys, text, why):
    """Nor is it written over."""
    file = tmp_path / "talk.json"
    if text is not None:
        file.write_bytes(text)
    talk = chat(llm, "Hello")
    capsys.readouterr()
    enter(talk, f"/load {file}", *([] if text is None else [f"/save {file}"]))
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"error: {file}: ") and why in line for line in lines] == [True] * (1 + (text is not None))
    assert len(talk.messages) == 2
    assert text is None or file.read_bytes() == text


def test_a_conversation_is_saved_where_that_is_possible(llm, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    talk = chat(llm, "Hello")
    capsys.readouterr()
    enter(talk, f"/save {tmp_path}/no/talk.json", f"/save {tmp_path}", f"/load {tmp_path}/pipe")
    errors = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in errors] == [
        "No such file or directory", "a directory, not a regular file", "a pipe, socket or device, not a regular file",
    ]  # fmt: skip
    assert len(talk.messages) == 2
    with pytest.raises(ConfigError, match="no conversation"):
        read_messages("\0")


def test_what_a_full_context_does_is_one_of_two():
    done = run("chat", "--model=m.gguf", "--on_full=shift")
    assert (done.returncode, done.stderr) == (2, "error: --on_full=shift is none of drop, stop\n")
