import pytest

from kvmctl.model import xml
from kvmctl.model.profile import Profile, apply_profile, defaults, hyperv_features

Q35 = "<domain><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"


def _applied(profile: Profile, accel: str = "tcg", hyperv: tuple[str, ...] = (), text: str = Q35) -> xml.Element:
    domain = xml.parse(text)
    apply_profile(domain, profile, "kvm" if accel == "kvm" else "tcg", hyperv)
    return domain


def _timers(domain: xml.Element) -> dict[str | None, str | None]:
    return {t.get("name"): t.get("tickpolicy") or t.get("present") for t in domain.iterfind("clock/timer")}


def test_linux_is_what_virt_install_makes_for_debian() -> None:
    domain = _applied("linux")
    assert [f.tag for f in domain.iterfind("features/*")] == ["acpi", "apic", "vmport"]
    assert domain.find("clock[@offset='utc']") is not None
    assert _timers(domain) == {"rtc": "catchup", "pit": "delay", "hpet": "no"}
    assert [p.get("enabled") for p in domain.iterfind("pm/*")] == ["no", "no"]
    chosen = defaults("linux")
    assert (chosen.disk_bus, chosen.cdrom_bus, chosen.nic_model, chosen.video, chosen.sound, chosen.rng) == (
        "virtio",
        "sata",
        "virtio",
        "virtio",
        "ich9",
        True,
    )


def test_windows_is_what_virt_install_makes_for_windows_11() -> None:
    domain = _applied("windows")
    enlightened = [(f.tag, f.get("state"), f.get("retries")) for f in domain.iterfind("features/hyperv/*")]
    assert enlightened == [("relaxed", "on", None), ("vapic", "on", None), ("spinlocks", "on", "8191")]
    assert domain.find("clock[@offset='localtime']") is not None
    assert _timers(domain) == {"rtc": "catchup", "pit": "delay", "hpet": "no", "hypervclock": "yes"}
    chosen = defaults("windows")
    assert (chosen.disk_bus, chosen.cdrom_bus, chosen.nic_model, chosen.sound) == ("sata", "sata", "e1000e", "ich9")
    assert (chosen.firmware, chosen.tpm, chosen.min_vcpus, chosen.min_memory) == ("uefi-secure", True, 2, 4 << 30)


def test_only_named_enlightenments_are_set_and_only_under_kvm() -> None:
    named = ("vpindex", "synic", "stimer", "evmcs")
    under_kvm = [f.tag for f in _applied("windows", "kvm", named).iterfind("features/hyperv/*")]
    assert under_kvm == ["relaxed", "vapic", "spinlocks", "vpindex", "synic", "stimer"]
    assert len(_applied("windows", "tcg", named).findall("features/hyperv/*")) == 3


def test_an_enlightenment_without_what_it_needs_is_left_out() -> None:
    names = [f.tag for f in _applied("windows", "kvm", ("synic", "stimer", "reset")).iterfind("features/hyperv/*")]
    assert names[3:] == ["reset"]


def test_what_the_domain_says_already_stays() -> None:
    text = (
        "<domain><os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/><hyperv mode='passthrough'/>"
        "</features><clock offset='timezone' timezone='Europe/Berlin'/></domain>"
    )
    domain = _applied("windows", text=text)
    assert domain.find("features/hyperv[@mode='passthrough']") is not None
    assert len(domain.findall("features/acpi")) == 1
    assert domain.find("clock[@offset='timezone']") is not None
    assert len(domain.findall("clock")) == 1


def test_an_arm_guest_gets_nothing_of_a_pc() -> None:
    text = "<domain><os><type arch='aarch64' machine='virt'>hvm</type></os></domain>"
    domain = _applied("linux", text=text)
    assert [child.tag for child in domain] == ["os", "clock"]
    assert domain.find("clock/*") is None
    assert defaults("linux", "aarch64", "virt").firmware == "uefi"


@pytest.mark.parametrize(("machine", "cdrom", "nic"), [("q35", "sata", "e1000e"), ("pc", "ide", "e1000")])
def test_generic_takes_what_the_machine_has(machine: str, cdrom: str, nic: str) -> None:
    chosen = defaults("generic", "x86_64", machine)
    assert (chosen.disk_bus, chosen.cdrom_bus, chosen.nic_model) == (cdrom, cdrom, nic)


def test_enlightenments_are_read_from_capabilities() -> None:
    text = """<domainCapabilities><features><hyperv supported='yes'><enum name='features'>
    <value>spinlocks</value><value>vpindex</value></enum></hyperv></features></domainCapabilities>"""
    assert hyperv_features(xml.parse(text)) == {"spinlocks", "vpindex"}
    assert hyperv_features(xml.parse(text.replace("'yes'", "'no'"))) == frozenset()
