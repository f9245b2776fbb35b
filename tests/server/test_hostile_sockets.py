"""Connections that mean harm, or are broken: each is answered or cut in time, and the next request is served."""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import socket
import threading
import time

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_http import QUICK, ends, reply, request, routes, served, until
from uvicorn.server import ServerState

from packlight.server.listening import make_room
from packlight.server.protocol import Connection

BODY = b'{"a": 1}'


@pytest.fixture(scope="module")
def server():
    with served(limits=QUICK) as running:
        yield running
        assert running.ask(request()).status == 200
    assert not [line for line in running.details if line.startswith("asyncio:")]  # no callback of a connection raised
    assert not running.said("error:")


@pytest.fixture(scope="module")
def patient():
    """A server with the limits that users have."""
    with served() as running:
        yield running


HEADS = {
    "nothing but garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "invalid_http"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_http"),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400, "invalid_http"),
    "two hosts": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400, "invalid_http"),
    "two lengths": (request("/echo", "POST", BODY, content_length="8, 9"), 400, "invalid_http"),
    "a negative length": (request("/echo", "POST", BODY, Content_Length="-1"), 400, "invalid_http"),
    "a length that is no number": (request("/echo", "POST", BODY, Content_Length="0x8"), 400, "invalid_http"),
    "a length beyond all numbers": (request("/echo", "POST", BODY, Content_Length="9" * 30), 400, "invalid_http"),
    "a huge line": (b"GET /" + b"a" * 70_000, 431, "headers_too_large"),
    "a huge head that is whole": (request(x=("a" * 70_000)), 431, "headers_too_large"),
    "many headers": (request(**{f"x{n}": "1" for n in range(200)}), 431, "too_many_headers"),
    "a line in a header": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: a\x00b\r\n\r\n", 400, "invalid_http"),
    "an encoding we have not": (
        request("/echo", "POST", None, Content_Type="application/json", Transfer_Encoding="gzip"),
        501,
        "invalid_http",
    ),
    "a chunk without length": (
        request("/echo", "POST", None, Content_Type="application/json", Transfer_Encoding="chunked") + b"zz\r\n",
        400,
        "invalid_http",
    ),
}


@pytest.mark.parametrize("case", HEADS)
def test_what_is_no_http_is_told_so(server, case):
    sent, status, code = HEADS[case]
    with server.connect() as client:
        client.sendall(sent)
        told = reply(client)
        assert (told.status, told.code) == (status, code)
        assert told.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET /hea", "head_timeout"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", "head_timeout"),
        (request("/echo", "POST", BODY)[:-3], "body_timeout"),
        (request("/echo", "POST", BODY, Content_Length="1000"), "body_timeout"),
        (
            request("/echo", "POST", None, Content_Type="application/json", Transfer_Encoding="chunked") + b'4\r\n{"a',
            "body_timeout",
        ),
    ],
)
def test_half_a_request_is_timed_out(server, sent, code):
    with server.connect() as client:
        client.sendall(sent)
        told = reply(client)
        assert (told.status, told.code, told.headers["connection"]) == (408, code, "close")
        assert ends(client)


def drip(client: socket.socket, sent: bytes) -> None:
    """Sends a byte every 20 ms until the server has had enough."""
    with contextlib.suppress(OSError):
        for byte in sent:
            client.sendall(bytes([byte]))
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("prefix", "rest"), [(b"", request(x="a" * 100)), (request("/echo", "POST", b"1" * 100)[:-100], b"1" * 100)]
)
def test_slow_bytes_gain_no_time(server, prefix, rest):
    with server.connect() as client:
        client.sendall(prefix)
        began = time.monotonic()
        sender = threading.Thread(target=drip, args=(client, rest))
        sender.start()
        told = reply(client)
        assert time.monotonic() - began < 1
        assert told.status == 408
        sender.join()


def test_a_second_head_that_is_slow_is_timed_out_too(server):
    with server.connect() as client:
        client.sendall(request() + b"GET /hea")
        assert reply(client).status == 200
        assert reply(client).code == "head_timeout"


def test_connections_without_requests_are_closed(server):
    with server.connect() as silent, server.connect() as kept:
        kept.sendall(request())
        assert reply(kept).status == 200
        began = time.monotonic()
        assert ends(silent)
        assert ends(kept)
        assert 0.2 < time.monotonic() - began < 2


def test_pipelined_requests_are_answered_in_turn(patient):
    bodies = [b'{"n": %d}' % n for n in range(5)]
    with patient.connect() as client:
        client.sendall(b"".join(request("/echo", "POST", body) for body in bodies))
        assert [reply(client).body for _ in bodies] == bodies


