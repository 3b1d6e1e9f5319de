"""Opening libvirt, its event loop, and telling one libvirt error from another.

The only module that knows how a connection is chosen and what libvirt's error codes mean to a user.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from functools import cached_property

import libvirt

from kvmctl.errors import (
    Conflict,
    ConnectionFailed,
    KvmctlError,
    NotFound,
    Refused,
    TimedOut,
    UsageProblem,
)

SYSTEM = "qemu:///system"
SESSION = "qemu:///session"

# libvirt reports a broken connection under many codes; these domains and codes only ever mean that.
_CONNECTION_CODES = {
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_ACCESS_DENIED,
    libvirt.VIR_ERR_NO_SERVER,
    libvirt.VIR_ERR_LIBSSH,
    libvirt.VIR_ERR_SSH,
    libvirt.VIR_ERR_GNUTLS_ERROR,
    libvirt.VIR_ERR_RPC,
}
_NOT_FOUND_CODES = {
    libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_NO_NETWORK,
    libvirt.VIR_ERR_NO_STORAGE_POOL,
    libvirt.VIR_ERR_NO_STORAGE_VOL,
    libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT,
    libvirt.VIR_ERR_NO_DOMAIN_METADATA,
    libvirt.VIR_ERR_NO_NODE_DEVICE,
    libvirt.VIR_ERR_NO_INTERFACE,
    libvirt.VIR_ERR_NO_SECRET,
    libvirt.VIR_ERR_DEVICE_MISSING,
}
_CONFLICT_CODES = {
    libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_DOM_EXIST,
    libvirt.VIR_ERR_NETWORK_EXIST,
    libvirt.VIR_ERR_STORAGE_VOL_EXIST,
    libvirt.VIR_ERR_RESOURCE_BUSY,
}
_USAGE_CODES = {
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_XML_DETAIL,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
}
# Compiled when used: every list would pay for it.
_GONE = (
    r"client socket is closed|connection (?:closed|reset)|end of file while reading|broken pipe"
    r"|keepalive|cannot (?:recv|write) data|failed to connect (?:to )?(?:socket|the hypervisor)"
    r"|unable to connect to server|socket (?:closed|hung up)"
)


# Debian has it apart from the emulator from 13 on.
_SPICE = "SPICE may be a package of its own here: apt-get install qemu-system-modules-spice"


_NO_CGROUPS = "libvirt has no control groups on that host: they have to be mounted before libvirtd starts"
_READ_ONLY_CGROUPS = (
    "are control groups mounted for reading only there, as in a container? 'kvmctl host check' says what to do"
)
# What the guest's other devices or this QEMU do not go with, by libvirt's words for it.
_UNSUPPORTED = (
    ("spice graphics are not supported", _SPICE),
    (
        "watchdogs with different actions",
        "a q35 machine may have a watchdog of its own: give its action, which 'kvmctl dumpxml' shows, or edit both",
    ),
)
# What the host lacks for a device or a limit, by libvirt's words for it.
_MISSING = (
    # Debian has it apart from 13 on.
    ("satisfying virtiofsd", "virtiofsd may be a package of its own there: apt-get install virtiofsd"),
    ("vhost-vsock", "'modprobe vhost_vsock' there"),
    (
        "hugetlbfs filesystem is not mounted",
        "'mount -t hugetlbfs hugetlbfs /dev/hugepages' there, vm.nr_hugepages sets pages aside; then restart libvirtd",
    ),
    ("/cpu.weight'", "with control groups v2 CPU shares are 1 to 10000"),
    ("controller is not mounted", _NO_CGROUPS),
    ("Failed to create v1 controller", _READ_ONLY_CGROUPS),
    ("Failed to create v2 cgroup", _READ_ONLY_CGROUPS),
    ("cgroup cpu is required", _NO_CGROUPS),
    ("qdisc kind is unknown", "that kernel lacks a module for rate limits: sch_htb, sch_sfq, sch_ingress, act_police"),
    ("unable to map backing store", "see HugePages_Free in /proc/meminfo there; vm.nr_hugepages sets aside more"),
)


def explain(error: libvirt.libvirtError, uri: str | None = None) -> KvmctlError:
    """``error`` as the kvmctl error of its kind: one line, with the way out where one is known."""
    code = error.get_error_code()
    message = " ".join((error.get_error_message() or str(error)).split())
    at = f" ({uri})" if uri else ""
    if code in _CONNECTION_CODES or re.search(_GONE, message, re.IGNORECASE):
        return ConnectionFailed(f"{message}{at}", _connection_hint(message, uri))
    missing = next((hint for words, hint in _MISSING if words in message), None)
    if missing is not None:
        return Refused(message, missing)
    if code in _NOT_FOUND_CODES:
        return NotFound(message)
    if code == libvirt.VIR_ERR_OPERATION_FAILED and "already exists" in message:
        # Two creations of one name: libvirt uses its general code for the one that lost.
        return Conflict(message)
    if code in _CONFLICT_CODES:
        return Conflict(message)
    if code in _USAGE_CODES:
        return UsageProblem(message, next((hint for words, hint in _UNSUPPORTED if words in message), None))
    # The second came after 9.0.
    if code in (libvirt.VIR_ERR_OPERATION_TIMEOUT, getattr(libvirt, "VIR_ERR_AGENT_COMMAND_TIMEOUT", None)):
        return TimedOut(message)
    if code == libvirt.VIR_ERR_OPERATION_DENIED:
        return ConnectionFailed(f"{message}{at}", "the connection is read-only or this user may not do that")
    if code == libvirt.VIR_ERR_MIGRATE_UNSAFE:
        return Refused(message)
    if code == libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
        return KvmctlError(message, "is qemu-guest-agent installed and running in the guest?")
    if code == libvirt.VIR_ERR_NO_SUPPORT:
        return KvmctlError(f"{message}{at}", "this hypervisor cannot do that")
    return KvmctlError(message, _firewall_hint(message) or _program_hint(message))


def _firewall_hint(message: str) -> str | None:
    """What helps where libvirt's own firewall commands for a network fail; None for other errors."""
    if "Failed to apply firewall command" not in message:
        return None
    if "TC action" in message:
        # Its nftables back end has tc correct the checksums of DHCP's answers.
        return (
            'the kernel lacks the module act_csum: load it, or set firewall_backend = "iptables" in '
            "/etc/libvirt/network.conf and restart libvirtd"
        )
    # libvirtd makes its tables once, when it starts.
    return "was the firewall flushed? Restart libvirtd, which then makes its own tables and chains anew"


