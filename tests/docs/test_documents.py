"""Every Python snippet of README and docs/ runs, and every command that they show is one that exists.

The snippets run in order, one name space a page, beside an embedded agent that knows the services they ask
for. What the shell snippets do to whole hosts, tests/e2e does on whole hosts.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import discovery
import discovery.client
from discovery.agent import Agent
from discovery.backends import open_backend
from discovery.config import Config
from discovery.model import Registration, ServiceID, ServiceName

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("discovery", "registrar", "resolver")
MADE = re.compile(r"^([a-z][a-z-]*):.*##", re.MULTILINE)


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"Hello World\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hello() -> Iterator[int]:
    """A server that says hello; gives its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An embedded agent that CONSUL_HTTP_ADDR names, with two instances of the service the pages speak of."""
    with ExitStack() as stack:
        ports = [stack.enter_context(hello()) for _ in range(2)]
        with Agent(http=("127.0.0.1", 0)) as agent:
            backend = open_backend(agent.uri, Config())
            for n, (port, tags) in enumerate(zip(ports, [("v1",), ("v2",)], strict=True)):
                backend.register(
                    Registration(
                        ServiceID(f"python-micro-service-{n}"),
                        ServiceName("python-micro-service"),
                        port=port,
                        tags=tags,
                    )
                )
            backend.close()
            monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.http[0] + f":{agent.http[1]}")
            monkeypatch.setattr(discovery.client, "_default", None)
            yield
            if discovery.client._default is not None:
                discovery.client._default.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_snippets_run(page: Path, services: None) -> None:
    document = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], encoding="utf-8").parse(page)
    for example in document.examples():
        example.evaluate()


def shell_lines(page: Path) -> Iterator[str]:
    """The commands of the page's console blocks, continued lines joined."""
    for block in re.findall(
        r"^```(?:console|shell|sh|bash)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    ):
        for line in block.replace("\\\n", " ").splitlines():
            text = line.removeprefix("$ ").strip()
            if text and not text.startswith("#"):
                yield text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    targets = set(MADE.findall((ROOT / "Makefile").read_text()))
    asked: set[tuple[str, ...]] = set()
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert words[1] in targets, f"{page.name}: there is no {line!r}"
        # At the beginning, or as what a container of our image shall run.
        for before, program, after in zip(["portcall", *words], words, [*words[1:], ""], strict=False):
            if program in PROGRAMS and before == "portcall":
                asked.add((program, *([after] if after and not after.startswith("-") else [])))
    for program, *command in asked:
        words = [str(Path(sys.executable).parent / program), *command, "--help"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{page.name} shows {program} {command}: {done.stderr}"


def test_the_readme_shows_the_two_commands_on_lines_of_their_own() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert "make demo" in lines
    assert "make test" in lines
