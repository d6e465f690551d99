#!/usr/bin/env python3
"""Three hosts on one Linux machine: dockerd, Consul, registrar and resolver on each, for real.

    sudo examples/three-hosts/lab.py up                 bring them up; says what to try next
    sudo examples/three-hosts/lab.py on host-3 CMD ...  run a command there; without one, a shell
    sudo examples/three-hosts/lab.py status
    sudo examples/three-hosts/lab.py down               leaves nothing behind

    --state DIR   where a lab keeps its files (default /var/lib/portcall-lab); another DIR is another lab

The design documents use three Vagrant machines. Here a host is a process with namespaces of its own:

    +- host-1 -------------------+  +- host-2 ----------+  +- host-3 ----------+
    | net: eth0 172.28.128.3     |  | eth0 172.28.128.4 |  | eth0 172.28.128.5 |
    |      docker0 172.17.0.1    |  | docker0 ...       |  | docker0 ...       |
    | mount: /run, resolv.conf   |  |                   |  |                   |
    | uts: hostname host-1       |  |                   |  |                   |
    | pid: dockerd, consul, ...  |  |                   |  |                   |
    +------------|---------------+  +---------|---------+  +---------|---------+
              +--+-- switch: a bridge, and an upstream DNS server on 172.28.128.2 --+

so every tool finds its defaults there (/var/run/docker.sock, the hostname, port 53), and nothing of it shows
on the machine outside: no bridge, no address, no firewall rule, no mount. Laws:

- The process table is the truth. A host is up while its first process (`lab.py hold DIR`) lives; there is no
  pid file that could lie. The kernel ends everything on a host when that process is killed, which is all that
  `down` does before it removes the files.
- `up` after a failed or interrupted `up` starts from nothing; `up` on a lab that is up changes nothing.
- The hosts have no way out: all their traffic stays inside.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import functools
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

__all__ = ["DOCKER0", "Host", "Lab", "LabError", "UPSTREAM_NAME", "UPSTREAM_ADDRESS"]

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "portcall"
DEFAULT_STATE = Path("/var/lib/portcall-lab")

ADDRESSES = {"host-1": "172.28.128.3", "host-2": "172.28.128.4", "host-3": "172.28.128.5"}
SWITCH_ADDRESS = "172.28.128.2"
DOCKER0 = "172.17.0.1"

# What the upstream DNS server knows (RFC 2606 and RFC 5737: names and addresses reserved for documentation).
UPSTREAM_NAME = "www.example.com"
UPSTREAM_ADDRESS = "192.0.2.80"

COMMANDS = (
    *("dockerd", "docker", "ip", "iptables", "nsenter", "unshare", "setsid"),
    *("debootstrap", "busybox", "dnsmasq", "make", "tar"),
)
SUITE = "bookworm"  # the Debian release the images are made from
BASE_IMAGE = "lab/debian"
IMAGES = ("busybox", "portcall", "python-micro-service")

_MARK = "three-hosts"  # a file that says: this directory is a lab's, to be emptied
_CLONE_NEWNET = 0x40000000  # linux/sched.h
# A proxy that the environment names is outside, and Consul is inside.
_open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab could not do what was asked; the message says what to do about it."""


