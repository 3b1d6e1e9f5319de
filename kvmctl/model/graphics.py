"""Graphics, video and sound."""

from typing import TYPE_CHECKING, Literal

from kvmctl.errors import UsageProblem
from kvmctl.model import xml

if TYPE_CHECKING:
    import ipaddress

Graphics = Literal["none", "vnc", "spice"]
GRAPHICS: tuple[Graphics, ...] = ("none", "vnc", "spice")

LOOPBACK = "127.0.0.1"


def listen_address(text: str) -> "ipaddress.IPv4Address | ipaddress.IPv6Address":
    """The address that a screen is to be served on. Raises UsageProblem where ``text`` is none."""
    # Imported late: most screens are served where they always are.
    import ipaddress

    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise UsageProblem(f"{text[:60]!a} is not an IP address to listen on", "use 127.0.0.1 or ::1") from None


def graphics_element(
    kind: Literal["vnc", "spice"],
    listen: str = LOOPBACK,
    password: str | None = None,
    port: int | None = None,
    tls: bool = False,
) -> xml.Element:
    """``<graphics>`` on a free port (or ``port``) of the address ``listen``.

    Raises UsageProblem for an address other than loopback without a password or TLS: whoever can reach it
    would be sitting at the guest's keyboard. ``tls`` is SPICE's; for VNC it is a setting of the host
    (``vnc_tls`` in its qemu.conf) that no domain can ask for.
    """
    if kind == "vnc" and tls:
        raise UsageProblem("VNC's TLS is set for a whole host, in its qemu.conf", "use SPICE, or a password")
    address = listen_address(listen)
    if not address.is_loopback and password is None and not tls:
        reach = "every network of the host" if address.is_unspecified else "the network of that address"
        raise UsageProblem(
            f"{kind} on {address} could be used by anybody on {reach}",
            "give it a password, or TLS, or stay on 127.0.0.1 and tunnel through ssh",
        )
    # VNC's protocol compares eight characters and drops the rest without a word.
    if kind == "vnc" and password is not None and len(password.encode()) > 8:
        raise UsageProblem("a VNC password has at most 8 bytes; the rest would be ignored", "use a shorter one")
    graphics = xml.new(
        "graphics",
        type_=kind,
        port=port if port is not None else -1,
        autoport="no" if port is not None else "yes",
        passwd=password,
    )
    if kind == "spice" and tls:
        graphics.set("tlsPort", "-1")
        graphics.set("defaultMode", "secure")
    xml.add(graphics, "listen", type_="address", address=str(address))
    if kind == "spice":
        xml.add(graphics, "image", compression="off")
    return graphics


def spice_channel_element() -> xml.Element:
    """The channel through which a SPICE viewer and the guest's vdagent share clipboard and resolution."""
    channel = xml.new("channel", type_="spicevmc")
    xml.add(channel, "target", type_="virtio", name="com.redhat.spice.0")
    return channel


def video_element(model: str) -> xml.Element:
    """``<video>`` with ``model``: virtio, vga, qxl, bochs, ramfb, none, ..."""
    video = xml.new("video")
    xml.add(video, "model", type_=model)
    return video


def sound_element(model: str = "ich9") -> xml.Element:
    """``<sound>`` with ``model``. libvirt connects it to SPICE, or to nothing where there is none."""
    return xml.new("sound", model=model)
