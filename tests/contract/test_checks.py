"""Checks: their endpoints, TTLs that run out, and HTTP and TCP checks against a real server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.subject import Subject
from tests.contract.web import Web
from tests.tools import free_port, wait_until

REGISTER = "/v1/agent/check/register"
UNKNOWN = 'Unknown check ID "{}". Ensure that the check ID is passed, not the check name.'
NO_TTL = 'CheckID "{}" does not have associated TTL'


def _state(agent: Subject, check_id: str) -> tuple[str, str]:
    check = agent.check(check_id)
    return check["Status"], check["Output"]


# --- endpoints


def test_reports_on_a_ttl_check(agent: Subject) -> None:
    agent.register("web", Check={"TTL": "60s"})
    assert _state(agent, "service:web") == ("critical", "")
    for path, body, state in [
        ("pass/service:web?note=fine", None, ("passing", "fine")),
        ("warn/service:web?note=so+so", None, ("warning", "so so")),
        ("fail/service:web", None, ("critical", "")),
        ("update/service:web", {"Status": "passing", "Output": "good"}, ("passing", "good")),
        ("update/service:web", {"status": "warning", "output": "lower"}, ("warning", "lower")),
        ("pass/service:web", None, ("passing", "")),
    ]:
        agent.put(f"/v1/agent/check/{path}", body)
        assert _state(agent, "service:web") == state


@pytest.mark.parametrize("verb", ["pass", "warn", "fail", "update"])
def test_a_report_on_an_unknown_check(agent: Subject, verb: str) -> None:
    answer = agent.ask("PUT", f"/v1/agent/check/{verb}/none", {"Status": "passing"})
    assert (answer.status, answer.text) == agent.by_release(
        consul_1_8=(500, NO_TTL.format("none")), current=(404, UNKNOWN.format("none"))
    )


def test_a_report_on_a_check_without_ttl(agent: Subject) -> None:
    agent.register("web", Check={"TCP": "127.0.0.1:1", "Interval": "60s"})
    answer = agent.ask("PUT", "/v1/agent/check/pass/service:web")
    assert (answer.status, answer.text) == (500, NO_TTL.format("service:web"))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (None, "Request decode failed: EOF"),
        ({}, "Invalid check status: ''"),
        ({"Status": "bogus"}, "Invalid check status: 'bogus'"),
        ({"Status": "passing", "X": 1}, 'Request decode failed: json: unknown field "X"'),
    ],
    ids=str,
)
def test_refuses_a_report(agent: Subject, body: Any, text: str) -> None:
    agent.register("web", Check={"TTL": "60s"})
    answer = agent.ask("PUT", "/v1/agent/check/update/service:web", body)
    assert (answer.status, answer.text) == (400, text)


def test_cuts_long_outputs(agent: Subject) -> None:
    agent.register("web", Check={"TTL": "60s"})
    agent.put("/v1/agent/check/update/service:web", {"Status": "passing", "Output": "y" * 5000})
    assert _state(agent, "service:web") == ("passing", "y" * 4096 + " ... (captured 4096 of 5000 bytes)")


def test_half_of_a_surrogate_pair_is_replaced(agent: Subject) -> None:
    """JSON can write it, UTF-8 cannot."""
    agent.register("web", Check={"TTL": "60s"})
    raw = b'{"Status": "passing", "Output": "a\\ud800b"}'
    agent.put("/v1/agent/check/update/service:web", raw)
    assert _state(agent, "service:web") == ("passing", "a\ufffdb")


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (None, 400, "Request decode failed: EOF"),
        ({}, 400, "Missing check name"),
        ({"ID": "c", "TTL": "10s"}, 400, "Missing check name"),
        ({"Name": "c"}, 400, "Invalid check: TTL must be > 0 for TTL checks"),
        ({"Name": "c", "TTL": "10"}, 400, 'Request decode failed: time: missing unit in duration "10"'),
        ({"Name": "c", "TTL": "10s", "Status": "x"}, 400, "Bad check status"),
        ({"Name": "c", "TTL": "9s", "Interval": "9s"}, 400,
         "Invalid check: Interval and TTL cannot both be specified"),
        ({"Name": "c", "TTL": "10s", "CheckID": "c"}, 400,
         'Request decode failed: json: unknown field "CheckID"'),
        ({"Name": "c", "Port": 5}, 400, 'Request decode failed: json: unknown field "Port"'),
        ({"Name": "c", "Args": ["true"], "Interval": "10s"}, 500,
         "Scripts are disabled on this agent from remote calls; "
         "to enable, configure 'enable_script_checks' to true"),
    ],
    ids=str,
)  # fmt: skip
def test_refuses_a_check(agent: Subject, body: Any, status: int, text: str) -> None:
    answer = agent.ask("PUT", REGISTER, body)
    assert (answer.status, answer.text) == (status, text)


def test_refuses_a_check_of_an_unknown_service(agent: Subject) -> None:
    answer = agent.ask("PUT", REGISTER, {"Name": "c", "TTL": "10s", "ServiceID": "none"})
    assert (answer.status, answer.text) == (
        agent.by_release(consul_1_8=500, current=404),
        'ServiceID "none" does not exist',
    )


def test_registers_checks_of_the_node_and_of_a_service(agent: Subject) -> None:
    agent.register("web", Tags=["t"])
    agent.put(REGISTER, {"Name": "of node", "TTL": "60s"})
    agent.put(REGISTER, {"name": "of web", "id": "w", "ttl": "60s", "service_id": "web", "notes": "n"})
    node, service = agent.check("of node"), agent.check("w")
    assert (node["ServiceID"], node["ServiceTags"]) == ("", [])
    assert (service["Name"], service["Notes"]) == ("of web", "n")
    assert (service["ServiceID"], service["ServiceName"], service["ServiceTags"]) == ("web", "web", ["t"])
    assert [check["CheckID"] for check in agent.get("/v1/health/service/web")[0]["Checks"]] == [
        "of node",
        "serfHealth",
        "w",
    ]


def test_deregisters_a_check(agent: Subject) -> None:
    agent.put(REGISTER, {"Name": "c", "TTL": "60s"})
    agent.put("/v1/agent/check/deregister/c")
    assert agent.get("/v1/agent/checks") == {}
    again = agent.ask("PUT", "/v1/agent/check/deregister/c")
    assert (again.status, again.text) == agent.by_release(
        consul_1_8=(200, ""), current=(404, UNKNOWN.format("c"))
    )


# --- TTL


def test_a_ttl_runs_out(agent: Subject) -> None:
    agent.register("web", Check={"TTL": "300ms"})
    agent.put("/v1/agent/check/pass/service:web?note=fine")
    said = " (last output before timeout follows): fine"
    wait_until(lambda: _state(agent, "service:web") == ("critical", f"TTL expired{said}"))
    agent.put("/v1/agent/check/pass/service:web")
    wait_until(lambda: _state(agent, "service:web") == ("critical", "TTL expired"))
    # What the agent finds by itself reaches the catalogue a moment later than the agent's own view.
    wait_until(lambda: agent.get("/v1/health/service/web?passing") == [])


def test_each_report_starts_the_ttl_anew(agent: Subject) -> None:
    agent.register("kept", Check={"TTL": "500ms"})
    agent.register("left", Check={"TTL": "150ms"})
    agent.put("/v1/agent/check/pass/service:kept")
    for _ in range(4):  # longer, in all, than the TTL of "kept"
        agent.put("/v1/agent/check/pass/service:left")
        wait_until(lambda: _state(agent, "service:left")[0] == "critical")
        assert _state(agent, "service:kept")[0] == "passing"
        agent.put("/v1/agent/check/pass/service:kept")


# --- HTTP and TCP

EVERY_SECOND = {"Interval": "100ms"}  # a second is the least that Consul does


def test_http_checks(agent: Subject, web: Web) -> None:
    url = f"http://127.0.0.1:{web.port}"
    shut = free_port()
    checks: dict[str, tuple[dict[str, Any], str, str]] = {
        # name: definition, status, output
        "ok": ({}, "passing", f"HTTP GET {url}/ok: 200 OK Output: page ok"),
        "204": ({}, "passing", f"HTTP GET {url}/204: 204 No Content Output: "),
        "429": ({}, "warning", f"HTTP GET {url}/429: 429 Too Many Requests Output: page 429"),
        "404": ({}, "critical", f"HTTP GET {url}/404: 404 Not Found Output: page 404"),
        "500": ({}, "critical", f"HTTP GET {url}/500: 500 Internal Server Error Output: page 500"),
        "300": ({}, "critical", f"HTTP GET {url}/300: 300 Multiple Choices Output: page 300"),
        "moved": ({}, "passing", f"HTTP GET {url}/moved: 200 OK Output: page target"),
        "kept": (
            {"Method": "PUT", "Body": "q"},
            "passing",
            f"HTTP PUT {url}/kept: 200 OK Output: page target",
        ),
        "big": ({}, "passing", f"HTTP GET {url}/big: 200 OK Output: {('0123456789' * 500)[-4096:]}"),
        "head": ({"Method": "HEAD"}, "passing", f"HTTP HEAD {url}/head: 200 OK Output: "),
        "post": (
            {"Method": "POST", "Body": "hello", "Header": {"X-A": ["1"], "Host": ["elsewhere"]}},
            "passing",
            f"HTTP POST {url}/post: 200 OK Output: page post",
        ),
        "slow": (
            {"Timeout": "400ms"},
            "critical",
            f'Get "{url}/slow": context deadline exceeded (Client.Timeout exceeded while awaiting headers)',
        ),
        "refused": (
            {"HTTP": f"http://127.0.0.1:{shut}/"},
            "critical",
            f'Get "http://127.0.0.1:{shut}/": dial tcp 127.0.0.1:{shut}: connect: connection refused',
        ),
        "https": (
            {"HTTP": f"https://127.0.0.1:{web.port}/", "TLSSkipVerify": True},
            "critical",
            f'Get "https://127.0.0.1:{web.port}/": *',  # each TLS library has its own words
        ),
        "nourl": ({"HTTP": "nourl"}, "critical", 'Get "nourl": unsupported protocol scheme ""'),
        "ftp": (
            {"HTTP": "ftp://127.0.0.1/"},
            "critical",
            'Get "ftp://127.0.0.1/": unsupported protocol scheme "ftp"',
        ),
    }  # fmt: skip
    for name, (definition, _, _) in checks.items():
        agent.register(name, Check={"HTTP": f"{url}/{name}", **EVERY_SECOND, **definition})
    for name, (_, status, output) in checks.items():
        wait_until(lambda name=name: _state(agent, f"service:{name}")[1] != "")  # type: ignore[misc]
        state = _state(agent, f"service:{name}")
        if output.endswith("*"):
            assert (state[0], state[1][: len(output) - 1]) == (status, output[:-1])
        else:
            assert state == (status, output)

    seen = {(method, path): (headers, body) for method, path, headers, body in list(web.seen)}
    headers, _ = seen["GET", "/ok"]
    assert headers["Host"] == f"127.0.0.1:{web.port}"
    assert headers["User-Agent"] == "Consul Health Check"
    assert headers["Accept"] == "text/plain, text/*, */*"
    headers, body = seen["POST", "/post"]
    assert (headers["Host"], headers["X-A"], body) == ("elsewhere", "1", "hello")
    assert seen["PUT", "/target"][1] == "q"


def test_tcp_checks(agent: Subject, web: Web) -> None:
    shut = free_port()
    checks = {
        "open": (f"127.0.0.1:{web.port}", "passing", f"TCP connect 127.0.0.1:{web.port}: Success"),
        "named": (f"localhost:{web.port}", "passing", f"TCP connect localhost:{web.port}: Success"),
        "shut": (f"127.0.0.1:{shut}", "critical", f"dial tcp 127.0.0.1:{shut}: connect: connection refused"),
        "noport": ("noport", "critical", "dial tcp: address noport: missing port in address"),
    }
    for name, (address, _, _) in checks.items():
        agent.register(name, Check={"TCP": address, **EVERY_SECOND})
    for name, (_, status, output) in checks.items():
        wait_until(lambda name=name: _state(agent, f"service:{name}")[1] != "")  # type: ignore[misc]
        assert _state(agent, f"service:{name}") == (status, output)


def test_runs_checks_again_and_again_until_they_go(agent: Subject, web: Web) -> None:
    def passing() -> int:
        return len(agent.get("/v1/health/service/web?passing"))

    def runs(path: str) -> int:
        return [seen_path for _, seen_path, _, _ in list(web.seen)].count(path)

    url = f"http://127.0.0.1:{web.port}"
    agent.register("web", Check={"HTTP": f"{url}/changing", **EVERY_SECOND})
    agent.register("gone", Check={"HTTP": f"{url}/gone", **EVERY_SECOND})
    wait_until(lambda: passing() == 1 and runs("/gone") > 0)
    agent.deregister("gone")
    web.status = 503
    wait_until(lambda: passing() == 0)
    runs_of_gone = runs("/gone")  # one may have been under way when it was deregistered
    agent.register("web", Port=1, Check={"HTTP": f"{url}/changing", **EVERY_SECOND})
    assert _state(agent, "service:web")[0] == "critical", "registering again is no reason to be healthy"
    web.status = 200
    wait_until(lambda: passing() == 1)
    assert runs("/gone") == runs_of_gone


def test_the_health_of_the_agents_services(agent: Subject) -> None:
    def health(name: str = "web") -> tuple[int, str]:
        answer = agent.ask("GET", f"/v1/agent/health/service/name/{name}?format=text")
        return answer.status, answer.text

    assert health() == (404, "ServiceName web Not Found")
    agent.register("web", ID="1", Check={"TTL": "60s", "Status": "passing"})
    assert health() == (200, "passing")
    assert health("WEB")[0] == 404
    agent.put("/v1/agent/check/warn/service:1")
    assert health() == (429, "warning")
    agent.register("web", ID="2")
    assert health() == (429, "warning")
    agent.put("/v1/agent/service/maintenance/2?enable=true")
    assert health() == (503, "maintenance")
    agent.put("/v1/agent/service/maintenance/2?enable=false")
    agent.put("/v1/agent/check/fail/service:1")
    assert health() == (503, "critical")
    agent.deregister("1")
    assert health() == (200, "passing")
    agent.put("/v1/agent/check/register", {"Name": "of the node", "TTL": "60s"})
    assert health() == (503, "critical")

    answer = agent.ask("GET", "/v1/agent/health/service/name/web")
    assert (answer.status, answer.json[0]["AggregatedStatus"]) == (503, "critical")
    assert answer.json[0]["Service"]["ID"] == "2"
    assert [check["CheckID"] for check in answer.json[0]["Checks"]] == ["of the node"]
    by_id = agent.ask("GET", "/v1/agent/health/service/id/2")
    assert (by_id.status, by_id.json["AggregatedStatus"]) == (503, "critical")
    missing = agent.ask("GET", "/v1/agent/health/service/id/none")
    assert (missing.status, missing.json) == (
        404,
        {"AggregatedStatus": "critical", "Service": None, "Checks": None},
    )
