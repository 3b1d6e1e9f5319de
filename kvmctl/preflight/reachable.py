"""Whether the host in a libvirt URI answers at all, before libvirt waits minutes for one that never will."""

import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from kvmctl.connection import Hypervisor, check_uri, connect
from kvmctl.errors import ConnectionFailed, UsageProblem

SECONDS = 5.0
# libvirt's own ports: LIBVIRTD_TCP_PORT, LIBVIRTD_TLS_PORT of remote_protocol.h, and ssh's.
PORTS = {"tcp": 16509, "tls": 16514, "": 16514, "ssh": 22, "libssh": 22, "libssh2": 22}


def open_destination(uri: str, ask: Callable[[Hypervisor], object] | None = None) -> Hypervisor:
    """The hypervisor at ``uri``, open for writing, with events and keep-alive. ``ask``: as App.connect_ahead() has it.

    Raises UsageProblem where it is no URI of a hypervisor, ConnectionFailed within seconds where nobody
    answers or a password would be asked for.
    """
    prepared = prepare(uri)
    probe(prepared)
    hypervisor = connect(prepared, events=True)
    if ask is not None:
        ask(hypervisor)
    return hypervisor


def prepare(uri: str) -> str:
    """``uri``, checked, and where it goes through ssh, told never to ask: nobody may be there to answer."""
    check_uri(uri)
    parts = urlsplit(uri)
    if not parts.scheme or "://" not in uri:
        raise UsageProblem(f"{uri[:100]!a} is not a libvirt URI", "write the destination like qemu+ssh://host/system")
    if parts.scheme.partition("+")[0] not in ("qemu", "test"):
        raise UsageProblem(
            f"{uri[:100]!a} leads to no QEMU hypervisor", "write the destination like qemu+ssh://host/system"
        )
    if parts.scheme.partition("+")[2] not in (*PORTS, "unix"):
        raise UsageProblem(f"{uri[:100]!a}: libvirt knows no transport {parts.scheme.partition('+')[2][:20]!a}")
    if parts.scheme.partition("+")[2] == "ssh":
        query = [(key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if key != "no_tty"]
        # libvirt then gives ssh BatchMode=yes.
        return urlunsplit(parts._replace(query=urlencode([*query, ("no_tty", "1")])))
    return uri


def probe(uri: str) -> None:
    """Raise ConnectionFailed where the URI's host takes no TCP connection within SECONDS."""
    parts = urlsplit(uri)
    transport = parts.scheme.partition("+")[2]
    if parts.hostname is None or transport == "unix":
        return
    host, port = parts.hostname, parts.port or PORTS.get(transport, 16514)
    if transport == "ssh":
        found = _ssh_target(host, parts.port)
        if found is None:
            return
        host, port = found
    try:
        with socket.create_connection((address(host), port), timeout=SECONDS):
            pass
    except (OSError, UnicodeError) as error:
        why = f"no answer within {SECONDS:g} s" if isinstance(error, TimeoutError) else str(error)
        if isinstance(error, OSError) and error.strerror:
            why = error.strerror
        raise ConnectionFailed(
            f"{host[:100]} does not take connections on port {port}: {why}",
            "is that host up, and does its libvirtd listen there? check the URI",
        ) from None


def address(host: str) -> Any:
    """``host`` as socket's functions take it, whatever their stubs say: bytes where it can be.

    For text Python imports the rules of international names, which takes 4 ms.
    """
    return host.encode() if host.isascii() else host


def _ssh_target(host: str, port: int | None) -> tuple[str, int] | None:
    """Where ssh's own configuration says it would connect; None where it goes through another program or host."""
    # Imported late: only ssh needs it, and each move waits for the imports.
    import subprocess

    asked = subprocess.run(
        ["ssh", "-G", *(["-p", str(port)] if port else []), "--", host],
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
        check=False,
    )
    if asked.returncode != 0:
        return host, port or PORTS["ssh"]
    said = dict(line.split(" ", 1) for line in asked.stdout.splitlines() if " " in line)
    if said.get("proxyjump", "none") != "none" or said.get("proxycommand", "none") != "none":
        return None
    return said.get("hostname", host), int(said.get("port", PORTS["ssh"]))