class Node:
    """A process with namespaces of its own, and what runs in them. `name` is its hostname."""

    def __init__(self, name: str, address: str, directory: Path) -> None:
        self.name = name
        self.address = address
        self.directory = directory
        self._pid: int | None = None

    # Life -------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The first process of this node.

        Raises:
            LabError: it is not up.
        """
        if self._pid is None:
            self._pid = self.find()
        if self._pid is None:
            raise LabError(f"{self.name} is not up (no process holds {self.directory}); try: lab.py up")
        return self._pid

    def find(self) -> int | None:
        """The first process of this node, or None while it is down."""
        arguments = [b"hold", os.fsencode(self.directory)]
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().split(b"\0")[:-1]
                if command[2:] == arguments:  # after python and lab.py, and not after unshare as well
                    return int(entry.name)
        return None

    def power_on(self) -> None:
        """Start the first process and wait until its namespaces are ready."""
        (self.directory / "run").mkdir(parents=True)
        (self.directory / "resolv.conf").write_text(f"nameserver {SWITCH_ADDRESS}\n")
        unshare = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        hold = [sys.executable, str(Path(__file__).resolve()), "hold", str(self.directory)]
        # The shell lets go of it: the lab outlives the program that brought it up.
        script = 'exec setsid "$@" </dev/null >"$0" 2>&1 &'
        subprocess.run(["sh", "-c", script, str(self.directory / "hold.log"), *unshare, *hold], check=True)
        ready = self.directory / "run" / "ready"
        wait_for(ready.exists, 10, f"{self.name} to be ready", lambda: self.log("hold"))

    def power_off(self) -> None:
        """Kill the first process; the kernel ends every other one of this node with it."""
        while (pid := self.find()) is not None:
            os.kill(pid, signal.SIGKILL)
            gone = functools.partial(_is_gone, pid)
            wait_for(gone, 20, f"the end of {self.name}")
        self._pid = None

    # What runs there --------------------------------------------------------------------------------------

    def command(self, *command: str) -> list[str]:
        """The command line that runs `command` on this node."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--pid", "--", *command]

    def on(self, *command: str, timeout: float = 60.0, check: bool = True) -> str:
        """Run a command on this node; what it printed.

        Raises:
            LabError: it failed, and `check` is set; with everything it printed.
            subprocess.TimeoutExpired: it took longer than `timeout` seconds.
        """
        return run(self.command(*command), timeout=timeout, check=check)

    def spawn(self, name: str, *command: str) -> None:
        """Start a daemon on this node, logging to NAME.log; `stop` ends it."""
        script = '"$@" </dev/null >>"$0" 2>&1 & echo $!'
        pid = self.on("sh", "-c", script, str(self.directory / f"{name}.log"), *command)
        (self.directory / f"{name}.pid").write_text(pid)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM, timeout: float = 30.0) -> None:
        """End a daemon started by `spawn` and wait until it is gone."""
        pid = (self.directory / f"{name}.pid").read_text().strip()
        self.on("kill", f"-{number.value}", pid)
        wait_for(
            lambda: self.on("sh", "-c", f"kill -0 {pid} 2>/dev/null || echo gone", check=False) == "gone\n",
            timeout,
            f"{name} on {self.name} to end",
        )

    def log(self, name: str) -> str:
        """The last lines of a daemon's log, for an error message."""
        lines = (self.directory / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-20:])

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Inside this block, the sockets that the calling thread opens are this node's.

        Other threads are not affected, and neither are sockets that exist already. A thread started inside
        inherits the network for good, as does a child process.
        """
        namespace = Path(f"/proc/{self.pid}/ns/net")
        with Path("/proc/thread-self/ns/net").open() as own, namespace.open() as theirs:
            _setns(theirs.fileno())
            try:
                yield
            finally:
                _setns(own.fileno())


class Host(Node):
    """One of the three: a node with dockerd and a Consul server."""

    @property
    def socket(self) -> str:
        """Docker's socket, as seen from outside. On the host itself it is /var/run/docker.sock."""
        return f"unix://{self.directory}/run/docker.sock"

    # Docker -----------------------------------------------------------------------------------------------

    def docker(self, *arguments: str, timeout: float = 60.0, check: bool = True, stderr: bool = False) -> str:
        """Run the docker command line against this host's daemon; what it printed, less the last newline.

        Args:
            arguments: of the docker command.
            timeout: seconds.
            check: raise LabError when it fails.
            stderr: include what it printed there, in its place; `docker logs` keeps the two apart.
        """
        command = ["docker", *arguments]
        environment = self.docker_environment
        return run(command, env=environment, timeout=timeout, check=check, stderr=stderr).rstrip("\n")

    @property
    def docker_environment(self) -> dict[str, str]:
        """The environment in which the docker command line speaks to this host, whatever the user's says."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        # The classic builder: a BuildKit client asks a registry about base images that only exist here.
        return {
            **ours,
            "DOCKER_HOST": self.socket,
            "DOCKER_CONFIG": str(self.directory),
            "DOCKER_BUILDKIT": "0",
        }

    def published(self, container: str, port: int) -> int:
        """The host port on which a container's port is published, over IPv4: IPv6 may have another."""
        ends = self.docker("port", container, str(port)).splitlines()
        return next(int(end.rpartition(":")[2]) for end in ends if "." in end)

    def start_dockerd(self) -> None:
        """Start dockerd and wait until it answers. Its flags only keep its files where `down` finds them."""
        self.spawn(
            "dockerd",
            "dockerd",
            f"--data-root={self.directory}/docker",
            f"--cgroup-parent=/{cgroup(self.directory.parent)}/{self.name}",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            "--log-level=warn",
        )
        answers = functools.partial(self.docker, "version", "--format={{.Server.Version}}", check=False)
        wait_for(answers, 30, f"dockerd on {self.name} to answer; it printed:", lambda: self.log("dockerd"))

    # Consul -----------------------------------------------------------------------------------------------

    def start_consul(self) -> None:
        """Start the Consul server of this host; it joins the others by itself, whichever is first."""
        binary = run([str(ROOT / "tools" / "get-consul")], timeout=1200).strip()
        config = self.directory / "consul.json"
        # Elections in 1 s instead of 5: these servers are on one machine, not across a wide-area link.
        config.write_text(json.dumps({"performance": {"raft_multiplier": 1}, "disable_update_check": True}))
        self.spawn(
            "consul",
            binary,
            "agent",
            "-server",
            f"-bootstrap-expect={len(ADDRESSES)}",
            f"-node={self.name}",
            # Always the same, so that a server which lost its files comes back as itself, not as an impostor.
            f"-node-id={uuid.uuid5(uuid.NAMESPACE_DNS, self.name)}",
            f"-bind={self.address}",
            f"-advertise={self.address}",
            "-client=0.0.0.0",
            f"-data-dir={self.directory}/consul",
            f"-config-file={config}",
            "-retry-interval=1s",
            *(f"-retry-join={address}" for address in ADDRESSES.values() if address != self.address),
        )

    def consul(self, path: str, method: str = "GET", body: object = None, timeout: float = 10.0) -> Any:
        """One request to this host's agent, made on this host: the JSON it answers, or None.

        Raises:
            urllib.error.HTTPError: any status but 2xx.
            OSError: nothing answers.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:8500{path}", data, method=method)
        with self.network(), _open_url(request, timeout=timeout) as response:
            text = response.read()
        return json.loads(text) if text.strip() else None

    def has_leader(self) -> bool:
        """Whether this host's agent accepts writes."""
        try:
            return bool(self.consul("/v1/status/leader", timeout=1.0))
        except OSError:
            return False

    def wait_for_leader(self) -> None:
        """Wait until this host's agent is part of a cluster that can answer."""
        what = f"the Consul cluster to elect a leader; {self.name} printed:"
        wait_for(self.has_leader, 60, what, lambda: self.log("consul"))

    # Ours -------------------------------------------------------------------------------------------------
    #
    # `--restart always`, not `unless-stopped`: when dockerd comes back after a crash, it ends the containers
    # that survived it, counts them as stopped by the user, and does not start those again.

    def start_registrar(self) -> None:
        """Start the registrar by the walkthrough's line: Registrator's own, but for the image's name."""
        self.docker(
            *shlex.split(
                "run -d --name registrator -h registrator --restart always"
                " -v /var/run/docker.sock:/tmp/docker.sock"
                f" portcall -cleanup -resync 30 consul://{self.address}:8500"
            )
        )

    def start_resolver(self) -> None:
        """Start the resolver on docker0; its upstream is the one in the host's /etc/resolv.conf."""
        self.docker(
            *shlex.split(
                "run -d --name resolver --net host --restart always"
                f" portcall resolver run --listen {DOCKER0}:53 --consul http://127.0.0.1:8500"
            )
        )
        wait_for(
            self.resolver_listens,
            30,
            f"the resolver of {self.name} to listen; it printed:",
            lambda: self.docker("logs", "--tail", "20", "resolver", stderr=True),
        )

    def resolver_listens(self) -> bool:
        """Whether something accepts connections on docker0's port 53."""
        try:
            with self.network(), socket.create_connection((DOCKER0, 53), timeout=1.0):
                return True
        except OSError:
            return False


