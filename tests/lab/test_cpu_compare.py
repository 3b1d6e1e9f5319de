"""``host cpu compare`` against what libvirt itself says of a real host, for every CPU model that it knows."""

from pathlib import Path

import libvirt
from lxml import etree

from kvmctl.model import xml
from kvmctl.model.host_cpu import HostCpu
from kvmctl.preflight import cpu_compare
from tests.lab.hosts import Host

CPU_MAP = Path("/usr/share/libvirt/cpu_map")


def as_of_a_guest(cpu: HostCpu) -> str:
    """``<cpu>`` as a domain has it: only there can a feature of the model be switched off."""
    root = xml.new("cpu", mode="custom", match="exact")
    xml.add(root, "model", cpu.model)
    if cpu.vendor:
        xml.add(root, "vendor", cpu.vendor)
    for name in sorted(cpu.lacking):
        xml.add(root, "feature", policy="disable", name=name)
    return xml.raw(root)


def models_by(vendor: str) -> set[str]:
    """The models of libvirt's database that are this vendor's, with those that stand on them."""
    trees = [etree.parse(path).getroot() for path in sorted(CPU_MAP.glob("x86_*.xml"))]
    models = {model.get("name", ""): model for tree in trees for model in tree.findall("model")}

    def whose(model: etree._Element) -> str | None:
        own, parent = model.find("vendor"), model.find("model")
        if own is not None:
            return own.get("name")
        return whose(models[parent.get("name", "")]) if parent is not None else None

    return {name for name, model in models.items() if whose(model) == vendor}


def test_agrees_with_libvirts_verdict_on_a_real_host(host_a: Host) -> None:
    """virConnectCompareCPU of each model as it is and short of features."""
    host = cpu_compare.cpu_of(host_a.uri)
    by_vendor = {name: models_by(name) for name in ("Intel", "AMD", "Hygon")}
    seen = {True: 0, False: 0}
    with cpu_compare.Database() as database:
        for model in sorted(database.models("x86_64")):
            features = database.features_of(model)
            missing = sorted(features - database.expand(host))
            # A real host always says whose its CPU is.
            vendor = next((name for name, models in by_vendor.items() if model in models), None)
            short = [frozenset(sorted(features)[:1])]
            if vendor in (None, host.vendor) and missing:
                # Without all that this host lacks it runs here; without all of that but one it does not.
                short += [frozenset(missing), frozenset(missing[1:])]
            wanted = [HostCpu("x86_64", model, vendor, lacking=lacking) for lacking in (frozenset[str](), *short)]
            for cpu in wanted:
                verdict = cpu_compare.compare_x86(database, cpu, host).as_is
                told = host_a.conn.compareCPU(as_of_a_guest(cpu), 0)
                assert verdict == (told != libvirt.VIR_CPU_COMPARE_INCOMPATIBLE), (model, cpu, told, missing)
                seen[verdict] += 1
    assert min(seen.values()) > 20, seen


def test_two_hosts_and_a_file_of_one(host_a: Host, host_b: Host, tmp_path: Path) -> None:
    """URIs and files say the same; here both hosts are one machine."""
    file = tmp_path / "a.xml"
    file.write_text(host_a.virsh("capabilities").stdout)
    by_uri = host_a.kvmctl("host", "cpu", "compare", host_a.uri, host_b.tcp_uri, "-o", "json").json()
    by_file = host_a.kvmctl("host", "cpu", "compare", str(file), host_b.tcp_uri, "-o", "json").json()
    assert by_uri == by_file and by_uri["as_is"] is True and by_uri["missing_features"] == []
    baseline = by_uri["baseline"]
    assert host_a.conn.compareCPU(baseline, 0) != libvirt.VIR_CPU_COMPARE_INCOMPATIBLE
    assert etree.fromstring(baseline).findtext("model")
