"""Who may ask, by which names, with what body; what is said of it."""

import dataclasses
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_http import Served, request, served, until

from packlight.common.errors import ConfigError
from packlight.server.accounts import Account
from packlight.server.bodies import json_depth
from packlight.server.keys import VARIABLE, Keys, read_keys
from packlight.server.limits import Limits, most_waiting, most_waiting_tokens
from packlight.server.metrics import Metrics
from packlight.server.origins import Origins


@pytest.fixture(scope="module")
def server():
    with served() as running:
        yield running


@pytest.fixture(scope="module")
def locked():
    with served(keys=Keys(["first-key", "second-key"])) as running:
        yield running


# Names


@pytest.mark.parametrize(
    ("host", "known"),
    [
        *[
            (name, True)
            for name in ("localhost", "LOCALHOST:8080", "127.0.0.1:1", "127.8.8.8", "[::1]:80", "a.localhost")
        ],
        *[
            ("localhost.", True),
            ("evil.example", False),
            ("localhost.evil.example", False),
            ("127.0.0.1.nip.io", False),
        ],
        *[("192.168.0.7", False), ("", False), ("a b", False), ("[::1", False), ("localhost:80:80", False)],
        *[("localhost@evil.example", False), ("[fe80::1]", False), ("xn--lcalhost-30b", False)],
    ],
)
def test_a_local_server_goes_by_local_names(host, known):
    assert Origins().goes_by(host) == known


def test_a_server_on_a_network_goes_by_addresses_and_what_it_is_told():
    origins = Origins("0.0.0.0", ("models.example",))
    assert all(map(origins.goes_by, ("192.168.0.7:8080", "[fe80::1]:8080", "localhost", "Models.Example:8080")))
    assert not any(map(origins.goes_by, ("evil.example", "models.example.evil", "")))
    assert Origins(allowed_hosts=("*",)).goes_by("anything")
    assert Origins("gpu.local").goes_by("gpu.local:8080")


@pytest.mark.parametrize("host", ["http://a", "a:80", "a/b", ""])
def test_a_name_to_allow_must_be_one(host):
    with pytest.raises(ConfigError, match="--allowed_hosts="):
        Origins(allowed_hosts=(host,))


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "https://example.org/a", "", "://a"])
def test_an_origin_to_allow_must_be_one(origin):
    with pytest.raises(ConfigError, match="--cors_origins="):
        Origins(cors_origins=(origin,))


def test_a_name_pointed_at_this_machine_opens_nothing(server):
    for path in ("/health", "/metrics", "/nothing"):
        told = server.ask(request(path, Host="evil.example"))
        assert (told.status, told.code) == (403, "host_not_allowed")
        assert told.json["error"]["type"] == "permission_error"


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("https://evil.example", "localhost", 403),
        ("null", "localhost", 403),
        ("http://localhost:3000", "localhost:8080", 403),
        ("http://localhost:8080", "localhost:8080", 200),
        ("http://LOCALHOST", "localhost:80", 200),
    ],
)
def test_pages_from_elsewhere_may_post_nothing(server, origin, host, status):
    told = server.ask(request("/echo", "POST", b"{}", Origin=origin, Host=host))
    assert told.status == status
    assert not any(name.startswith("access-control") for name in told.headers)
    assert server.ask(request(Origin=origin, Host=host)).status == 200  # what is only read, the browser does not show


PREFLIGHT = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization, x-stainless-os"}