class Lab:
    """The three hosts and the switch between them, with all their files under one directory."""

    def __init__(self, state: Path = DEFAULT_STATE) -> None:
        self.state = state.absolute()
        self.switch = Node("switch", SWITCH_ADDRESS, self.state / "switch")
        self.hosts = [Host(name, address, self.state / name) for name, address in ADDRESSES.items()]

    @property
    def is_up(self) -> bool:
        """Whether `up` has come to its end here and every host lives."""
        return (self.state / "complete").exists() and all(node.find() for node in (self.switch, *self.hosts))

    def up(self, say: Callable[[str], object] = lambda line: None) -> None:
        """Bring everything up; returns once each part answers. On failure everything is taken down again.

        Args:
            say: called with a line of progress now and then.

        Raises:
            LabError: something is missing or did not start; with what it logged.
        """
        check_machine()
        with self._exclusively():
            if self.is_up:
                return
            self._power_off()
            try:
                self._build(say)
                (self.state / "complete").touch()
            except BaseException:
                self._remove()
                raise

    def down(self) -> None:
        """Stop everything and remove every trace. Also after a failed `up`; nothing there is fine, too."""
        if os.geteuid() != 0:
            raise LabError("the lab belongs to root; try with sudo")
        # Processes may hold a directory that somebody has already removed.
        if self.state.exists() or any(node.find() for node in (self.switch, *self.hosts)):
            with self._exclusively():
                self._remove()

    # Steps ------------------------------------------------------------------------------------------------

    def _build(self, say: Callable[[str], object]) -> None:
        if not base_tarball().exists():
            say("making a base image with debootstrap (once)")
            make_base_tarball()

        say("starting three hosts: dockerd and Consul on each")
        self.switch.power_on()
        self.switch.on("ip", "link", "add", "br0", "type", "bridge")
        self.switch.on("ip", "address", "add", f"{SWITCH_ADDRESS}/24", "dev", "br0")
        self.switch.on("ip", "link", "set", "br0", "up")
        self._start_upstream()
        for host in self.hosts:
            host.power_on()
            self._plug_in(host)
            host.start_consul()
        in_parallel(Host.start_dockerd, self.hosts)

        say("making the images")
        first, *others = self.hosts
        make_images(first)
        in_parallel(lambda host: copy_images(first, host), others)

        for host in self.hosts:
            host.wait_for_leader()
        say("starting the registrar and the resolver on each host")
        in_parallel(Host.start_registrar, self.hosts)
        in_parallel(Host.start_resolver, self.hosts)

    def _plug_in(self, host: Host) -> None:
        """A cable from the switch to `host`."""
        # In the switch's network, but not among its processes: the kernel looks the pid up in the caller's.
        in_switch = ["nsenter", f"--target={self.switch.pid}", "--net", "--"]
        peer = ["peer", "name", "eth0", "netns", str(host.pid)]
        run([*in_switch, "ip", "link", "add", host.name, "type", "veth", *peer])
        run([*in_switch, "ip", "link", "set", host.name, "master", "br0", "up"])
        host.on("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.on("ip", "link", "set", "eth0", "up")

    def _start_upstream(self) -> None:
        """A DNS server that stands for the rest of the world: it knows one name, and denies all others."""
        self.switch.spawn(
            "dnsmasq",
            *shlex.split(
                "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root"
                f" --listen-address={SWITCH_ADDRESS} --bind-interfaces"
                f" --host-record={UPSTREAM_NAME},{UPSTREAM_ADDRESS} --address=/#/"
            ),
        )

    def _power_off(self) -> None:
        """End every process, and remove every file but the mark that makes the directory ours."""
        for node in (*self.hosts, self.switch):
            node.power_off()
        remove_cgroups(cgroup(self.state))
        for entry in self.state.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != _MARK:
                entry.unlink()

    def _remove(self) -> None:
        self._power_off()
        (self.state / _MARK).unlink()
        self.state.rmdir()

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Make the state directory if need be, and hold it against another `up` or `down`."""
        self.state.mkdir(parents=True, exist_ok=True)
        if any(self.state.iterdir()) and not (self.state / _MARK).exists():
            raise LabError(f"{self.state} has other files in it; --state wants a directory of the lab's own")
        (self.state / _MARK).touch()
        handle = os.open(self.state, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LabError(f"another lab.py is bringing {self.state} up or down; wait for it") from None
            yield
        finally:
            os.close(handle)


# Images ---------------------------------------------------------------------------------------------------


def base_tarball() -> Path:
    """Debian with python3, as a file system; made once and kept in the user's cache."""
    return CACHE / f"debian-{SUITE}-python3.tar"


def make_base_tarball() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="portcall-debootstrap-") as directory:
        tree = Path(directory) / "tree"
        run(
            [
                "debootstrap",
                "--variant=minbase",
                "--include=python3,python3-venv",
                SUITE,
                str(tree),
                *mirror(),
            ],
            timeout=900,
        )
        unneeded = (
            "var/cache/apt",
            "var/lib/apt/lists",
            "usr/share/doc",
            "usr/share/man",
            "usr/share/locale",
        )
        excluded = [f"--exclude=./{path}/*" for path in (*unneeded, "dev", "proc", "sys")]
        partial = Path(directory) / "tar"
        run(["tar", "-C", str(tree), *excluded, "-cf", str(partial), "."], timeout=300)
        copy = base_tarball().with_suffix(f".{os.getpid()}")
        shutil.move(partial, copy)
        copy.rename(base_tarball())  # in one step, so that a second lab never sees half a file