def _program_hint(message: str) -> str | None:
    """What helps where libvirt misses a program of another package, dnsmasq for one; None for other errors."""
    if re.search(r"(Unable to|Cannot) find '?\S+'? (binary )?in (\$?PATH|path)", message, re.IGNORECASE):
        return "'kvmctl host setup' on that host installs what libvirt needs"
    return None


def _connection_hint(message: str, uri: str | None) -> str | None:
    lowered = message.lower()
    if "no such file" in lowered or "connection refused" in lowered or "failed to connect" in lowered:
        if uri and "://" in uri and uri.partition("://")[2].startswith("/") and "+" not in uri.partition("://")[0]:
            return "is libvirtd running here? 'kvmctl host setup' starts it; -c URI names another hypervisor"
        return "is libvirtd running and listening there?"
    if "permission denied (" in lowered:
        # ssh's words, with the ways to log in that the host there takes.
        return "ssh must log in there with a key and no question: 'ssh-copy-id USER@HOST' puts yours there"
    if "permission denied" in lowered or "authentication" in lowered or "access denied" in lowered:
        return "join the group libvirt ('kvmctl host setup'), or use -c qemu:///session"
    return "check the URI, or name another with -c"


@contextlib.contextmanager
def translated(uri: str | None = None) -> Iterator[None]:
    """Within it a libvirtError leaves as the kvmctl error that explain() makes of it."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise explain(error, uri) from error


def is_missing(error: libvirt.libvirtError) -> bool:
    """Whether ``error`` only says that the thing is not there."""
    return error.get_error_code() in _NOT_FOUND_CODES


class Hypervisor:
    """One open connection, and what kvmctl must know of where it leads.

    ``conn`` is libvirt's own connection object, ``uri`` the one libvirt says it is. Close it, or use it
    in a ``with``.
    """

    def __init__(self, conn: libvirt.virConnect) -> None:
        self.conn = conn
        self.uri: str = conn.getURI()
        scheme, _, rest = self.uri.partition("://")
        self.driver, _, self.transport = scheme.partition("+")
        self.is_session = rest.partition("?")[0].rstrip("/").endswith("/session")
        self._asking, self._asked = threading.Lock(), 0

    @cached_property
    def host(self) -> str | None:
        """The host that the URI names, None for this machine."""
        # Imported late: every list would pay for it.
        from urllib.parse import urlsplit

        return urlsplit(self.uri).hostname

    @cached_property
    def capabilities(self) -> str:
        """libvirt's ``<capabilities>``, asked for once: some libvirtd start every emulator to answer."""
        with translated(self.uri):
            text: str = self.conn.getCapabilities()
        return text

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """The parameters after the URI's ``?``."""
        from urllib.parse import parse_qs, urlsplit

        return parse_qs(urlsplit(self.uri).query)

    @cached_property
    def is_remote(self) -> bool:
        """See leads_elsewhere()."""
        return leads_elsewhere(self.uri)

    def __enter__(self) -> "Hypervisor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what libvirt says about one that is gone already does not matter.

        Not one on which answers() still waits: another thread uses it, and the process is about to end.
        """
        with self._asking:
            if not self._asked:
                with contextlib.suppress(libvirt.libvirtError):
                    self.conn.close()
            if self in live:
                live.remove(self)

    def answers(self) -> None:
        """Return when libvirt has answered a small question, whichever way: for a thread that may wait for ever."""
        with self._asking:
            if self not in live:
                return
            self._asked += 1
        with contextlib.suppress(libvirt.libvirtError):
            self.conn.getLibVersion()
        with self._asking:
            self._asked -= 1

    def find(self, name: str) -> libvirt.virDomain:
        """The domain with this running id, name or UUID (in that order, as virsh has it).

        Raises NotFound, naming the URI.
        """
        lookups: list[Callable[[], libvirt.virDomain]] = []
        if name.isascii() and name.isdigit() and int(name) < 2**31:
            lookups.append(lambda: self.conn.lookupByID(int(name)))
        lookups.append(lambda: self.conn.lookupByName(name))
        if re.fullmatch(r"[0-9a-fA-F-]{32,36}", name):
            lookups.append(lambda: self.conn.lookupByUUIDString(name))
        for lookup in lookups:
            try:
                return lookup()
            except libvirt.libvirtError as error:
                if not is_missing(error) and error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
                    raise explain(error, self.uri) from error
        raise NotFound(
            f"no VM named {name[:100]!a} on {self.uri}",
            "'kvmctl list' shows those there are; -c URI looks elsewhere",
        )

    def find_or_none(self, name: str) -> libvirt.virDomain | None:
        """The domain with exactly this name, or None."""
        try:
            return self.conn.lookupByName(name)
        except libvirt.libvirtError as error:
            if is_missing(error):
                return None
            raise explain(error, self.uri) from error

    def domain_capabilities(
        self, virt: str, arch: str | None = None, machine: str | None = None, emulator: str | None = None
    ) -> str:
        """libvirt's domain capabilities XML for one kind of guest."""
        with translated(self.uri):
            text: str = self.conn.getDomainCapabilities(emulator, arch, machine, virt, 0)
        return text


