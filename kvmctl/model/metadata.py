"""What kvmctl remembers of a VM, in the domain's own ``<metadata>``: libvirt is the database.

virsh and virt-manager keep it through their own edits, and it travels with the guest.
"""

from typing import Literal, NamedTuple

from kvmctl.model import xml

NAMESPACE = "urn:kvmctl:vm:1"
PREFIX = "kvmctl"


_Role = Literal["disk", "seed", "memory", "base", "other"]
_ROLES: dict[str, _Role] = {"disk": "disk", "seed": "seed", "memory": "memory", "base": "base"}


class OwnedVolume(NamedTuple):
    """A storage volume that kvmctl made for this VM, and so deletes with it."""

    pool: str
    name: str
    path: str | None = None
    role: _Role = "disk"


class Forward(NamedTuple):
    """A port of the host that leads to one of the guest. ``address`` None: the default of the network's kind."""

    protocol: Literal["tcp", "udp"]
    host_port: int
    guest_port: int
    address: str | None = None


class Reservation(NamedTuple):
    """An address that kvmctl had libvirt's ``network`` keep for a card of this VM, and so gives back with it."""

    network: str
    ip: str
    mac: str | None = None


class Creator(NamedTuple):
    """The process that is still making this VM: a machine, its boot, and a process there with its start time."""

    machine: str
    boot: str
    pid: int
    started: int


class Metadata(NamedTuple):
    """All of it. ``creator`` is there only while ``create`` (or clone) is at work; ``created`` is ISO 8601."""

    created: str | None = None
    image: str | None = None
    user: str | None = None
    protected: bool = False
    volumes: tuple[OwnedVolume, ...] = ()
    forwards: tuple[Forward, ...] = ()
    creator: Creator | None = None
    reservations: tuple[Reservation, ...] = ()
    # What other capabilities keep here, element by element, untouched by the ones above.
    extra: tuple[str, ...] = ()

    def with_forwards(self, forwards: tuple[Forward, ...]) -> "Metadata":
        """The same with other forwards."""
        return self._replace(forwards=forwards)


def to_element(metadata: Metadata, owner: str | None = None) -> xml.Element:
    """``<vm>`` with its namespace on the root; ``owner`` is the UUID of the domain it is of, where known."""
    root = xml.etree.Element(f"{{{NAMESPACE}}}vm", nsmap={PREFIX: NAMESPACE})
    if owner:
        root.set("owner", owner)

    def add(tag: str, content: str | None = None, **attributes: object) -> None:
        element = xml.add(root, f"{{{NAMESPACE}}}{tag}", content, **attributes)
        assert element is not None

    if metadata.created:
        add("created", metadata.created)
    if metadata.image:
        add("image", metadata.image)
    if metadata.user:
        add("user", metadata.user)
    if metadata.protected:
        add("protected")
    for volume in metadata.volumes:
        add("volume", pool=volume.pool, name=volume.name, path=volume.path, role=volume.role)
    for forward in metadata.forwards:
        add(
            "forward",
            protocol=forward.protocol,
            address=forward.address,
            host=forward.host_port,
            guest=forward.guest_port,
        )
    for reservation in metadata.reservations:
        add("reservation", network=reservation.network, ip=reservation.ip, mac=reservation.mac)
    if metadata.creator:
        creator = metadata.creator
        add("creator", machine=creator.machine, boot=creator.boot, pid=creator.pid, started=creator.started)
    for text in metadata.extra:
        root.append(xml.parse(text, "kvmctl metadata"))
    return root


def from_element(root: xml.Element, uuid: str | None = None) -> Metadata:
    """What a ``<vm>`` element of the domain ``uuid`` says; whatever in it is malformed (edited by hand) is left out.

    Other tools (virt-clone) copy a domain with its metadata. The disks, ports and reservations in it are still
    the original's then, and must not go with the copy.
    """
    found = _from_element(root)
    owner = root.get("owner")
    if owner is None or uuid is None or owner.lower() == uuid.strip().lower():
        return found
    return found._replace(volumes=(), forwards=(), reservations=(), creator=None, extra=())