def mirror() -> list[str]:
    """The mirror this machine's own apt uses, where that is a mirror of Debian; debootstrap has a default."""
    if "\nID=debian\n" not in f"\n{Path('/etc/os-release').read_text()}\n":
        return []
    sites = run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]).splitlines()
    return sites[:1]


def make_images(host: Host) -> None:
    """Build every image on one host. Nothing is pulled: there is no registry here."""
    busybox = shutil.which("busybox")
    assert busybox is not None  # check_machine
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(busybox_tarball(Path(busybox)))
        file.flush()
        host.docker("import", file.name, "busybox")
    host.docker("import", str(base_tarball()), BASE_IMAGE, timeout=120)
    base = f"BASE_IMAGE={BASE_IMAGE}"
    run(
        ["make", "-s", "-C", str(ROOT), "image", "IMAGE=portcall", base],
        env=host.docker_environment,
        timeout=600,
    )
    service = ROOT / "examples" / "python-micro-service"
    host.docker("build", "-q", "-t", "python-micro-service", "--build-arg", base, str(service), timeout=300)


def busybox_tarball(binary: Path) -> bytes:
    """A file system with nothing but busybox, under all of its names."""
    applets = run([str(binary), "--list"]).split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777)):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        entry = tarfile.TarInfo("bin/busybox")
        entry.mode, entry.size = 0o755, binary.stat().st_size
        with binary.open("rb") as file:
            tar.addfile(entry, file)
        for applet in applets:
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
    return buffer.getvalue()


