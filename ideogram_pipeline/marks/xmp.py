"""The marks as an XMP packet: IPTC's terms for generated media, and a few of our own that lead back to the ledger.

IPTC Photo Metadata Standard 2025.1 (https://iptc.org/standards/photo-metadata/) has the terms `DigitalSourceType`,
`AISystemUsed`, `AISystemVersionUsed` and `AIPromptInformation`; XMP is ISO 16684-1.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ideogram_pipeline.containers import MAX_XMP_BYTES, OddMetadata

TRAINED_ALGORITHM = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's code for what a trained model made."""
ALGORITHM = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia"
"""IPTC's code for what an algorithm drew that learned from no examples."""

_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_OWN = "urn:ideogram-pipeline:marks:1:"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_META = "adobe:ns:meta/"
_PREFIXES = {"x": _META, "rdf": _RDF, "Iptc4xmpExt": _IPTC, "ideogram": _OWN}
_HEAD = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_TAIL = '\n<?xpacket end="r"?>'
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WHITESPACE = b"\0 \t\r\n"
MAX_DEPTH = 100
"""A packet whose elements stand deeper in each other is not read."""


class Marks(BaseModel):
    """What a picture says of itself."""

    model_config = ConfigDict(frozen=True)

    source_type: str = Field(description="IPTC's code for how it came to be.")
    system: str = Field(description="What made it.")
    system_version: str = Field(description="Which version of that, as far as it is told.")
    prompt: str | None = Field(default=None, description="The prompt as sent, only where it may be told.")
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


_TERMS = {
    "source_type": f"{{{_IPTC}}}DigitalSourceType",
    "system": f"{{{_IPTC}}}AISystemUsed",
    "system_version": f"{{{_IPTC}}}AISystemVersionUsed",
    "prompt": f"{{{_IPTC}}}AIPromptInformation",
    "prompt_sha256": f"{{{_OWN}}}PromptSha256",
    "prompt_id": f"{{{_OWN}}}PromptId",
    "fingerprint": f"{{{_OWN}}}Fingerprint",
    "request_id": f"{{{_OWN}}}RequestId",
    "seed": f"{{{_OWN}}}Seed",
    "image_index": f"{{{_OWN}}}ImageIndex",
    "backend": f"{{{_OWN}}}Backend",
}


def packet(marks: Marks, before: bytes | None = None) -> bytes:
    """Return the marks as an XMP packet, added to what the picture said `before`, whose own words stay.

    Raises:
        OddMetadata: that can't be read as XMP.
    """
    root = _tree(before) if before and before.strip(_WHITESPACE) else ET.Element(f"{{{_META}}}xmpmeta")
    rdf = next(root.iter(f"{{{_RDF}}}RDF"), None)
    if rdf is None:
        rdf = ET.SubElement(root, f"{{{_RDF}}}RDF")
    for own in [one for one in rdf if _TERMS["fingerprint"] in one.attrib]:
        rdf.remove(own)
    said = _said(rdf)
    description = ET.SubElement(rdf, f"{{{_RDF}}}Description", {f"{{{_RDF}}}about": ""})
    for name, value in marks.model_dump(exclude_none=True).items():
        if _TERMS[name] not in said:
            description.set(_TERMS[name], _NOT_IN_XML.sub("\ufffd", str(value)))
    for prefix, space in _PREFIXES.items():
        ET.register_namespace(prefix, space)
    return (_HEAD + ET.tostring(root, encoding="unicode") + _TAIL).encode()


def parsed(packet: bytes) -> Marks | None:
    """Return the marks that a packet holds, if it holds ours.

    Raises:
        OddMetadata: it can't be read as XMP.
    """
    said = _said(_tree(packet))
    try:
        return Marks.model_validate({name: said[term] for name, term in _TERMS.items() if term in said})
    except ValidationError:
        return None


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
        said.update({element.tag: (element.text or "").strip() for element in description})
    return said
