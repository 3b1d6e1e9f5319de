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
