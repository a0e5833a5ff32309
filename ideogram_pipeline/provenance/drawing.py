"""A lineage as people look at it: a tree for the terminal, Graphviz or Mermaid for a picture."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ideogram_pipeline.generation.rows import EdgeRow
from ideogram_pipeline.provenance.lineage import Lineage, Node, NodeId
from ideogram_pipeline.texts import shown

if TYPE_CHECKING:
    from rich.tree import Tree


WIDTH = 400
"""Columns of a tree: ids stay whole, and a terminal wraps them."""
TOLD_IN_FULL = 12
"""Of so many things at most everything is told; of more only what stands in a line, and all of what was asked for."""

_MERMAID = {ord(sign): f"#{ord(sign)};" for sign in '#"<>&`'}
"""What Mermaid, or the HTML that it makes, would not take for text."""

_Near = Mapping[NodeId, list[tuple[str, NodeId]]]


def tree(lineage: Lineage) -> Tree:
    """Return the lineage as a tree: for each root what it came from and what came of it."""
    from rich.text import Text
    from rich.tree import Tree

    nodes = {(node.kind, node.id): node for node in lineage.nodes}
    before, after = _neighbours(lineage)
    top = Tree(Text(shown(lineage.key)))
    if lineage.likeness is not None:
        top.add(Text(f"likely, not certain: {_looks(lineage.likeness)}"))

    tells_all = len(nodes) <= TOLD_IN_FULL

    def tell(branch: Tree, node: NodeId) -> None:
        for name, value in _told(nodes[node]):
            branch.add(Text.assemble((name, "dim"), " ", shown(value)))

    def grow(branch: Tree, node: NodeId, near: _Near, seen: set[NodeId]) -> None:
        also = [] if near is before else [one for one in before[node] if one[1][0] in ("reference", "run")]
        for how, other in [*also, *near[node]]:
            if other in seen or other not in nodes:
                continue
            leaf = branch.add(Text.assemble((how, "dim"), " ", _line(nodes[other])))
            if tells_all:
                tell(leaf, other)
            if (how, other) not in also:
                grow(leaf, other, near, seen | {other})

    for root in lineage.roots:
        branch = top.add(Text(_line(nodes[root])))
        tell(branch, root)
        if lineage.upstream:
            grow(branch.add(Text("came from", "bold")), root, before, {root})
        if lineage.downstream:
            grow(branch.add(Text("became", "bold")), root, after, {root})
    return top


def dot(lineage: Lineage) -> str:
    """Return the lineage for Graphviz."""
    lines = ["digraph lineage {", '  rankdir="LR"; node [shape="box", fontname="sans-serif"];']
    lines += [f"  {_quoted(_key(node))} [label={_quoted(_line(node))}];" for node in lineage.nodes]
    lines += [
        f"  {_quoted(f'{edge.from_kind}:{edge.from_id}')} -> {_quoted(f'{edge.to_kind}:{edge.to_id}')} "
        f"[label={_quoted(_how(edge))}];"
        for edge in lineage.edges
    ]
    return "\n".join([*lines, "}"])


def mermaid(lineage: Lineage) -> str:
    """Return the lineage for Mermaid."""
    names = {(node.kind, node.id): f"n{number}" for number, node in enumerate(lineage.nodes)}
    lines = ["flowchart LR"]
    for node in lineage.nodes:
        label = _line(node).translate(_MERMAID)
        lines.append(f'  {names[node.kind, node.id]}["{label}"]')
    for edge in lineage.edges:
        start, end = names[edge.from_kind, edge.from_id], names[edge.to_kind, edge.to_id]
        lines.append(f'  {start} -->|"{_how(edge)}"| {end}')
    return "\n".join(lines)


def _looks(distance: int) -> str:
    if not distance:
        return "it looks the same as this"
    return f"it looks like this, different in {distance} of 64 bits"


def _neighbours(lineage: Lineage) -> tuple[_Near, _Near]:
    before: dict[NodeId, list[tuple[str, NodeId]]] = defaultdict(list)
    after: dict[NodeId, list[tuple[str, NodeId]]] = defaultdict(list)
    for edge in lineage.edges:
        start: NodeId = (edge.from_kind, edge.from_id)
        end: NodeId = (edge.to_kind, edge.to_id)
        before[end].append((_how(edge), start))
        after[start].append((_how(edge), end))
        for digest in {edge.sha256, edge.sha256_received} - {None}:
            reference: NodeId = ("reference", str(digest))
            before[reference].append(("same bytes", end))
            after[end].append(("same bytes", reference))
    return before, after


def _how(edge: EdgeRow) -> str:
    return f"{edge.kind.replace('_', ' ')} {edge.field}" if edge.field else edge.kind.replace("_", " ")


def _key(node: Node) -> str:
    return f"{node.kind}:{node.id}"


def _line(node: Node) -> str:
    """Return a node in one line, whoever wrote what stands in it."""
    return shown(_words(node))


def _words(node: Node) -> str:
    facts = node.facts
    match node.kind:
        case "reference":
            return f"reference {facts.get('reference_id') or ''} sha256 {node.id}".replace("  ", " ")
        case "prompt":
            return f"prompt {node.id}: {facts.get('prompt') or 'without a text'}"
        case "request":
            take = f", take {facts['take']}" if facts.get("take") else ""
            cost = "unknown" if facts.get("cost_usd") is None else f"${facts['cost_usd']}"
            return (
                f"request {node.id} {facts.get('endpoint', '')}, seed {facts.get('seed')}{take}, cost {cost}"
            )
        case "submit":
            return f"submit {node.id}: {facts.get('state')}"
        case "image":
            return f"image {node.id} {facts.get('width')}x{facts.get('height')}"
        case _:
            return f"{node.kind} {node.id}"


def _told(node: Node) -> Iterator[tuple[str, str]]:
    for name, value in node.facts.items():
        if value not in (None, "", {}, "{}"):
            yield (
                name.replace("_", " "),
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
            )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
