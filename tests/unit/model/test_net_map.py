"""The picture of a host's networks as text, DOT and SVG."""

from kvmctl.model import xml
from kvmctl.model.net_map import Node, as_dot, as_svg, as_text

HOSTILE = 'x" ]; evil \\ <b>\x1b[2J'
ROOT = Node(
    "host",
    "lab",
    ("qemu:///system",),
    children=(
        Node(
            "network",
            "default",
            ("nat", "virbr0"),
            children=(
                Node("guest", "web", ("192.168.122.9",), children=(Node("forward", "0.0.0.0:8080/tcp → 80"),)),
                Node("guest", HOSTILE, up=False),
            ),
        ),
        Node("device", "eth1"),
    ),
)


def test_as_a_tree() -> None:
    assert as_text(ROOT) == (
        "host lab  qemu:///system\n"
        "├── network default  nat  virbr0\n"
        "│   ├── web  192.168.122.9\n"
        "│   │   └── 0.0.0.0:8080/tcp → 80\n"
        '│   └── x" ]; evil \\ <b>\\x1b[2J  (off)\n'
        "└── device eth1\n"
    )


def test_a_tree_in_a_narrow_terminal_keeps_its_lines() -> None:
    reason = "its rule is missing from the host's firewall"
    forward = Node("forward", "0.0.0.0:8080/tcp → 80", (reason,), up=False)
    guests = (Node("guest", "web", ("192.168.122.9",), children=(forward,)), Node("guest", "a" * 50))
    tree = as_text(Node("host", "lab", children=(Node("network", "default", children=guests),)), 40)
    assert tree == (
        "host lab\n"
        "└── network default\n"
        "    ├── web  192.168.122.9\n"
        "    │   └── 0.0.0.0:8080/tcp → 80  its\n"
        "    │           rule is missing from the\n"
        "    │           host's firewall  (off)\n"
        f"    └── {'a' * 32}\n"
        f"            {'a' * 18}\n"
    )
    assert max(map(len, tree.splitlines())) == 40


def test_as_dot_with_names_that_stay_names() -> None:
    drawn = as_dot(ROOT)
    assert drawn.startswith("graph networks {") and drawn.endswith("}\n")
    assert drawn.count(" -- ") == 5
    assert '[label="x\\" ]; evil \\\\ <b>\\\\x1b[2J\\n(off)"' in drawn


def test_as_svg() -> None:
    svg = xml.parse(as_svg(ROOT), "picture")
    texts = ["".join(element.itertext()) for element in svg.iter("{*}text")]
    assert len(texts) == 6 and texts[0] == "host lab  qemu:///system"
    assert texts[4] == 'x" ]; evil \\ <b>\\x1b[2J  (off)'
    width, height = int(svg.get("width", "0")), int(svg.get("height", "0"))
    for box in svg.iter("{*}rect"):
        if box.get("x"):
            assert int(box.get("x", "")) + int(box.get("width", "")) <= width
            assert int(box.get("y", "")) + int(box.get("height", "")) <= height


def test_as_json() -> None:
    found = ROOT.as_dict()
    assert found["children"][0]["children"][0] == {
        "kind": "guest",
        "name": "web",
        "detail": ["192.168.122.9"],
        "up": True,
        "children": [
            {"kind": "forward", "name": "0.0.0.0:8080/tcp → 80", "detail": [], "up": True, "children": []},
        ],
    }