def _from_element(root: xml.Element) -> Metadata:
    known = {"created", "image", "user", "protected", "volume", "forward", "creator", "reservation"}

    def text_of(tag: str) -> str | None:
        element = root.find(f"{{{NAMESPACE}}}{tag}")
        return element.text if element is not None else None

    creator = root.find(f"{{{NAMESPACE}}}creator")
    return Metadata(
        created=text_of("created"),
        image=text_of("image"),
        user=text_of("user"),
        protected=root.find(f"{{{NAMESPACE}}}protected") is not None,
        volumes=tuple(v for v in map(_volume, root.findall(f"{{{NAMESPACE}}}volume")) if v),
        forwards=tuple(f for f in map(_forward, root.findall(f"{{{NAMESPACE}}}forward")) if f),
        creator=_creator(creator) if creator is not None else None,
        reservations=tuple(r for r in map(_reservation, root.findall(f"{{{NAMESPACE}}}reservation")) if r),
        extra=tuple(
            xml.raw(element).strip()
            for element in root
            if isinstance(element.tag, str) and xml.etree.QName(element).localname not in known
        ),
    )


def from_domain(domain: xml.Element) -> Metadata:
    """The metadata within a whole ``<domain>``; empty where kvmctl never touched it."""
    element = domain.find(f"metadata/{{{NAMESPACE}}}vm")
    return from_element(element, domain.findtext("uuid")) if element is not None else Metadata()


def put(domain: xml.Element, metadata: Metadata) -> None:
    """Set ``metadata`` in a whole ``<domain>`` tree, leaving other tools' metadata where it is."""
    holder = domain.find("metadata")
    if holder is None:
        holder = xml.new("metadata")
        after = [child for child in domain if child.tag in ("name", "uuid", "genid", "title", "description")]
        domain.insert(domain.index(after[-1]) + 1 if after else 0, holder)
    old = holder.find(f"{{{NAMESPACE}}}vm")
    if old is not None:
        holder.remove(old)
    holder.append(to_element(metadata, (domain.findtext("uuid") or "").strip() or None))


def extra(metadata: Metadata, name: str) -> xml.Element | None:
    """The element ``name`` among Metadata.extra."""
    for text in metadata.extra:
        element = xml.parse(text, "kvmctl metadata")
        if element.tag == f"{{{NAMESPACE}}}{name}":
            return element
    return None


def with_extra(metadata: Metadata, name: str, element: xml.Element | None) -> Metadata:
    """The same with ``element`` (see new_extra()) in the place of the one of this name, or with none."""
    tag = f"{{{NAMESPACE}}}{name}"
    others = tuple(text for text in metadata.extra if xml.parse(text, "kvmctl metadata").tag != tag)
    return metadata._replace(extra=others if element is None else (*others, xml.raw(element)))


def new_extra(name: str) -> xml.Element:
    """An element of that name for with_extra()."""
    return xml.etree.Element(f"{{{NAMESPACE}}}{name}", nsmap={PREFIX: NAMESPACE})


def _volume(element: xml.Element) -> OwnedVolume | None:
    pool, name, role = element.get("pool"), element.get("name"), element.get("role", "disk")
    if not pool or not name:
        return None
    return OwnedVolume(pool, name, element.get("path"), _ROLES.get(role, "other"))


def _forward(element: xml.Element) -> Forward | None:
    protocol = element.get("protocol", "")
    host, guest = _port(element.get("host")), _port(element.get("guest"))
    if protocol not in ("tcp", "udp") or host is None or guest is None:
        return None
    return Forward("udp" if protocol == "udp" else "tcp", host, guest, element.get("address"))


def _reservation(element: xml.Element) -> Reservation | None:
    network, ip = element.get("network"), element.get("ip")
    return Reservation(network, ip, element.get("mac")) if network and ip else None


def _port(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and 0 < int(text) < 65536 else None


def _creator(element: xml.Element) -> Creator | None:
    pid, started = element.get("pid", ""), element.get("started", "")
    if not (pid.isascii() and pid.isdigit() and started.isascii() and started.isdigit()):
        return None
    return Creator(element.get("machine", ""), element.get("boot", ""), int(pid), int(started))
