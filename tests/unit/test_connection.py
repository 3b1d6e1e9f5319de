"""Choosing a connection, and telling one libvirt error from another."""

from pathlib import Path

import libvirt
import pytest

from kvmctl import connection, errors


@pytest.mark.parametrize(
    "uri",
    [
        "qemu:///system",
        "qemu:///session",
        "qemu+tcp://10.0.0.1:16509/system",
        "qemu+ssh://me@host.example/system?keyfile=/k&no_verify=1",
        "qemu:///system?socket=/run/other/libvirt-sock",
        "qemu+tcp://[::1]/system",
        "test:///default",
        "an-alias",
    ],
)
def test_good_uris(uri: str) -> None:
    assert connection.check_uri(uri) == uri


@pytest.mark.parametrize(
    "uri",
    [
        *("", "-x", "qemu:///system\n", "qemu:///\x1b[2J", "qemu:///\u202e", "qemu:///\u009b"),
        "qemu+ssh://-oProxyCommand=id/system",
        "qemu+ssh://-x@host/system",
        "qemu+ext:///system?command=/bin/sh",
        "qemu+ssh://host/system?no_verify=1&command=id",
        "qemu+ssh://host/system?command=",
        "qemu+ssh://host/system?%63ommand=id",
        "qemu+tcp://host:99999/system",
        "qemu+tcp://host:x/system",
        "qemu+tcp://[::1/system",
    ],
)
def test_uris_that_could_do_harm_or_mean_nothing(uri: str) -> None:
    with pytest.raises(errors.UsageProblem) as caught:
        connection.check_uri(uri)
    assert caught.value.message.isprintable()


def test_the_environment_comes_before_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "libvirt.conf"
    config.write_text('# uri_default = "test:///commented"\nuri_default = "test:///configured"\n')
    monkeypatch.setattr(connection, "client_configuration", lambda: config)
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "test:///environment")
    assert connection.configured_uri() == "test:///environment"
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI")
    assert connection.configured_uri() == "test:///configured"
    config.write_text("# nothing set\n")
    assert connection.configured_uri() is None
    config.unlink()
    assert connection.configured_uri() is None


def test_the_users_configuration_is_where_libvirt_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/xdg")
    assert connection.client_configuration() == "/xdg/libvirt/libvirt.conf"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert connection.client_configuration() == "/etc/libvirt/libvirt.conf"


class Reported(libvirt.libvirtError):  # type: ignore[misc]
    """A libvirtError that carries what libvirt would have reported."""

    def __init__(self, code: int, message: str) -> None:
        Exception.__init__(self, message)
        self.err = (code, 0, message, 2, None, None, None, -1, -1)


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (libvirt.VIR_ERR_NO_DOMAIN, "Domain not found", errors.NotFound),
        (libvirt.VIR_ERR_NO_NETWORK, "Network not found", errors.NotFound),
        (libvirt.VIR_ERR_NO_STORAGE_VOL, "Storage volume not found", errors.NotFound),
        (libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT, "no snapshot", errors.NotFound),
        (libvirt.VIR_ERR_OPERATION_INVALID, "domain is not running", errors.Conflict),
        (libvirt.VIR_ERR_OPERATION_FAILED, "domain 'a' already exists with uuid x", errors.Conflict),
        (libvirt.VIR_ERR_OPERATION_FAILED, "something else", errors.KvmctlError),
        (libvirt.VIR_ERR_XML_ERROR, "unknown element", errors.UsageProblem),
        (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, "unsupported configuration", errors.UsageProblem),
        (libvirt.VIR_ERR_OPERATION_TIMEOUT, "Timed out", errors.TimedOut),
        (libvirt.VIR_ERR_SYSTEM_ERROR, "Cannot recv data: Connection reset by peer", errors.ConnectionFailed),
        (libvirt.VIR_ERR_INTERNAL_ERROR, "client socket is closed", errors.ConnectionFailed),
        (libvirt.VIR_ERR_RPC, "whatever", errors.ConnectionFailed),
        (libvirt.VIR_ERR_AUTH_FAILED, "authentication failed", errors.ConnectionFailed),
        (libvirt.VIR_ERR_INTERNAL_ERROR, "qemu unexpectedly closed the monitor", errors.KvmctlError),
    ],
)
def test_each_error_is_of_its_kind(code: int, message: str, kind: type[errors.KvmctlError]) -> None:
    found = connection.explain(Reported(code, f"{message}\n  more"), "test:///x")
    assert type(found) is kind
    assert message.split()[0] in found.message
    assert "\n" not in found.message