def test_pages_of_chosen_origins_may_use_the_server():
    with served(cors_origins=("https://app.example",), keys=Keys(["key"])) as server:
        told = server.ask(request("/echo", "OPTIONS", Origin="https://app.example", **PREFLIGHT))
        assert told.status == 204
        assert told.headers["access-control-allow-origin"] == "https://app.example"
        assert told.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
        assert told.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in told.headers
        told = server.ask(request("/echo", "POST", b"{}", Origin="https://app.example", Authorization="Bearer key"))
        assert (told.status, told.headers["access-control-allow-origin"]) == (200, "https://app.example")
        told = server.ask(request("/echo", "POST", b"{}", Origin="https://app.example"))
        assert (told.status, told.headers["access-control-allow-origin"]) == (401, "https://app.example")
        told = server.ask(request("/echo", "OPTIONS", Origin="https://app.example.evil", **PREFLIGHT))
        assert (told.status, told.code) == (403, "origin_not_allowed")
        told = server.ask(request("/echo", "POST", b"{}", Origin="http://app.example", Authorization="Bearer key"))
        assert told.status == 403


def test_any_origin_may_where_all_do():
    with served(cors_origins=("*",)) as server:
        told = server.ask(request("/echo", "POST", b"{}", Origin="null"))
        assert (told.status, told.headers["access-control-allow-origin"]) == (200, "*")
        assert "access-control-allow-credentials" not in told.headers


def test_no_page_may_ask_what_it_may_where_none_may(server):
    assert server.ask(request("/echo", "OPTIONS", Origin="http://localhost:8080", **PREFLIGHT)).status == 403


# Keys


@pytest.mark.parametrize(
    "header",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "bearer  second-key "},
        {"x_api_key": "second-key"},
        {"Authorization": "Bearer wrong", "x_api_key": "first-key"},
    ],
)
def test_each_key_opens(locked, header):
    assert locked.ask(request("/models/a", **header)).status == 200
    assert locked.ask(request("/metrics", **header)).status == 200


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "first-key"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Bearer first-key2"},
        {"Authorization": "Bearer first-key,second-key"},
        {"Authorization": "Bearer FIRST-KEY"},
        {"x_api_key": ""},
        {"x_api_key": "\xfc"},
        {"Cookie": "x-api-key=first-key"},
    ],
)
def test_nothing_else_does(locked, header):
    for path in ("/models/a", "/nothing", "/metrics", "/Health", "/health/"):
        told = locked.ask(request(path, **header))
        assert (told.status, told.code) == (401, "invalid_api_key")
        assert told.headers["www-authenticate"] == "Bearer"
        assert "key" not in "".join(locked.lines[-1:]).replace("invalid_api_key", "")
    assert locked.ask(request(**header)).status == 200  # health


def test_a_request_without_key_has_no_body_read(locked):
    told = locked.ask(request("/echo", "POST", b"", Content_Length="1000"))
    assert told.status == 401


def test_all_keys_are_compared(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda mine, given: compared.append((mine, given)) or mine == given)
    assert Keys(["a", "b", "c"]).open(b"a")
    assert len(compared) == 3
    assert {len(each) for pair in compared for each in pair} == {32}


def test_keys_come_from_a_file_and_the_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("one\n\n  two \n")
    file.chmod(0o600)
    keys, warnings = read_keys(str(file), {VARIABLE: "three"})
    assert (len(keys), warnings) == (3, [])
    assert all(map(keys.open, (b"one", b"two", b"three")))
    assert not any(map(keys.open, (b"", b"  two ", b"four")))
    file.chmod(0o640)
    _, (warning,) = read_keys(str(file), {})
    assert warning == f"--api_key_file={file} may be read by other users of this machine: chmod 600 {file}"
    assert len(read_keys(None, {})[0]) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "holds no key"), ("\n\n", "holds no key"), ("secret\nse cret\n", "line 2 is no key"), ("kläf", "not ASCII")],
)
def test_a_file_of_keys_must_be_one(tmp_path, text, said):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"--api_key_file={file}: .*{said}") as error:
        read_keys(str(file), {})
    assert "cret" not in str(error.value).removeprefix(f"--api_key_file={file}")


def test_a_key_that_is_none_does_not_leave_the_server_open(tmp_path):
    for value in ("", " ", "two words"):
        with pytest.raises(ConfigError, match=f"{VARIABLE} is set and holds no key"):
            read_keys(None, {VARIABLE: value})
    with pytest.raises(ConfigError, match="No such file"):
        read_keys(str(tmp_path / "none"), {})


