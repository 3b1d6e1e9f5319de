"""host cpu compare against a reading of libvirt's CPU database that shares no code with it."""

import itertools
import json
import random
from pathlib import Path

import pytest
from lxml import etree

from kvmctl.cli.root import run
from kvmctl.errors import KvmctlError, NotFound, UsageProblem
from kvmctl.model.host_cpu import HostCpu
from kvmctl.preflight import cpu_compare

CPU_MAP = Path("/usr/share/libvirt/cpu_map")


class Map:
    """cpu_map/x86_*.xml: the features and the vendor of each model."""

    def __init__(self) -> None:
        self.models: dict[str, tuple[frozenset[str], str | None]] = {}
        self.features: set[str] = set()
        for path in CPU_MAP.glob("x86_*.xml"):
            root = etree.parse(path).getroot()
            self.features |= {f.get("name", "") for f in root.findall("feature")}
        self.elements = {
            model.get("name", ""): model
            for path in CPU_MAP.glob("x86_*.xml")
            for model in etree.parse(path).getroot().findall("model")
        }
        for name in self.elements:
            self.resolve(name)

    def resolve(self, name: str) -> tuple[frozenset[str], str | None]:
        if name not in self.models:
            element = self.elements[name]
            features: set[str] = set()
            vendor = None
            parent = element.find("model")
            if parent is not None:
                inherited, vendor = self.resolve(parent.get("name", ""))
                features |= inherited
            for feature in element.findall("feature"):
                # "removed" ones were in the model once; QEMU took them out. "added" ones came later (since libvirt
                # 10.0): a model is no promise of them, so a host that has them says so beside its model.
                if "yes" not in (feature.get("removed"), feature.get("added")):
                    features.add(feature.get("name", ""))
            own = element.find("vendor")
            vendor = own.get("name") if own is not None else vendor
            self.models[name] = frozenset(features), vendor
        return self.models[name]


@pytest.fixture(scope="module")
def cpu_map() -> Map:
    if not CPU_MAP.is_dir():
        pytest.skip(f"libvirt's CPU database is not in {CPU_MAP} here")
    return Map()


def hosts(cpu_map: Map, count: int) -> list[HostCpu]:
    """CPUs as real hosts describe themselves: a model, its vendor, and what they have beyond it."""
    chance = random.Random(9)
    extra = sorted(cpu_map.features)
    names = sorted(cpu_map.models)
    made = []
    for index in range(count):
        name = names[index % len(names)] if index < len(names) else chance.choice(names)
        vendor = cpu_map.models[name][1]
        beyond = frozenset(chance.sample(extra, chance.choice([0, 0, 1, 5, 40])))
        lacking = frozenset(chance.sample(sorted(cpu_map.models[name][0]), chance.choice([0, 0, 0, 1, 3])))
        made.append(HostCpu("x86_64", name, vendor, beyond - lacking, lacking))
    return made


def test_agrees_with_the_database_over_all_pairs(cpu_map: Map) -> None:
    cpus = hosts(cpu_map, 95)
    pairs = random.Random(3).sample(list(itertools.permutations(cpus, 2)), 600)
    pairs += [(cpu, cpu) for cpu in cpus]
    seen = {"as_is": 0, "baseline": 0, "never": 0}
    database = cpu_compare.Database()
    for a, b in pairs:
        found = cpu_compare.compare_x86(database, a, b)
        has_a = (cpu_map.models[a.model][0] | a.features) - a.lacking
        has_b = (cpu_map.models[b.model][0] | b.features) - b.lacking
        if a.vendor and b.vendor and a.vendor != b.vendor:
            assert not found.migratable and not found.as_is, (a, b)
            assert found.reason and a.vendor in found.reason and b.vendor in found.reason
            assert found.baseline is None
            seen["never"] += 1
            continue
        assert found.missing_features == sorted(has_a - has_b), (a, b)
        vendors_fit = a.vendor is None or b.vendor is not None
        assert found.as_is == (has_a <= has_b and vendors_fit), (a, b)
        if not has_a & has_b:
            assert not found.migratable
            continue
        assert found.migratable, (a, b, found.reason)
        assert found.baseline is not None
        root = etree.fromstring(found.baseline)
        required = {f.get("name") for f in root.findall("feature") if f.get("policy") == "require"}
        disabled = {f.get("name") for f in root.findall("feature") if f.get("policy") == "disable"}
        baseline = (cpu_map.models[root.findtext("model", "")][0] | required) - disabled
        assert baseline == (has_a & has_b) - {"invtsc"}, (a, b)
        seen["as_is" if found.as_is else "baseline"] += 1
    database.close()
    assert min(seen.values()) > 20, seen