_events_started = threading.Event()
_events_starting = threading.Lock()


def start_events() -> None:
    """Run libvirt's event loop in a thread of its own. Call it before connect(); more calls do nothing."""
    # Two connections may be opened at once, and neither before the loop is known to libvirt.
    with _events_starting:
        if _events_started.is_set():
            return
        libvirt.virEventRegisterDefaultImpl()
        _events_started.set()

    def loop() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=loop, name="libvirt-events", daemon=True).start()


def _silence(*_: object) -> None:
    """libvirt prints every error to stderr unless somebody takes it; kvmctl reports them itself."""


def connect(uri: str | None = None, *, read_only: bool = False, events: bool = False) -> Hypervisor:
    """Open the hypervisor named by ``uri``, or the first that the user has set or may use.

    Without ``uri``: LIBVIRT_DEFAULT_URI, ``uri_default`` of libvirt's client configuration,
    qemu:///system where it lets this user in, else qemu:///session. With ``events`` the event loop runs
    and a keep-alive notices a dead peer within 25 s.
    """
    libvirt.registerErrorHandler(_silence, None)
    if uri is not None:
        check_uri(uri)
    if events:
        start_events()
    chosen = uri or configured_uri()
    if chosen is not None:
        return _open(chosen, read_only, events)
    try:
        return _open(SYSTEM, read_only, events)
    except ConnectionFailed as refused:
        if os.geteuid() == 0:
            raise
        try:
            return _open(SESSION, read_only, events)
        except ConnectionFailed:
            raise refused from None


