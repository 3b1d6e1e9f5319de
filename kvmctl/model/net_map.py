"""A picture of a host's networks: a tree of nodes, drawn as text, as DOT or as SVG."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any, Literal

from kvmctl.model import xml
from kvmctl.model.names import harmless

Kind = Literal["host", "network", "bridge", "device", "user", "guest", "forward", "port"]

# Graphviz's and SVG's colours alike: light ground, dark text and lines, told apart by people who see no red or green.
_COLORS: dict[str, str] = {
    "host": "#e8e8e8",
    "network": "#cfe2f3",
    "bridge": "#d9d2e9",
    "device": "#fff2cc",
    "user": "#f4f4f4",
    "guest": "#ffffff",
    "forward": "#fce5cd",
    "port": "#f4f4f4",
}


@dataclass(frozen=True)
class Node:
    """One thing in the picture. ``detail`` is what there is to say of it, ``up`` False where it is off."""

    kind: Kind
    name: str
    detail: tuple[str, ...] = ()
    up: bool = True
    children: tuple["Node", ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """``{"kind", "name", "detail", "up", "children"}``, the children alike."""
        return {
            "kind": self.kind,
            "name": self.name,
            "detail": list(self.detail),
            "up": self.up,
            "children": [child.as_dict() for child in self.children],
        }

    @property
    def label(self) -> str:
        """What stands in the picture, harmless to a terminal."""
        word = {"host": "host ", "network": "network ", "bridge": "bridge ", "device": "device "}.get(self.kind, "")
        off = "" if self.up else "  (off)"
        return harmless("  ".join((f"{word}{self.name}", *self.detail)) + off)


def as_text(root: Node, width: int | None = None) -> str:
    """The tree with lines, as tree(1) draws it; what is longer than ``width`` columns goes on below its own line."""

    def own(node: Node, first: str, rest: str) -> Iterator[str]:
        room = max(24, width - len(first)) if width is not None else sys.maxsize
        head, *more = wrap(node.label, room, subsequent_indent="    ", break_on_hyphens=False) or [""]
        yield first + head
        # The line down to its children is not broken by it.
        yield from (rest + text.replace("    ", "│   ", 1) if node.children else rest + text for text in more)

    def lines(node: Node, indent: str) -> Iterator[str]:
        for index, child in enumerate(node.children):
            last = index == len(node.children) - 1
            rest = indent + ("    " if last else "│   ")
            yield from own(child, f"{indent}{'└── ' if last else '├── '}", rest)
            yield from lines(child, rest)

    return "\n".join([*own(root, "", ""), *lines(root, "")]) + "\n"


def as_dot(root: Node) -> str:
    """The same for Graphviz (https://graphviz.org/doc/info/lang.html)."""
    lines = ["graph networks {", "  rankdir=LR;", '  node [shape=box, style="filled,rounded", fontname="sans-serif"];']

    def draw(node: Node, parent: int | None) -> None:
        number = len(numbers)
        numbers.append(number)
        dashed = "" if node.up else ', style="filled,rounded,dashed"'
        lines.append(f'  n{number} [label="{_quoted(node.label)}", fillcolor="{_COLORS[node.kind]}"{dashed}];')
        if parent is not None:
            lines.append(f"  n{parent} -- n{number};")
        for child in node.children:
            draw(child, number)

    numbers: list[int] = []
    draw(root, None)
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("  ", "\\n")


_ROW, _BOX, _STEP, _CHARACTER = 34, 26, 28, 7.3


def as_svg(root: Node) -> str:
    """The same as a picture: one row a node, children below their parent and to the right. Sizes in pixels."""
    rows: list[tuple[int, int | None, Node]] = []

    def walk(node: Node, depth: int, parent: int | None) -> None:
        rows.append((depth, parent, node))
        own = len(rows) - 1
        for child in node.children:
            walk(child, depth + 1, own)

    walk(root, 0, None)
    width = max(int(20 + depth * _STEP + len(node.label) * _CHARACTER + 30) for depth, _, node in rows)
    height = len(rows) * _ROW + 20
    svg = xml.etree.Element("svg", nsmap={None: "http://www.w3.org/2000/svg"})
    for key, value in (("width", width), ("height", height)):
        svg.set(key, str(value))
    svg.set("viewBox", f"0 0 {width} {height}")
    xml.add(svg, "title", root.label)
    xml.add(svg, "rect", width="100%", height="100%", fill="#ffffff")
    for index, (depth, parent, node) in enumerate(rows):
        x, y = 10 + depth * _STEP, 10 + index * _ROW
        if parent is not None:
            top = 10 + parent * _ROW + _BOX
            line = f"M{x - _STEP // 2} {top} V{y + _BOX // 2} H{x}"
            xml.add(svg, "path", d=line, fill="none", stroke="#666666")
        box = xml.add(svg, "rect", x=x, y=y, rx=4, width=int(len(node.label) * _CHARACTER + 20), height=_BOX)
        box.set("fill", _COLORS[node.kind])
        box.set("stroke", "#444444")
        if not node.up:
            box.set("stroke-dasharray", "4 3")
        text = xml.add(svg, "text", node.label, x=x + 10, y=y + 17, fill="#111111")
        text.set("font-family", "monospace")
        text.set("font-size", "12")
        text.set("{http://www.w3.org/XML/1998/namespace}space", "preserve")
    return xml.text(svg)