# Bodies


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content_Type": "application/json; charset=utf-8"}, 200),
        ({"Content_Type": "application/vnd.api+json"}, 200),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": "application/jsonx"}, 415),
        ({"Content_Type": ""}, 415),
        ({"Content_Encoding": "gzip"}, 415),
        ({"Content_Encoding": "identity"}, 200),
    ],
)
def test_a_body_is_json_as_it_is(server, headers, status):
    named = request("/echo", "POST", b"{}", **headers)
    named = named.replace(b"Content-Type: application/json\r\n", b"") if "Content_Type" in headers else named
    assert server.ask(named).status == status


def slow_depth(body: bytes) -> int:
    """json_depth's slow twin: a byte at a time."""
    deepest = depth = 0
    inside = escaped = False
    for byte in body:
        if escaped:
            escaped = False
        elif byte == ord("\\"):
            escaped = True
        elif byte == ord('"'):
            inside = not inside
        elif not inside:
            depth += (byte in b"[{") - (byte in b"]}")
            deepest = max(deepest, depth)
    return deepest


JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab"\\[]{}\n\u00e9'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='"\\[{a'), inner, max_size=3),
)


@given(JSON)
def test_depth_is_that_of_the_value(value):
    def depth(value) -> int:
        inside = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, inside), default=0) if isinstance(value, list | dict) else 0

    assert json_depth(json.dumps(value).encode()) == slow_depth(json.dumps(value).encode()) == depth(value)


@given(st.text(alphabet='"[]{}a').map(str.encode))
def test_depth_of_other_bytes_is_the_slow_twins(body):
    assert json_depth(body) == slow_depth(body)


@pytest.mark.parametrize("at", range(-2, 3))
def test_depth_holds_over_the_ends_of_chunks(at, monkeypatch):
    monkeypatch.setattr("packlight.server.bodies.CHUNK", 16)
    for middle in (b'["[[\\"[["', b'[{"a":"]]"}', b"[[["):
        body = b"[" + b" " * (12 + at) + middle + b"[[1]]"
        assert json_depth(body) == slow_depth(body)


@pytest.mark.parametrize("body", [b"[" * (16 << 20), b'"' * (16 << 20), b"\\" * (16 << 20), b"[]" * (8 << 20)])
def test_depth_takes_no_longer_for_worse_bytes(body):
    began = time.process_time()
    json_depth(body)
    assert time.process_time() - began < 2  # 0.1 s of an idle machine


def test_deep_json_is_refused(server):
    deep = Limits().depth
    assert server.ask(request("/echo", "POST", b"[" * deep + b"]" * deep)).status == 200
    told = server.ask(request("/echo", "POST", b"[" * (deep + 1)))
    assert (told.status, told.code) == (400, "json_too_deep")
    assert server.ask(request("/echo", "POST", b"[" * (8 << 20))).code == "json_too_deep"


# Answers and what is said of them


def test_errors_of_the_router_have_our_shape(server):
    told = server.ask(request("/nothing"))
    assert (told.status, told.code, told.json["error"]["type"]) == (404, "unknown_path", "not_found_error")
    told = server.ask(request("/echo"))
    assert (told.status, told.code, told.headers["allow"]) == (405, "method_not_allowed", "POST")


def test_a_fault_of_ours_is_told_without_what_it_was(server):
    told = server.ask(request("/fail"))
    assert (told.status, told.json["error"]["type"]) == (500, "server_error")
    assert b"secret" not in told.body
    until(lambda: any("Traceback" in line for line in server.details))
    assert server.said("error: a request failed: ValueError, raw_http.py:")
    assert not server.said("secret")


