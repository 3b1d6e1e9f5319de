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


def test_devices_of_the_host_come_and_go_by_what_they_are_there() -> None:
    stick = "<hostdev type='usb'><source><vendor id='0x0627'/><product id='0x0001'/>{place}</source></hostdev>"
    card = "<hostdev type='pci'><source><address domain='0' bus='1' slot='2' function='0'/></source></hostdev>"
    saved = [xml.parse(f"<domain><devices>{part.format(place='')}</devices></domain>") for part in (stick + card, "")]
    placed = stick.format(place="<address bus='1' device='3'/>")
    live = xml.parse(f"<domain><devices>{placed}{card}</devices></domain>")
    found = following(live, *saved)
    assert names(found.pulled) == ["the PCI device 0000:01:02.0", "the USB device 0627:0001"]
    assert found.pulled[1][1].find("source/address") is not None
    empty = xml.parse("<domain><devices/></domain>")
    assert names(following(empty, saved[1], saved[0]).plugged) == names(found.pulled)


CARD = "<interface><mac address='52:54:00:00:00:0a'/><link state='{}'/></interface>"
DRIVE = "<disk type='file' device='cdrom'>{}<target dev='sda' bus='sata'/></disk>"


def turned(live: str, saved: str, then: str) -> list[str]:
    """What is turned in a running guest, between domains of one device each."""
    trees = [xml.parse(f"<domain><devices>{text}</devices></domain>") for text in (live, saved, then)]
    return [turn.words for turn in following(*trees).turns]


def test_a_cable_follows_where_both_had_it_alike() -> None:
    up, down = CARD.format("up"), CARD.format("down")
    assert turned(down, down, up) == ["the cable of the card 52:54:00:00:00:0a is plugged into the running guest"]
    assert turned(up, up, down) == ["the cable of the card 52:54:00:00:00:0a is pulled out of the running guest"]
    assert turned(up, down, up) == []
    assert turned(down, up, up) == []


def test_a_disc_follows_where_both_had_it_alike() -> None:
    one, two, none = (DRIVE.format(part) for part in ("<source file='/1'/>", "<source file='/2'/>", ""))
    assert turned(two, two, one) == ["the drive sda of the running guest gets /1"]
    assert turned(one, one, none) == ["the drive sda of the running guest is emptied"]
    assert turned(one, two, none) == []
    assert turned(one, one, one) == []
