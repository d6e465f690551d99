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


NETWORKS = """
mount -t sysfs sysfs /sys
ip link set lo up
ip link add lan type veth peer name far; ip addr add 192.168.1.5/24 dev lan; ip link set lan up
ip addr add 192.168.1.7/24 dev lan; ip addr add 203.0.113.5/28 dev lan label lan:1
echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind
ip link add br0 type bridge; ip addr add 10.1.0.5/16 dev br0; ip link set br0 up
ip route add default via 10.1.0.1
ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up
ip addr add fd00:17::1/64 dev docker0 nodad
exec {python} -c '{code}'
"""
ASK = """
import subprocess, sys
from ipaddress import ip_address
sys.path.insert(0, "{path}")
from resolver.host import Inhabitants, networks_of
now = 0.0
here = Inhabitants(lambda: now)
def show(*addresses): print(*(int(here.has(ip_address(one))) for one in addresses))
show("127.0.0.1", "192.168.1.5", "192.168.1.7", "203.0.113.5", "10.1.0.5", "172.17.0.1", "fd00:17::1")
show("172.17.0.2", "172.17.255.254", "fd00:17::2")
show("192.168.1.6", "10.1.0.6", "172.18.0.2", "fd00:18::2", "224.0.0.1", "0.0.0.0", "::")
subprocess.run("ip link add new type bridge; ip addr add 172.18.0.1/16 dev new", shell=True, check=True)
show("172.18.0.2")
now = 1.0
show("172.18.0.2", "192.168.1.6")
print(*networks_of(["203.0.113.5"])[2:])
"""


def test_on_this_host_are_its_own_addresses_and_what_is_behind_its_bridges() -> None:
    require_root("a network namespace with bridges")
    code = ASK.format(path=Path(__file__).parents[2])
    shell = NETWORKS.format(python=sys.executable, code=code)
    unshare = ["unshare", "--net", "--mount", "sh", "-ec", shell]
    done = subprocess.run(unshare, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:6] == [
        "1 1 1 1 1 1 1",  # the host itself
        "1 1 1",  # containers
        "0 0 0 0 0 0 0",  # neighbours on the LAN, behind the bridge to the world, and nobody
        "0",  # looked at a moment ago
        "1 0",  # and found a moment later
        "203.0.113.0/28",
    ], done.stderr


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