def test_an_answer_that_fails_midway_does_not_look_whole(server):
    with server.connect() as client:
        client.sendall(request("/fail_late"))
        data = b""
        while more := client.recv(1 << 16):
            data += more
    assert b"begun" in data
    assert b"\r\n0\r\n" not in data
    until(lambda: server.said("/fail_late 200 in"))
    assert server.said("/fail_late 200 in")[0].endswith(": not sent to its end")


def test_an_access_line_has_numbers_and_no_text(server):
    server.ask(request("/echo?key=secret", "POST", b'{"prompt": "secret"}'))
    until(lambda: server.said("/echo 200"))
    line = server.said("/echo 200")[-1]
    head, _, numbers = line.partition(" s: ")
    assert head.startswith("POST /echo 200 in 0.")
    assert numbers == "7 + 3 tokens, 2 cached, 1 of 5 drafts right, first after 0.250 s, waited 0.010 s"
    assert not server.said("secret")


def test_a_path_steers_no_terminal(server):
    server.ask(request("/%1b%5b2Ja%0aPOST%20/forged%20200" + "x" * 500))
    until(lambda: server.said("forged"))
    line = server.said("forged")[-1]
    assert line.isprintable()
    assert len(line) < 250


def test_health_and_metrics_are_details(server):
    server.ask(request())
    server.ask(request("/metrics"))
    until(lambda: [line for line in server.details if "/metrics 200" in line])
    assert not server.said("/health 200")


def test_the_server_does_not_tell_what_it_is_made_of(server):
    told = server.ask(request())
    assert "server" not in told.headers
    assert told.headers["x-content-type-options"] == "nosniff"
    assert "date" in told.headers


# Metrics


def numbers(server: Served) -> dict[str, float]:
    told = server.ask(request("/metrics"))
    assert told.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    rows = [line.rpartition(" ") for line in told.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


def test_metrics_count_what_happens():
    with served() as server:
        server.metrics.watch(lambda: 2, lambda: 5, lambda: 4, lambda: 1)
        server.metrics.observe_gap(0.02)
        server.ask(request("/echo", "POST", b"{}"))
        server.ask(request("/echo", "POST", b"{}", Content_Type="text/plain"))
        for path in ("/models/a", "/models/b", "/x", "/y"):
            server.ask(request(path))
        server.ask(b"nonsense\r\n\r\n")
        until(lambda: len(server.said(" in 0.")) == 6)
        found = numbers(server)
    assert found['packlight_requests_total{code="200",route="/echo"}'] == 1
    assert found['packlight_requests_total{code="415",route="/echo"}'] == 1
    assert found['packlight_requests_total{code="200",route="/models/{name:path}"}'] == 2
    assert found['packlight_requests_total{code="404",route="other"}'] == 2
    assert found['packlight_rejected_total{reason="unsupported_media_type"}'] == 1
    assert found['packlight_rejected_total{reason="invalid_http"}'] == 1
    assert found["packlight_request_seconds_count"] == 6
    tokens = [
        found[f"packlight_{kind}_tokens_total"] for kind in ("prompt", "cached", "generated", "draft", "accepted_draft")
    ]
    assert tokens == [7, 2, 3, 5, 1]
    assert found["packlight_time_to_first_token_seconds_sum"] == 0.25
    assert found["packlight_queue_seconds_sum"] == 0.01
    assert found["packlight_inter_token_seconds_count"] == 1
    assert [found[f"packlight_{name}"] for name in ("running", "waiting", "slots", "compiles_total")] == [2, 5, 4, 1]
    assert not [name for name in found if "created" in name]


def test_two_servers_have_their_own_metrics():
    first, second = Metrics(), Metrics()
    first.book("/echo", Account("POST", "/echo", status=200))
    assert b'route="/echo"' in first.text()
    assert b'route="/echo"' not in second.text()


def test_what_may_wait():
    assert (most_waiting(4), most_waiting(16), most_waiting_tokens(4096)) == (32, 64, 65536)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().body = 1  # pyright: ignore[reportAttributeAccessIssue]