def test_a_client_that_leaves_behind_a_second_request_is_noticed():
    """uvicorn alone stops reading there, so the first request would run on."""
    with served() as server:
        with server.connect() as client:
            client.sendall(request("/slow"))
            until(lambda: server.life.running)
            time.sleep(0.05)  # the route waits for the client to leave by now
            client.sendall(request("/slow"))
            time.sleep(0.05)
        until(lambda: server.left == ["slow"])
        until(lambda: not server.life.running)


def test_a_body_may_come_split_anywhere(patient):
    body = '{"text": "żółw 🐢"}'.encode()
    sent = request("/echo", "POST", body)
    with patient.connect() as client:
        for start in range(len(sent) - 12):
            client.sendall(sent[start : start + 1])
        for byte in sent[-12:]:
            time.sleep(0.002)
            client.sendall(bytes([byte]))
        assert reply(client).body == body


def test_a_body_longer_than_its_length_is_a_further_request(patient):
    with patient.connect() as client:
        client.sendall(request("/echo", "POST", BODY) + b"trailing\r\n\r\n")
        assert reply(client).body == BODY
        assert reply(client).code == "invalid_http"
        assert ends(client)


def test_a_head_request_with_nonsense_behind_it_is_cut(server):
    with server.connect() as client:
        client.sendall(request("/slow", "HEAD", None, Transfer_Encoding="chunked") + b"zz\r\n")
        assert ends(client)


def test_who_asks_first_is_told_before_sending():
    with served(limits=dataclasses.replace(QUICK, body=1000)) as server, server.connect() as client:
        client.sendall(request("/echo", "POST", b"", Content_Length="1001", Expect="100-continue"))
        assert reply(client).status == 413
    with served(limits=QUICK) as server, server.connect() as client:
        client.sendall(request("/echo", "POST", b"", Content_Length="2", Expect="100-continue"))
        assert reply(client).status == 100
        client.sendall(b"{}")
        assert reply(client).body == b"{}"


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from([b"", b"\r\n", b"\0", b"\xff", b":", b" ", b"9"]))
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([case[0][:2000] for case in HEADS.values()] + [request(), request("/echo", "POST", BODY)] * 4),
    MUTATIONS,
    st.booleans(),
)
def test_damaged_requests_end(server, sent, mutations, twice):
    """Bytes are taken out of requests and others put there: each connection has answers with statuses, or ends."""
    sent *= 2 if twice else 1
    for place, put in mutations:
        at = place % (len(sent) + 1)
        sent = sent[:at] + put + sent[at + 1 :]
    with server.connect() as client:
        with contextlib.suppress(OSError):
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
        assert ends(client)


def test_chunks_are_one_body(patient):
    head = request("/echo", "POST", None, Content_Type="application/json", Transfer_Encoding="chunked")
    assert patient.ask(head + b"3\r\n[1,\r\n2;x=y\r\n2]\r\n0\r\nTrailer: a\r\n\r\n").body == b"[1,2]"


def test_large_bodies_are_refused_before_and_while_they_come():
    with served(limits=dataclasses.replace(QUICK, body=1000, dropped=4000)) as server:
        assert server.ask(request("/echo", "POST", b"1" * 1000)).status == 200
        with server.connect() as client:
            client.sendall(request("/echo", "POST", b"", Content_Length="1001"))
            told = reply(client)
            assert (told.status, told.code) == (413, "body_too_large")
            client.sendall(b"1" * 1001)  # what is still sent is dropped, and the connection goes on
            client.sendall(request())
            assert reply(client).status == 200
        chunked = request("/echo", "POST", None, Content_Type="application/json", Transfer_Encoding="chunked")
        with server.connect() as client:
            client.sendall(chunked + b"3e8\r\n" + b"1" * 1000 + b"\r\n")
            client.sendall(b"1\r\n1\r\n")
            assert reply(client).status == 413
            with contextlib.suppress(OSError):
                for _ in range(100):
                    client.sendall(b"3e8\r\n" + b"1" * 1000 + b"\r\n")
            assert ends(client)  # no more than that is dropped
        with server.connect() as client:
            client.sendall(request("/echo", "POST", b"", Content_Length="1001"))
            assert reply(client).status == 413
            assert ends(client)  # what does not come is not waited for


def test_bodies_together_are_bounded():
    with served(limits=dataclasses.replace(QUICK, body_seconds=5, bodies=1500)) as server:
        with server.connect() as first:
            first.sendall(request("/echo", "POST", b"1" * 1001)[:-1])
            until(lambda: server.life.held == 1000)
            told = server.ask(request("/echo", "POST", b"1" * 1000))
            assert (told.status, told.code, told.headers["retry-after"]) == (503, "bodies_full", "5")
            first.sendall(b"1")
            assert reply(first).status == 200
        assert server.ask(request("/echo", "POST", b"1" * 1000)).status == 200


