"""Whether what runs on one host's CPU runs on another's, by libvirt's own CPU model database.

The database is inside libvirt's client library: its test driver opens without any daemon and answers from
the same tables as the hypervisor's, so that two files can be judged where no libvirt runs.
"""

from pathlib import Path
from typing import Any, NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, connect, translated
from kvmctl.errors import KvmctlError, NotFound, UsageProblem
from kvmctl.model import xml
from kvmctl.model.host_cpu import HostCpu, from_document, to_element

# The smallest x86 model there is: with features beside it, it stands for a CPU that no model describes.
SMALLEST = "486"
SMALLEST_HAS = frozenset({"fpu", "vme", "pse"})
# QEMU gives it to a guest only together with the promise never to migrate it.
NEVER_MIGRATES = frozenset({"invtsc"})


class Comparison(NamedTuple):
    """``as_is``: a guest with the whole of A's CPU runs on B. ``migratable``: one with ``baseline`` (``<cpu>``
    XML, None where there is none) runs on both. ``missing_features``: what A has and B has not.
    ``reason`` is None where nothing is in the way."""

    migratable: bool
    as_is: bool
    reason: str | None
    missing_features: list[str]
    baseline: str | None

    def as_dict(self) -> dict[str, Any]:
        """``{"migratable", "as_is", "reason", "missing_features", "baseline"}``."""
        return self._asdict()


class Database:
    """libvirt's CPU models and features. Use it in a ``with``."""

    def __init__(self) -> None:
        self._hypervisor: Hypervisor = connect("test:///default", read_only=True)
        self._models: dict[str, frozenset[str]] = {}
        self._features: dict[str, frozenset[str]] = {}

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened to read it."""
        self._hypervisor.close()

    def models(self, arch: str) -> frozenset[str]:
        """The names of the models that libvirt knows for ``arch``; empty where it knows none."""
        if arch not in self._models:
            try:
                self._models[arch] = frozenset(self._hypervisor.conn.getCPUModelNames(arch, 0) or [])
            except libvirt.libvirtError:
                self._models[arch] = frozenset()
        return self._models[arch]

    def expand(self, cpu: HostCpu) -> frozenset[str]:
        """Every feature of an x86 ``cpu``, those of its model and its own; names unknown to libvirt as they are."""
        return frozenset((self.features_of(cpu.model) | cpu.features) - cpu.lacking)

    def features_of(self, model: str) -> frozenset[str]:
        """The features of an x86 model."""
        if model not in self._features:
            root = self.baseline([HostCpu("x86_64", model)], expand=True)
            found = (e.get("name", "") for e in root.findall("feature") if e.get("policy") in ("require", "force"))
            self._features[model] = frozenset(found)
        return self._features[model]

    def known(self, features: frozenset[str]) -> frozenset[str]:
        """Those of ``features`` that the database has for x86."""
        try:
            self.baseline([HostCpu("x86_64", SMALLEST, features=features)])
        except libvirt.libvirtError:
            # The error names only the first it does not know, in words made for people.
            half = sorted(features)
            if len(half) <= 1:
                return frozenset()
            middle = len(half) // 2
            return self.known(frozenset(half[:middle])) | self.known(frozenset(half[middle:]))
        return features

    def largest_within(self, features: frozenset[str], vendor: str | None) -> str:
        """The x86 model with most of ``features`` and nothing beyond them; SMALLEST where none fits."""
        fitting = [
            (len(has), model)
            for model in self.models("x86_64")
            if (has := self.features_of(model)) <= features and self._may_be_by(model, vendor)
        ]
        return max(fitting, default=(0, SMALLEST))[1]

    def _may_be_by(self, model: str, vendor: str | None) -> bool:
        """Whether ``model`` is of ``vendor``, or of no one's. Without a vendor only the latter will do."""
        try:
            for name in (vendor,) if vendor else ("Intel", "AMD"):
                self.baseline([HostCpu("x86_64", model, name)])
        except libvirt.libvirtError:
            return False
        return True

    def baseline(self, cpus: list[HostCpu], *, expand: bool = False) -> xml.Element:
        """libvirt's baseline of ``cpus`` as a tree; raises libvirtError where they have none."""
        flags = libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES if expand else 0
        texts = [xml.raw(to_element(cpu)) for cpu in cpus]
        return xml.parse(self._hypervisor.conn.baselineCPU(texts, flags), "baseline CPU", "cpu")


def compare(a: HostCpu, b: HostCpu) -> Comparison:
    """Whether guests of a host with CPU ``a`` run on one with CPU ``b``. Pure but for libvirt's database.

    Raises UsageProblem where a model is not in the database.
    """
    if a.arch != b.arch:
        return _never(f"A is {a.arch} and B is {b.arch}", sorted(a.features - b.features))
    if not a.is_x86:
        return _by_name(a, b)
    with Database() as database:
        return compare_x86(database, a, b)


