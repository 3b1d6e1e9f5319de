"""What a running guest gives up and gets when a definition is brought back."""

from kvmctl.model import xml
from kvmctl.operations.undo_devices import following


def domain(*devices: str) -> xml.Element:
    """A domain with these cards (by MAC) and disks (by target)."""
    parts = []
    for device in devices:
        if ":" in device:
            parts.append(f"<interface><mac address='{device}'/></interface>")
        else:
            bus = "sata" if device.startswith("sd") else "virtio"
            parts.append(f"<disk><target dev='{device}' bus='{bus}'/></disk>")
    return xml.parse(f"<domain><devices>{''.join(parts)}</devices></domain>")


def names(found: tuple[tuple[str, xml.Element], ...]) -> list[str]:
    """What they are called."""
    return [name for name, _ in found]


def test_what_the_command_plugged_in_is_pulled_out() -> None:
    found = following(
        domain("vda", "vdb", "52:54:00:00:00:0A"), domain("vda", "vdb", "52:54:00:00:00:0a"), domain("vda")
    )
    assert names(found.pulled) == ["the card 52:54:00:00:00:0a", "the disk vdb"]
    assert found.plugged == ()
    assert found.words() == "the card 52:54:00:00:00:0a, the disk vdb are pulled out of the running guest"


def test_what_it_took_away_is_plugged_in() -> None:
    found = following(domain("vda"), domain("vda"), domain("vda", "vdb"))
    assert (names(found.plugged), found.pulled) == (["the disk vdb"], ())


def test_what_is_there_for_this_run_alone_stays() -> None:
    found = following(domain("vda", "vdc"), domain("vda"), domain("vda"))
    assert (found.pulled, found.plugged, found.words()) == ((), (), "")


def test_drives_that_cannot_be_plugged_wait_for_the_next_start() -> None:
    found = following(domain("vda"), domain("vda"), domain("vda", "sdb"))
    assert (found.pulled, found.plugged) == ((), ())
