"""The stream of a generation against the whole of it: any bytes, cut anywhere, with any stop strings."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packlight.common.errors import ConfigError
from packlight.model.text.streaming import TextStream


class Chunks:
    """A tokenizer whose id i is the i-th of some byte strings."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks

    def piece(self, token_id: int, /) -> bytes:
        return self.chunks[token_id]


def run(chunks: list[bytes], stop: str | Sequence[str] = ()) -> tuple[list[str], TextStream]:
    """What each feed showed and, last, what finish did; like a generation it ends once a stop string was met."""
    stream = TextStream(Chunks(chunks), stop)
    shown = []
    for i in range(len(chunks)):
        shown.append(stream.feed(i))
        if stream.stopped:
            break
    return [*shown, stream.finish()], stream


def whole(chunks: list[bytes], stop: Sequence[str] = ()) -> str:
    """The definition: everything decoded at once, cut where the first stop string starts."""
    text = b"".join(chunks).decode("utf-8", "replace")
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


PLACES = st.lists(st.integers(0, 10_000), max_size=40)


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode), PLACES)
def test_joined_equals_whole(data, places):
    chunks = cut(data, places)
    shown, stream = run(chunks)
    assert "".join(shown) == whole(chunks)
    assert not stream.stopped


@settings(deadline=None, max_examples=1000)
@given(
    st.text("abé😀\ufffd", max_size=30).map(str.encode)
    | st.lists(st.sampled_from([b"a", b"b", b"\xc3", b"\xa9"])).map(b"".join),
    PLACES,
    st.lists(st.text("abé😀\ufffd", min_size=1, max_size=4), max_size=4),
)
def test_stop_strings_anywhere(data, places, stop):
    chunks = cut(data, places)
    shown, stream = run(chunks, stop)
    assert "".join(shown) == whole(chunks, stop)
    assert stream.stopped == any(s in data.decode("utf-8", "replace") for s in stop)


def test_stop_string_over_chunk_edges_is_never_shown():
    shown, stream = run([b"one <", b"|en", b"d|> two"], ["<|end|>"])
    assert shown == ["one ", "", "", ""]
    assert stream.stopped
    assert stream.feed(0) == ""


def test_a_false_start_is_released():
    assert run([b"a <", b"|e", b"h"], ["<|end|>"])[0] == ["a ", "", "<|eh", ""]


def test_unfinished_stop_string_is_shown_at_the_end():
    shown, stream = run([b"a <|en"], ["<|end|>"])
    assert shown == ["a ", "<|en"]
    assert not stream.stopped


def test_the_stop_string_that_starts_first_wins():
    """At "ab" both "b" and the beginning of "abc" are there: only the next piece tells where to cut."""
    assert run([b"xab", b"c"], ["b", "abc"])[0] == ["x", "", ""]
    assert run([b"xab", b"d"], ["b", "abc"])[0] == ["x", "a", ""]
    assert run([b"xab"], ["b", "abc"])[0] == ["x", "a"]


def test_half_a_character_waits():
    assert run([b"\xf0\x9f", b"\x98", b"\x80!"])[0] == ["", "", "😀!", ""]
    assert run([b"a\xf0\x9f"])[0] == ["a", "\ufffd"]
    assert run([b"\xf0\x9f", b"a"])[0] == ["", "\ufffda", ""]


def test_leading_space_is_kept():
    assert run([b" Hello", b" world"])[0] == [" Hello", " world", ""]


def test_one_stop_string_may_come_bare():
    assert run([b"abc"], "bc")[0] == ["a", ""]


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [3]])
def test_bad_stop_strings(stop):
    with pytest.raises(ConfigError, match="stop strings must be non-empty"):
        TextStream(Chunks([]), stop)
