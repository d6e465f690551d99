"""resolver.host: networks of this host, and giving up root in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

from resolver.host import networks_of
from tests.tools import require_root


def test_loopback_is_always_among_them() -> None:
    assert networks_of([]) == (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    assert networks_of(["127.0.0.1", "::1"]) == networks_of([])


def test_a_wildcard_stands_for_every_interface() -> None:
    found = networks_of(["0.0.0.0"])
    assert all(network.version == 4 or network == ip_network("::1/128") for network in found)
    route = subprocess.run(["ip", "-4", "-o", "address"], capture_output=True, text=True, check=False)
    for line in route.stdout.splitlines():
        address = line.split()[3].partition("/")[0]
        assert any(ip_address(address) in network for network in found if network.version == 4), address
        assert networks_of([address])[-1] in found


def test_the_host_itself_may_ask_from_any_of_its_addresses() -> None:
    """Docker's masquerading gives what it asks at docker0 the address of another interface."""
    route = subprocess.run(["ip", "-4", "-o", "address"], capture_output=True, text=True, check=False)
    addresses = [line.split()[3].partition("/")[0] for line in route.stdout.splitlines()]
    for address in addresses:
        assert any(ip_address(address) in network for network in networks_of(["192.0.2.255"]))


CODE = """
import os, sys
sys.path.insert(0, {path!r})
from resolver import host
host._can_read_python = lambda entry: {readable}
host.become({user!r})
print(os.getuid(), os.geteuid(), os.getgid(), os.getgroups())
try:
    os.setuid(0)
    print("root again")
except PermissionError:
    pass
"""


def become(user: str | None, *, readable: bool = True) -> str:
    code = CODE.format(path=str(Path(__file__).parents[2]), user=user, readable=readable)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_root_becomes_nobody_for_good() -> None:
    require_root("to have something to give up")
    for user in (None, "nobody"):
        uid, euid, gid, _ = become(user).strip().split(maxsplit=3)
        assert uid == euid == "65534"
        assert gid != "0"
        assert "root again" not in become(user)


def test_root_stays_root_when_asked_to_or_when_nobody_could_go_on() -> None:
    require_root("to keep something")
    assert become("root").startswith("0 0 ")
    assert become(None, readable=False).startswith("0 0 ")


def test_an_unknown_user_is_named() -> None:
    assert "there is no user 'nobody-knows'" in become("nobody-knows")
