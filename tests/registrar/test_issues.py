"""Every issue of Registrator's that a registrar should learn from has a test that carries its number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
NAME = re.compile(r"^def test_((?:\d+_)+)", re.MULTILINE)

ISSUES: dict[str, tuple[int, ...]] = {
    "dead services after a reboot": (184, 208, 308, 277),
    "a container's id as the hostname in ids": (181, 312, 622, 644, 475),
    "two registrars of one hostname": (505, 202),
    "a missed event": (325, 339),
    "what starts while the registrar starts": (73, 87),
    "a closed event stream": (377,),
    "a Consul that restarts and forgets": (81, 334),
    "a Consul that is not there yet": (264, 327, 440, 593),
    "traffic during the shutdown": (127, 685, 122, 431, 457),
    "kill -s HUP": (248,),
    "resyncs that write": (153, 449),
    "a crash that stays visible": (82, 128, 646),
    "when the registrar ends": (1, 655),
    "Docker's HEALTHCHECK": (578,),
    "checks inside the container": (414, 338, 424),
    "script checks": (637, 687, 233),
    "several checks": (430,),
    "initial status": (342,),
    "a container's address with the host's port": (337, 291, 409, 477),
    "the choice of the network": (498, 529, 316, 293),
    "loopback": (272, 185),
    "no port, or none published": (38, 42, 465, 487, 576),
    "host mode": (608, 152),
    "the suffix": (311, 437, 270, 492),
    "several names": (328, 653),
    "IPv6": (691, 256, 598, 229, 321),
    "Swarm": (443, 567, 607, 588),
    "tag override and mesh": (347, 664),
    "checks in Meta": (619, 620),
    "opt-in, filters, ranges": (298, 462, 198, 170, 302),
    "tags by template": (677, 503, 396),
    "rename": (408, 224),
    "ACLs and TLS": (135, 411, 538, 565, 604),
    "an agent of another host": (59, 243, 551),
    "another container's network": (506, 675),
    "Podman": (712,),
    "memory": (537,),
}


@pytest.fixture(scope="module")
def tested() -> set[str]:
    files = [path for folder in ("registrar", "e2e") for path in (TESTS / folder).glob("test_*.py")]
    names = [found for path in files for found in NAME.findall(path.read_text())]
    return {number for name in names for number in name.split("_")}


@pytest.mark.parametrize("about", ISSUES)
def test_an_issue_has_a_test(about: str, tested: set[str]) -> None:
    assert {str(issue) for issue in ISSUES[about]} <= tested