@pytest.mark.parametrize(
    ("command", "help"),
    [
        ("'tc filter add dev virbr0 prio 2': Error: Failed to load TC action module.", "act_csum"),
        ("'nft -ae insert rule ip libvirt_network guest_output iif virbr0': No such file", "Restart libvirtd"),
    ],
)
def test_what_helps_where_libvirts_firewall_commands_fail(command: str, help: str) -> None:
    """What libvirt 11.3 said on a kernel without that module, and after 'nft flush ruleset'."""
    message = f"internal error: Failed to apply firewall command {command}"
    found = connection.explain(Reported(libvirt.VIR_ERR_INTERNAL_ERROR, message), "qemu:///system")
    assert found.exit_code == 1 and help in (found.hint or "")


def test_what_helps_where_libvirt_misses_a_program() -> None:
    """What libvirt 10.0 said on an Ubuntu without dnsmasq-base, asked to start the network default."""
    message = "Unable to find 'dnsmasq' binary in $PATH: No such file or directory"
    found = connection.explain(Reported(libvirt.VIR_ERR_SYSTEM_ERROR, message), "qemu:///system")
    assert found.exit_code == 1 and "host setup" in (found.hint or "")


def test_connection_errors_name_the_uri_and_a_way_out() -> None:
    found = connection.explain(
        Reported(libvirt.VIR_ERR_SYSTEM_ERROR, "Failed to connect socket to 'x'"), "qemu:///system"
    )
    assert isinstance(found, errors.ConnectionFailed)
    assert "qemu:///system" in found.message
    assert "host setup" in (found.hint or "")


def test_spice_may_be_a_package_of_its_own() -> None:
    message = "unsupported configuration: spice graphics are not supported with this QEMU"
    found = connection.explain(Reported(libvirt.VIR_ERR_CONFIG_UNSUPPORTED, message))
    assert found.exit_code == 2 and "qemu-system-modules-spice" in (found.hint or "")


@pytest.mark.parametrize(
    ("code", "message", "help"),
    [
        # As libvirt 9.0 says them when a guest starts.
        (libvirt.VIR_ERR_OPERATION_FAILED, "Unable to find a satisfying virtiofsd", "apt-get install virtiofsd"),
        (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, "unable to open vhost-vsock device", "modprobe vhost_vsock"),
        (libvirt.VIR_ERR_OPERATION_INVALID, "cgroup memory controller is not mounted", "no control groups"),
        (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, "cgroup cpu is required for scheduler tuning", "no control groups"),
        (
            libvirt.VIR_ERR_INTERNAL_ERROR,
            "Child process (tc qdisc add dev vnet0 parent 1:1 handle 2: sfq perturb 10) unexpected exit status 2: "
            "Error: Specified qdisc kind is unknown.",
            "sch_sfq",
        ),
        (
            libvirt.VIR_ERR_INTERNAL_ERROR,
            "hugetlbfs filesystem is not mounted or disabled by administrator config",
            "mount -t hugetlbfs",
        ),
        (
            libvirt.VIR_ERR_INTERNAL_ERROR,
            "qemu-system-x86_64: unable to map backing store for guest RAM: Cannot allocate memory",
            "HugePages_Free",
        ),
    ],
)
def test_what_the_host_lacks_for_a_device(code: int, message: str, help: str) -> None:
    found = connection.explain(Reported(code, message))
    assert isinstance(found, errors.Refused)
    assert help in (found.hint or "")


def test_translated_turns_libvirts_errors_and_only_those() -> None:
    with pytest.raises(errors.NotFound), connection.translated():
        raise Reported(libvirt.VIR_ERR_NO_DOMAIN, "no")
    with pytest.raises(ZeroDivisionError), connection.translated():
        raise ZeroDivisionError


def test_missing_things_are_told_apart() -> None:
    assert connection.is_missing(Reported(libvirt.VIR_ERR_NO_DOMAIN, "no"))
    assert not connection.is_missing(Reported(libvirt.VIR_ERR_OPERATION_INVALID, "no"))


@pytest.mark.parametrize(
    ("uri", "remote"),
    [
        ("qemu:///system", False),
        ("qemu+unix:///system?socket=/x", False),
        ("qemu:///system?socket=/x", False),
        ("qemu+tcp:///system", True),
        ("qemu+ssh://host/system", True),
        ("qemu://host/system", True),
    ],
)
def test_what_may_be_another_machine(uri: str, remote: bool) -> None:
    assert connection.leads_elsewhere(uri) is remote


def test_a_refused_login_names_the_key() -> None:
    said = "Cannot recv data: me@b: Permission denied (publickey,password).: Connection reset by peer"
    found = connection.explain(Reported(libvirt.VIR_ERR_SYSTEM_ERROR, said), "qemu+ssh://me@b/system")
    assert found.exit_code == 5 and "ssh-copy-id" in (found.hint or "")