@pytest.mark.parametrize("path", ["/endless"])
def test_a_reader_that_takes_nothing_is_cut(server, path):
    with server.connect() as client:
        client.sendall(request(path))
        until(lambda: path[1:] in server.left)
    server.left.clear()


def test_a_reader_that_is_slow_is_not_cut():
    with served(limits=dataclasses.replace(QUICK, unread=1 << 16)) as server, server.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        client.sendall(request("/endless"))
        for _ in range(20):  # 1 s, three times what a reader may take nothing
            taken = 0
            while taken < 1 << 20:
                taken += len(client.recv(1 << 16))
            time.sleep(0.05)
        assert server.left == []


class Transport(asyncio.Transport):
    """One whose reader has so many bytes still to take."""

    left = 0
    cut = False

    def get_write_buffer_size(self) -> int:
        return self.left

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.cut = True


@pytest.mark.parametrize(
    ("sizes", "resumed", "cut"),
    [
        ((100, 100), False, True),  # it takes nothing
        ((100, 99, 98), False, False),  # it takes a little each time
        ((100, 99, 99), False, True),  # it stops taking
        ((100, 100), True, False),  # it took all, and the writer wrote as much again
    ],
)
def test_a_reader_is_cut_by_what_it_takes(sizes, resumed, cut):
    async def live() -> bool:
        limits = dataclasses.replace(QUICK, send_seconds=0.05)
        config = uvicorn.Config(routes([], threading.Event()), http=Connection, ws="none", log_config=None)
        loop, transport = asyncio.get_running_loop(), Transport()
        connection = Connection(limits, lambda reason: None, config, ServerState(), loop)
        connection.connection_made(transport)
        transport.left = sizes[0]
        connection.pause_writing()
        if resumed:
            connection.resume_writing()
        for size in sizes[1:]:
            transport.left = size
            await asyncio.sleep(0.06)
        connection.connection_lost(OSError())
        return transport.cut

    assert asyncio.run(live()) == cut


def test_an_answer_that_nobody_takes_does_not_keep_the_connection():
    """Less is left than makes the writer wait, so only closing tells."""
    with served(limits=dataclasses.replace(QUICK, unread=8 << 20)) as server, server.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        client.sendall(request("/echo", "POST", b"1" * (7 << 20)))
        until(lambda: server.said("/echo 200"))
        until(lambda: not server.life.connections)


@pytest.mark.parametrize("sent", [b"", b"GET /", request("/echo", "POST", BODY)[:-1]])
def test_idle_sockets_leave_the_service_up(sent):
    limits = dataclasses.replace(QUICK, sockets=50, head_seconds=30, body_seconds=30, idle_seconds=0.1)
    with served(limits=limits) as server, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(50)]
        for client in idle:
            client.sendall(sent)
        until(lambda: server.life.connections == 50)
        time.sleep(0.2)
        for _ in range(60):
            assert server.ask(request()).status == 200
        assert ends(idle[0])


def test_more_connections_than_there_may_be_are_told_so():
    limits = dataclasses.replace(QUICK, sockets=3, idle_seconds=60)
    with served(limits=limits) as server, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(server.connect())
        until(lambda: server.life.connections == 3)
        with server.connect() as client:
            told = reply(client)
            assert (told.status, told.code) == (503, "too_many_connections")
            assert ends(client)
        until(lambda: not server.life.connections)
        assert server.ask(request()).status == 200


def test_five_hundred_idle_sockets_leave_the_service_up():
    """With the limits that users have. Both ends of a connection are files of this process."""
    if make_room(1100) < 1100:
        pytest.skip("this process may not open 1,228 files")
    with served() as server, contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(server.connect())
        until(lambda: server.life.connections == 500)
        assert server.ask(request()).status == 200


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").exists(), reason="needs /proc")
def test_broken_connections_leave_no_descriptors():
    sent = [case[0] for case in HEADS.values()]
    sent += [b"", b"GET /", request("/echo", "POST", BODY)[:-1], request("/endless"), request("/slow")]
    with served(limits=QUICK) as server:
        assert server.ask(request()).status == 200
        until(lambda: not server.life.connections)
        before = descriptors()
        for number in range(400):
            with server.connect() as client:
                client.sendall(sent[number % len(sent)])
                if number % 2:  # it ends by a reset, not by FIN
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        until(lambda: not server.life.connections and not server.life.running)
        assert descriptors() == before
        assert server.ask(request()).status == 200
