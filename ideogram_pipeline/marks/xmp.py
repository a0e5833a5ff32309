"""The marks as an XMP packet: IPTC's terms for generated media, and a few of our own that lead back to the ledger.

IPTC Photo Metadata Standard 2025.1 (https://iptc.org/standards/photo-metadata/) has the terms `DigitalSourceType`,
`AISystemUsed`, `AISystemVersionUsed` and `AIPromptInformation`; XMP is ISO 16684-1.

The marks have versions, and each can be written for ever: a picture that is fetched again becomes the file it was. The
first one's namespace ended in a colon, to which exiv2 (and so digiKam, darktable and GIMP) adds a slash: what it has
edited is read all the same.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from xml.etree import ElementTree as ET

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ideogram_pipeline.containers import MAX_XMP_BYTES, OddMetadata

TRAINED_ALGORITHM = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's code for what a trained model made."""
ALGORITHM = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia"
"""IPTC's code for what an algorithm drew that learned from no examples."""

_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_OWN = {2: "urn:ideogram-pipeline:marks:2#", 1: "urn:ideogram-pipeline:marks:1:"}
"""Our namespace in each version of the marks, newest first."""
VERSION = max(_OWN)
"""Version of the marks that new pictures carry."""
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_META = "adobe:ns:meta/"
for _prefix, _space in {
    "x": _META,
    "rdf": _RDF,
    "Iptc4xmpExt": _IPTC,
    "ideogram": _OWN[1],
    "ideogramPipeline": _OWN[2],
}.items():  # once for all threads: while one is registered anew, others would write it as `ns0`
    ET.register_namespace(_prefix, _space)
_HEAD = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_TAIL = '\n<?xpacket end="r"?>'
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WHITESPACE = b"\0 \t\r\n"
MAX_DEPTH = 100
"""A packet whose elements stand deeper in each other is not read."""


class Origin(BaseModel):
    """What a picture says of how it came to be, in IPTC's terms, which others write too."""

    model_config = ConfigDict(frozen=True)

    source_type: str = Field(description="IPTC's code for how it came to be.")
    system: str = Field(description="What made it.")
    system_version: str = Field(description="Which version of that, as far as it is told.")
    prompt: str | None = Field(default=None, description="The prompt as sent, only where it may be told.")


class Marks(Origin):
    """What a picture of ours says of itself."""

    prompt_sha256: str | None = Field(
        default=None,
        description="Hex digest of the prompt as sent, in UTF-8; none where there was no prompt.",
    )
    prompt_id: str = Field(description="Row of the prompts table.")
    fingerprint: str = Field(description="Identity of the request.")
    request_id: str = Field(description="fal's id of the request.")
    seed: int = Field(description="The seed that was used.")
    image_index: int = Field(description="Position among the request's pictures, from 0.")
    backend: str = Field(description="`fal`, or `sandbox` for what the local stand-in drew.")
    version: int = Field(
        default=VERSION, exclude=True, description="Version of the marks: how they are written."
    )


_ORIGIN = {
    "source_type": f"{{{_IPTC}}}DigitalSourceType",
    "system": f"{{{_IPTC}}}AISystemUsed",
    "system_version": f"{{{_IPTC}}}AISystemVersionUsed",
    "prompt": f"{{{_IPTC}}}AIPromptInformation",
}
_FINGERPRINT = "Fingerprint"
_NAMES = {
    "prompt_sha256": "PromptSha256",
    "prompt_id": "PromptId",
    "fingerprint": _FINGERPRINT,
    "request_id": "RequestId",
    "seed": "Seed",
    "image_index": "ImageIndex",
    "backend": "Backend",
}


def packet(marks: Marks, before: Sequence[bytes] = ()) -> bytes:
    """Return the marks as an XMP packet, added to what the picture said `before`, whose own words stay.

    The words of several packets are put into one; of those that contradict each other, the first one's stay.

    Raises:
        OddMetadata: that can't be read as XMP.
    """
    trees = [_tree(one) for one in before if one.strip(_WHITESPACE)]
    root = trees[0] if trees else ET.Element(f"{{{_META}}}xmpmeta")
    rdf = next(root.iter(f"{{{_RDF}}}RDF"), None)
    if rdf is None:
        rdf = ET.SubElement(root, f"{{{_RDF}}}RDF")
    if marks.version == 1:
        for own in [one for one in rdf if f"{{{_OWN[1]}}}{_FINGERPRINT}" in one.attrib]:
            rdf.remove(own)
    else:
        for tree in trees:
            _remove_marks(tree)
        for other in trees[1:]:
            _add(rdf, other)
    said = _said(rdf)
    description = ET.SubElement(rdf, f"{{{_RDF}}}Description", {f"{{{_RDF}}}about": ""})
    terms = _terms(_OWN[marks.version])
    for name, value in marks.model_dump(exclude_none=True).items():
        if terms[name] not in said:
            description.set(terms[name], _NOT_IN_XML.sub("\ufffd", str(value)))
    return (_HEAD + ET.tostring(root, encoding="unicode") + _TAIL).encode()