# The connections that connect() opened, and the URIs that it is about to: who waits for libvirt, and where.
live: list[Hypervisor] = []
opening: list[str] = []


def _open(uri: str, read_only: bool, events: bool) -> Hypervisor:
    opening.append(uri)
    try:
        conn = libvirt.openReadOnly(uri) if read_only else libvirt.open(uri)
        if events:
            with contextlib.suppress(libvirt.libvirtError):
                conn.setKeepAlive(5, 5)
        hypervisor = Hypervisor(conn)
        live.append(hypervisor)
        return hypervisor
    except libvirt.libvirtError as error:
        found = explain(error, uri)
        if not isinstance(found, ConnectionFailed):
            # Whatever kept the connection from opening, to the user it is a connection that failed.
            found = ConnectionFailed(f"{found.message} ({uri})", found.hint or "check the URI given with -c")
        raise found from error
    finally:
        opening.remove(uri)


def leads_elsewhere(uri: str) -> bool:
    """Whether ``uri`` may lead to another machine than this one."""
    scheme, _, rest = uri.partition("://")
    if "+" not in scheme and rest.startswith("/"):
        # No transport and no host: nothing that the import below, 2 ms of each snapshot, could tell.
        return False
    from urllib.parse import urlsplit

    parts = urlsplit(uri)
    # A unix socket is this machine, whichever path it has; a host name or another transport may not be.
    transport = parts.scheme.partition("+")[2]
    return bool(parts.hostname) or transport in {"ssh", "libssh", "libssh2", "tcp", "tls", "ext"}


def check_uri(uri: str) -> str:
    """``uri`` if it is safe to hand to libvirt.

    libvirt runs ``?command=`` and gives the host name to ssh, so a URI from elsewhere must be able to do
    neither harm: ConnectionFailed is too late for that, so this raises UsageProblem first.
    """
    if not uri or not uri.isprintable() or uri.startswith("-"):
        raise UsageProblem(
            f"{uri[:100]!a} is not a libvirt URI", "write it like qemu:///system or qemu+ssh://host/system"
        )
    if "?" not in uri and "@" not in uri and uri.partition("://")[2].startswith("/"):
        # This machine, without parameters; what follows is imported late, for every list would pay for it.
        return uri
    from urllib.parse import parse_qs, urlsplit

    try:
        parts = urlsplit(uri)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise UsageProblem(f"{uri[:100]!a} is not a libvirt URI: {error}") from None
    if host.startswith("-") or (parts.username or "").startswith("-"):
        raise UsageProblem(f"the host in {uri[:100]!a} begins with '-', which ssh would take for an option")
    if "command" in parse_qs(parts.query, keep_blank_values=True):
        raise UsageProblem(f"{uri[:100]!a} names a command to run", "kvmctl takes no ?command= in a URI")
    return uri


def configured_uri() -> str | None:
    """What LIBVIRT_DEFAULT_URI or libvirt's client configuration names, or None."""
    from_environment = os.environ.get("LIBVIRT_DEFAULT_URI")
    if from_environment:
        return from_environment
    try:
        with open(client_configuration(), encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as in client_configuration()
            text = file.read()
    except OSError:
        return None
    match = re.search(r'^\s*uri_default\s*=\s*"([^"]+)"', text, re.MULTILINE)
    return match[1] if match else None


def client_configuration() -> str:
    """Where libvirt keeps this user's client configuration (virConfLoadConfigPath in its virconf.c)."""
    if os.geteuid() == 0:
        return "/etc/libvirt/libvirt.conf"
    # Not by pathlib: every list would pay 7 ms for its import.
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 - see above
    return f"{home}/libvirt/libvirt.conf"
