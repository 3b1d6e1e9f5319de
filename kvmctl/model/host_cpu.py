"""A host's CPU as libvirt's documents describe it: a model of libvirt's database and what it has beyond that."""

from typing import NamedTuple

from kvmctl.errors import UsageProblem
from kvmctl.model import xml

X86 = frozenset({"x86_64", "i686"})
# libvirt's database knows some 400 features; a document with many more describes no CPU.
MOST_FEATURES = 2000
# A feature element of a host has no policy; of a guest these two say that the CPU has it.
_HAS = frozenset({"require", "force"})


class HostCpu(NamedTuple):
    """``model`` of libvirt's database, plus ``features``, minus ``lacking``; ``vendor`` None where not said."""

    arch: str
    model: str
    vendor: str | None = None
    features: frozenset[str] = frozenset()
    lacking: frozenset[str] = frozenset()

    @property
    def is_x86(self) -> bool:
        """Whether the features are those of x86, where libvirt can compute across models."""
        return self.arch in X86


def from_document(root: xml.Element, what: str) -> HostCpu:
    """The CPU that a ``<cpu>``, ``<host>``, ``<capabilities>`` or ``<domainCapabilities>`` document describes.

    Raises UsageProblem, naming ``what``, where the document is another one or holds no CPU with a model.
    """
    arch: str | None = None
    if root.tag == "cpu":
        cpu: xml.Element | None = root
    elif root.tag == "host":
        cpu = root.find("cpu")
    elif root.tag == "capabilities":
        cpu = root.find("host/cpu")
    elif root.tag == "domain":
        cpu = root.find("cpu")
        arch = _arch_of_domain(root)
    elif root.tag == "domainCapabilities":
        cpu = root.find("cpu/mode[@name='host-model']")
        arch = root.findtext("arch")
    else:
        raise UsageProblem(
            f"{what} begins with <{str(root.tag)[:40]}>", "give a document with <cpu>, <host> or <capabilities>"
        )
    if cpu is None:
        raise UsageProblem(f"{what} describes no CPU", "'virsh capabilities' prints a document that does")
    return _from_cpu(cpu, what, arch)


def _arch_of_domain(root: xml.Element) -> str | None:
    kind = root.find("os/type")
    return kind.get("arch") if kind is not None else None


def _from_cpu(cpu: xml.Element, what: str, arch: str | None) -> HostCpu:
    model = (cpu.findtext("model") or "").strip()
    if not model:
        mode = cpu.get("mode")
        why = f" (mode {mode[:40]!a} means whatever the host has)" if mode else ""
        raise UsageProblem(
            f"the CPU in {what} has no model{why}", "take the document from 'virsh capabilities' on that host"
        )
    elements = cpu.findall("feature")
    if len(elements) > MOST_FEATURES:
        raise UsageProblem(f"the CPU in {what} has {len(elements)} features, more than any CPU")
    policies: dict[str, str] = {}
    for element in elements:
        name = (element.get("name") or "").strip()
        if not name:
            raise UsageProblem(f"a <feature> of the CPU in {what} has no name")
        if name in policies:
            raise UsageProblem(f"the CPU in {what} names the feature {name[:40]!a} twice")
        policies[name] = element.get("policy", "require")
    return HostCpu(
        arch=(cpu.findtext("arch") or arch or "x86_64").strip(),
        model=model,
        vendor=(cpu.findtext("vendor") or "").strip() or None,
        features=frozenset(name for name, policy in policies.items() if policy in _HAS),
        lacking=frozenset(name for name, policy in policies.items() if policy in ("disable", "forbid")),
    )


def to_element(cpu: HostCpu) -> xml.Element:
    """``<cpu>`` of a host, as virConnectBaselineCPU takes it; what the CPU lacks has no place there."""
    root = xml.new("cpu")
    xml.add(root, "arch", cpu.arch)
    xml.add(root, "model", cpu.model)
    if cpu.vendor:
        xml.add(root, "vendor", cpu.vendor)
    for name in sorted(cpu.features):
        xml.add(root, "feature", name=name)
    return root