def parsed(packet: bytes) -> Marks | Origin | None:
    """Return the marks that a packet holds; where it holds none of ours, what IPTC's terms say, if anything.

    Raises:
        OddMetadata: it can't be read as XMP.
    """
    said = _said(_tree(packet))
    for version, space in _spaces():
        with suppress(ValidationError):
            found = {name: said[term] for name, term in _terms(space).items() if term in said}
            return Marks.model_validate({**found, "version": version})
    origin = {name: said.get(term, "") for name, term in _ORIGIN.items()}
    if not (origin["source_type"] or origin["system"]):
        return None
    return Origin.model_validate({**origin, "prompt": origin["prompt"] or None})


def _spaces() -> Iterator[tuple[int, str]]:
    """Yield our namespaces and their versions, each also as exiv2 writes it."""
    for version, space in _OWN.items():
        yield version, space
        if not space.endswith(("/", "#")):
            yield version, f"{space}/"


def _terms(space: str) -> dict[str, str]:
    return {**_ORIGIN, **{name: f"{{{space}}}{term}" for name, term in _NAMES.items()}}


def _remove_marks(root: ET.Element) -> None:
    """Remove marks of ours, and with them what they say in IPTC's terms, wherever an editor has put them."""
    said = _said(root)
    own = {
        term
        for _, space in _spaces()
        if f"{{{space}}}{_FINGERPRINT}" in said
        for term in _terms(space).values()
    }
    for rdf in list(root.iter(f"{{{_RDF}}}RDF")) if own else ():
        for description in list(rdf):
            for term in own & description.attrib.keys():
                del description.attrib[term]
            for element in [one for one in description if one.tag in own]:
                description.remove(element)
            if not len(description) and description.attrib.keys() <= {f"{{{_RDF}}}about"}:
                rdf.remove(description)


def _add(rdf: ET.Element, other: ET.Element) -> None:
    """Add to a packet what another one says and it doesn't."""
    said = _said(rdf)
    for theirs in (one for there in other.iter(f"{{{_RDF}}}RDF") for one in there):
        new = copy.copy(theirs)
        for term in said.keys() & new.attrib.keys() - {f"{{{_RDF}}}about"}:
            del new.attrib[term]
        for element in [one for one in new if one.tag in said]:
            new.remove(element)
        if len(new) or new.attrib.keys() - {f"{{{_RDF}}}about"}:
            rdf.append(new)


class _Bounded(ET.TreeBuilder):
    """Makes a tree of elements, as long as they are not too deep in each other."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def start(self, tag: str, attrs: dict[str, str]) -> ET.Element:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise OddMetadata(f"its XMP is more than {MAX_DEPTH} elements deep")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ET.Element:
        self._depth -= 1
        return super().end(tag)


def _tree(packet: bytes) -> ET.Element:
    """Return a packet's element.

    Raises:
        OddMetadata: it isn't XMP, or more than a packet has any reason to be.
    """
    if len(packet) > MAX_XMP_BYTES:
        raise OddMetadata(f"its XMP is larger than {MAX_XMP_BYTES:,} bytes")
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:
        raise OddMetadata("its XMP declares entities")
    try:
        root = ET.fromstring(packet.strip(b"\0"), ET.XMLParser(target=_Bounded()))  # noqa: S314 - without entities there is nothing to expand
    except OddMetadata:
        raise
    except (ET.ParseError, ValueError):
        raise OddMetadata("its XMP can't be read") from None
    if root.tag not in (f"{{{_META}}}xmpmeta", f"{{{_RDF}}}RDF"):
        raise OddMetadata("what stands in place of its XMP is not XMP")
    return root


def _said(root: ET.Element) -> dict[str, str]:
    """Return every simple property, written as an attribute or as an element; the last one counts."""
    said: dict[str, str] = {}
    for description in root.iter(f"{{{_RDF}}}Description"):
        said.update(description.attrib)
        said.update({element.tag: _value(element) for element in description})
    return said


def _value(element: ET.Element) -> str:
    """Return a simple property's value: its text, the address it names, or the first of several."""
    first = next(element.iter(f"{{{_RDF}}}li"), element)
    return (first.text or "").strip() or element.get(f"{{{_RDF}}}resource", "")