def compare_x86(database: Database, a: HostCpu, b: HostCpu) -> Comparison:
    """compare() for two x86 CPUs, over a ``database`` that is open already."""
    for cpu in (a, b):
        if cpu.model not in database.models(cpu.arch):
            raise UsageProblem(
                f"this libvirt knows no CPU model {cpu.model[:60]!a}",
                "a newer libvirt may: compare there, or over URIs",
            )
    has, offered = database.expand(a), database.expand(b)
    missing = sorted(has - offered)
    if a.vendor and b.vendor and a.vendor != b.vendor:
        return _never(
            f"A's CPU is by {a.vendor} and B's by {b.vendor}: a running guest cannot change its CPU's vendor", missing
        )
    try:
        baseline = _baseline(database, a, b, has & offered)
    except libvirt.libvirtError as error:
        said = " ".join((error.get_error_message() or str(error)).split())
        return _never(f"libvirt finds no CPU that both can give: {said}", missing)
    reason = None
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        reason = f"B's CPU lacks {shown}"
    elif a.vendor and not b.vendor:
        # As virConnectCompareCPU: who does not say its vendor does not have the one that is asked for.
        reason = f"A's CPU is by {a.vendor} and B's vendor is not known"
    return Comparison(True, reason is None, reason, missing, xml.text(baseline))


def _baseline(database: Database, a: HostCpu, b: HostCpu, common: frozenset[str]) -> xml.Element:
    """The nearest model for what both have, as a guest's ``<cpu>``; libvirtError where there is none.

    First libvirt judges the bare models, in both orders, as it asks the database for the vendor of the
    second only: a model whose vendor is not said must not meet another vendor's either.
    """
    bare = [cpu._replace(features=frozenset(), vendor=_vendor(database, cpu)) for cpu in (a, b)]
    database.baseline(bare)
    database.baseline(bare[::-1])
    known = database.known(common - NEVER_MIGRATES)
    if not known:
        raise libvirt.libvirtError("CPUs are incompatible")
    vendor = bare[0].vendor if a.vendor == b.vendor else None
    model = database.largest_within(known, vendor)
    root = database.baseline([HostCpu(a.arch, model, vendor, known)])
    for name in sorted(SMALLEST_HAS - known if model == SMALLEST else ()):
        # Only there because libvirt takes no CPU without a model.
        xml.add(root, "feature", policy="disable", name=name)
    return root


def _vendor(database: Database, cpu: HostCpu) -> str | None:
    """The vendor to tell libvirt: None for one it does not know, which is then compared by name alone."""
    if cpu.vendor is None:
        return None
    try:
        database.baseline([HostCpu(cpu.arch, SMALLEST, cpu.vendor)])
    except libvirt.libvirtError:
        return None
    return cpu.vendor


def _by_name(a: HostCpu, b: HostCpu) -> Comparison:
    """Outside x86 a guest has its host's very CPU model (virCPUarmCompare, ppc64Compute): only features differ."""
    missing = sorted((a.features - a.lacking) - (b.features - b.lacking))
    if a.vendor and b.vendor and a.vendor != b.vendor:
        return _never(f"A's CPU is by {a.vendor} and B's by {b.vendor}", missing)
    if a.model != b.model:
        return _never(f"A's CPU is a {a.model} and B's a {b.model}; on {a.arch} a guest needs the same", missing)
    root = xml.new("cpu", mode="custom", match="exact")
    xml.add(root, "model", a.model, fallback="forbid")
    if a.vendor and a.vendor == b.vendor:
        xml.add(root, "vendor", a.vendor)
    for name in sorted((a.features & b.features) - a.lacking - b.lacking):
        xml.add(root, "feature", policy="require", name=name)
    reason = f"B's CPU lacks {', '.join(missing[:8])}" if missing else None
    return Comparison(True, not missing, reason, missing, xml.text(root))


def _never(reason: str, missing: list[str]) -> Comparison:
    return Comparison(False, False, reason, missing, None)


def cpu_of(source: str) -> HostCpu:
    """The host CPU that ``source``, a libvirt URI or a file, describes.

    Raises NotFound for a file that is not there, UsageProblem for one that describes no CPU,
    ConnectionFailed for a URI that does not answer.
    """
    if "://" in source:
        return _cpu_of_hypervisor(source)
    if source.startswith("-"):
        raise UsageProblem(f"{source[:60]!a} is neither a libvirt URI nor a file")
    path = Path(source)
    try:
        with path.open("rb") as file:
            data = file.read(xml.LARGEST_XML + 1)
    except FileNotFoundError:
        raise NotFound(f"no file {source[:200]!a}", "give a file, or a URI like qemu:///system") from None
    except IsADirectoryError:
        raise UsageProblem(f"{source[:200]!a} is a directory", "give a file with capabilities XML") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageProblem(f"{source[:200]!a} cannot be read: {why}") from None
    what = f"file {source[:200]!a}"
    return from_document(xml.parse(data, what), what)


def _cpu_of_hypervisor(uri: str) -> HostCpu:
    with connect(uri) as hypervisor, translated(uri):
        root = xml.parse(hypervisor.conn.getCapabilities(), f"capabilities of {uri}", "capabilities")
        try:
            return from_document(root, uri)
        except UsageProblem:
            # A CPU that libvirt cannot name in its capabilities still has a host-model for guests.
            pass
        try:
            return from_document(xml.parse(hypervisor.conn.getDomainCapabilities(), "domain capabilities"), uri)
        except UsageProblem as error:
            raise KvmctlError(f"{uri} does not say which CPU it has", error.hint) from None