def copy_images(source: Host, target: Host) -> None:
    with subprocess.Popen(
        ["docker", "save", *IMAGES], env=source.docker_environment, stdout=subprocess.PIPE
    ) as save:
        subprocess.run(
            ["docker", "load", "-q"],
            env=target.docker_environment,
            stdin=save.stdout,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=300,
        )


# The machine ----------------------------------------------------------------------------------------------


def check_machine() -> None:
    """Say what is missing before anything is started."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise LabError(
            "the lab needs Linux and root: it makes network namespaces and runs dockerd; try with sudo"
        )
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        raise LabError(f"not installed here: {', '.join(missing)}; on Debian, tools/get-docker installs them")


def cgroup(state: Path) -> str:
    """The control group of a lab's containers: one name, so that `down` finds what the kernel leaves."""
    return str(state).strip("/").replace("/", "-")


def remove_cgroups(name: str) -> None:
    """Remove the empty groups of containers that were killed: only dockerd would have, and it is gone."""
    mount = Path("/sys/fs/cgroup")
    for top in (mount / name, *mount.glob(f"*/{name}")):  # version 2, and each controller of version 1
        for directory, _, _ in os.walk(top, topdown=False):
            Path(directory).rmdir()


def run(
    command: Sequence[str],
    *,
    timeout: float = 60.0,
    check: bool = True,
    stderr: bool = False,
    env: dict[str, str] | None = None,
) -> str:
    """Run a command with no input; its standard output, and with `stderr` also what it printed there.

    Raises:
        LabError: it failed, and `check` is set; with everything it printed.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if stderr else subprocess.PIPE,
        text=True,
        timeout=timeout,
        env=env,
        check=False,
    )
    if check and done.returncode != 0:
        printed = f"{done.stdout}\n{done.stderr or ''}".strip()
        raise LabError(f"exit status {done.returncode} of: {shlex.join(command)}\n{printed}")
    return done.stdout


def in_parallel(action: Callable[[Host], None], hosts: Sequence[Host]) -> None:
    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(action, hosts))


def wait_for(
    condition: Callable[[], object], timeout: float, what: str, why: Callable[[], str] = lambda: ""
) -> None:
    """Ask every 50 ms until it is so.

    Raises:
        LabError: not within `timeout` seconds; names `what` was awaited, and the answer of `why`.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout:g} s for {what}\n{why()}".rstrip())
        time.sleep(0.05)