INTEL = "<cpu><arch>x86_64</arch><model>Haswell</model><vendor>Intel</vendor><feature name='vmx'/></cpu>"
OLDER = "<cpu><arch>x86_64</arch><model>Nehalem</model><vendor>Intel</vendor></cpu>"
AMD = "<cpu><arch>x86_64</arch><model>EPYC-Rome</model><vendor>AMD</vendor></cpu>"


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("wrap", ["{}", "<host>{}</host>", "<capabilities><host>{}</host></capabilities>"])
def test_reads_each_document(wrap: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, old = write(tmp_path / "a", wrap.format(INTEL)), write(tmp_path / "b", wrap.format(OLDER))
    assert run(["host", "cpu", "compare", old, new, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["as_is"] is True
    assert run(["host", "cpu", "compare", new, old, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["migratable", "as_is", "reason", "missing_features", "baseline"]
    assert found["migratable"] is True and found["as_is"] is False
    assert "avx2" in found["missing_features"] and "vmx" in found["missing_features"]
    assert "Nehalem" in found["baseline"]


def test_another_vendor_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    intel, amd = write(tmp_path / "a", INTEL), write(tmp_path / "b", AMD)
    for pair in ((intel, amd), (amd, intel)):
        assert run(["host", "cpu", "compare", *pair, "-o", "json"]) == 7
        found = json.loads(capsys.readouterr().out)
        assert found["migratable"] is False and found["as_is"] is False and found["baseline"] is None
        assert "Intel" in found["reason"] and "AMD" in found["reason"]
    assert run(["host", "cpu", "compare", intel, amd]) == 7
    assert "vendor" in capsys.readouterr().out


def test_vendor_of_the_model_counts_where_none_is_said() -> None:
    found = cpu_compare.compare(HostCpu("x86_64", "EPYC"), HostCpu("x86_64", "Skylake-Server", "Intel"))
    assert not found.migratable and found.baseline is None


def test_another_architecture_is_refused() -> None:
    found = cpu_compare.compare(HostCpu("x86_64", "Haswell"), HostCpu("aarch64", "cortex-a57", "ARM"))
    assert not found.migratable and found.reason == "A is x86_64 and B is aarch64"


def test_arm_compares_model_and_features_by_name() -> None:
    a = HostCpu("aarch64", "Neoverse-N1", "ARM", frozenset({"fp", "asimd", "sve"}))
    b = HostCpu("aarch64", "Neoverse-N1", "ARM", frozenset({"fp", "asimd"}))
    assert cpu_compare.compare(b, a).as_is
    found = cpu_compare.compare(a, b)
    assert found.migratable and not found.as_is and found.missing_features == ["sve"]
    assert found.baseline is not None and "sve" not in found.baseline
    assert not cpu_compare.compare(a, HostCpu("aarch64", "Kunpeng-920", "HiSilicon")).migratable


def test_features_this_libvirt_does_not_know_compare_by_name() -> None:
    a = HostCpu("x86_64", "Haswell", "Intel", frozenset({"not-yet-known"}))
    found = cpu_compare.compare(a, HostCpu("x86_64", "Haswell", "Intel"))
    assert found.missing_features == ["not-yet-known"] and found.migratable and not found.as_is
    assert cpu_compare.compare(a, a).as_is


def test_invtsc_stays_out_of_the_baseline() -> None:
    a = HostCpu("x86_64", "Haswell", "Intel", frozenset({"invtsc"}))
    found = cpu_compare.compare(a, a)
    assert found.as_is and found.baseline is not None and "invtsc" not in found.baseline


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not well-formed"),
        ("no xml", "not well-formed"),
        ("<cpu>", "not well-formed"),
        ('<!DOCTYPE cpu [<!ENTITY x SYSTEM "file:///etc/passwd">]><cpu><model>&x;</model></cpu>', "DOCTYPE"),
        ("<network/>", "begins with"),
        ("<capabilities><host/></capabilities>", "no CPU"),
        ("<cpu mode='host-passthrough'/>", "no model"),
        ("<cpu><model>Imaginary</model></cpu>", "no CPU model"),
        ("<cpu><model>Haswell</model><feature/></cpu>", "no name"),
        ("<cpu><model>Haswell</model><feature name='avx'/><feature name='avx'/></cpu>", "twice"),
        ("<cpu><model>Haswell</model>" + "".join(f"<feature name='f{n}'/>" for n in range(3000)) + "</cpu>", "3000"),
        ("<cpu>" + " " * 4 * 1024 * 1024 + "</cpu>", "4 MiB"),
    ],
)
def test_hostile_documents(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = write(tmp_path / "bad", text), write(tmp_path / "good", INTEL)
    for pair in ((bad, good), (good, bad)):
        assert run(["host", "cpu", "compare", *pair]) == 2
        said = capsys.readouterr().err
        assert says in said and "Traceback" not in said


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        cpu_compare.cpu_of(str(tmp_path / "missing.xml"))
    for odd in (str(tmp_path), "", "-rf", "a\0b", "x" * 5000):
        with pytest.raises((UsageProblem, NotFound)):
            cpu_compare.cpu_of(odd)
    with pytest.raises(KvmctlError) as refused:
        cpu_compare.cpu_of("qemu+ssh://h/system?command=touch%20/tmp/x")
    assert refused.value.exit_code == 2