def _is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def _setns(handle: int) -> None:
    if _libc.setns(handle, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def hold(directory: Path) -> None:
    """The first process of a node, run in its fresh namespaces: furnish them, then do nothing for ever."""
    socket.sethostname(directory.name)
    run(["ip", "link", "set", "lo", "up"])
    # A /run of its own, so that dockerd's socket, pid file and containerd are where they are on any host.
    run(["mount", "--bind", str(directory / "run"), "/run"])
    resolv_conf = Path("/etc/resolv.conf").resolve()
    if resolv_conf.is_relative_to("/run"):  # systemd-resolved: a link into what we have just covered
        resolv_conf.parent.mkdir(parents=True)
        resolv_conf.touch()
    run(["mount", "--bind", str(directory / "resolv.conf"), str(resolv_conf)])
    # Daemons become this process's children when their starters end; the kernel then reaps them by itself.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    Path("/run/ready").touch()
    while True:
        signal.pause()


# The command line -----------------------------------------------------------------------------------------


def introduce(lab: Lab, seconds: float) -> str:
    me = os.path.relpath(__file__)
    state = "" if lab.state == DEFAULT_STATE else f" --state {lab.state}"
    sockets = "\n".join(f"  {host.name}  {host.address}  DOCKER_HOST={host.socket}" for host in lab.hosts)
    return f"""
Three hosts are up ({seconds:.0f} s), one Consul cluster, a registrar and a resolver on each:

{sockets}

Start the service of the walkthrough on two of them and find it from the third:

  host() {{ {me}{state} on "host-$@"; }}
  host 1 docker run -d -p 5000:5000 --name service1 python-micro-service
  host 2 docker run -d -p 5000:5000 --name service2 python-micro-service
  host 3 curl -s localhost:8500/v1/catalog/service/python-micro-service?pretty
  host 3 dig +short @{DOCKER0} python-micro-service.service.consul SRV
  host 3 docker run --rm --dns {DOCKER0} --dns-search service.consul busybox \\
      wget -qO- http://python-micro-service:5000
  host 3        # a shell there

When you are done: {me}{state} down
"""


def status(lab: Lab) -> str:
    lines = []
    for host in lab.hosts:
        if host.find() is None:
            lines.append(f"{host.name}  {host.address}  down")
            continue
        lines.append(f"{host.name}  {host.address}  DOCKER_HOST={host.socket}")
        lines.append(f"  consul    {'has a leader' if host.has_leader() else 'does not answer'}")
        lines.append(
            f"  resolver  {'listens' if host.resolver_listens() else 'does not listen'} on {DOCKER0}:53"
        )
        shown = "{{.Names}}\t{{.Image}}\t{{.Status}}\t{{.Ports}}"
        for line in host.docker("ps", "--all", "--format", shown, check=False).splitlines():
            lines.append(f"  {line}".expandtabs(24).rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Three hosts on one Linux machine.", epilog="One of them: lab.py on host-1 docker ps"
    )
    parser.add_argument(
        "--state", type=Path, default=DEFAULT_STATE, metavar="DIR", help="default: %(default)s"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="bring the three hosts up")
    verbs.add_parser("down", help="remove them, with everything on them")
    verbs.add_parser("status", help="what runs on each")
    on = verbs.add_parser("on", help="run a command on one of them; without a command, a shell")
    on.add_argument("host", choices=list(ADDRESSES))
    on.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)

    lab = Lab(options.state)
    try:
        if options.verb == "up":
            began = time.monotonic()
            lab.up(lambda line: print(f"... {line}", flush=True))
            print(introduce(lab, time.monotonic() - began))
        elif options.verb == "down":
            lab.down()
        elif options.verb == "status":
            print(status(lab))
        else:
            host = next(host for host in lab.hosts if host.name == options.host)
            command = host.command(*(options.command or [os.environ.get("SHELL", "/bin/sh")]))
            os.execvp(command[0], command)
    except (LabError, subprocess.SubprocessError) as exc:
        print(f"lab.py: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["hold"]:
        hold(Path(sys.argv[2]))
    sys.exit(main(sys.argv[1:]))
