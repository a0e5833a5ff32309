"""Content Credentials: a signed manifest in the picture that says what made it and from which references.

Written and validated by c2pa-python, the extra `c2pa`. Nothing here asks the network for revocation lists or manifests
that lie elsewhere. Only a time-stamping authority (RFC 3161) is asked, where one is named, and told nothing but a
digest.
"""

from __future__ import annotations

import io
import json
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline.containers import has_credentials, mime_type
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.marks.xmp import ALGORITHM, Marks

if TYPE_CHECKING:
    import c2pa
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

INSTALL = "pip install 'ideogram_pipeline[c2pa]'"
DEVELOPMENT_DAYS = 365
"""So long a development certificate is valid."""
STAMP_WAIT_S = 60.0
"""Seconds that a batch waits in all for a time-stamping authority that is slow or silent. c2pa-python gives up one
answer after 30 s, and has no setting for that."""
PROMPT_STAMP_S = 1.0
"""A stamp that takes no longer counts as no waiting."""
_OFFLINE = {"verify_after_sign": False, "remote_manifest_fetch": False, "ocsp_fetch": False}
_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe"
    "0def46b80000000049454e44ae426082"
)
"""A picture of one white pixel, PNG."""
_PROBE = Marks(
    source_type=ALGORITHM,
    system="a trial of the certificate",
    system_version="",
    prompt_id="",
    fingerprint="",
    request_id="",
    seed=0,
    image_index=0,
    backend="sandbox",
)


class CannotSign(Exception):
    """A picture could not be signed. The message says why."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture that a request was made with."""

    sha256: str
    """Hex digest of its bytes."""
    content: bytes | None
    """Its bytes, whose own credentials go into the manifest; None if they are gone."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A picture with Content Credentials."""

    content: bytes
    """The file."""
    manifest_id: str
    """`urn:c2pa:` and a UUID."""
    stamped_at: datetime | None = None
    """When it was signed, as a time-stamping authority says."""
    unstamped_because: str = ""
    """Why it has no time stamp; empty where it has one, or was not to have one."""


class Credentials(BaseModel):
    """What Content Credentials say, and whether that holds."""

    model_config = ConfigDict(frozen=True)

    state: Literal["trusted", "valid", "invalid"] = Field(
        description="trusted: unchanged since it was signed, by somebody the trust anchors vouch for. valid: "
        "unchanged, by somebody they don't know. invalid: changed since, or not signed as it has to be."
    )
    manifest_id: str = Field(description="Identity of the newest manifest.")
    signed_by: str = Field(description="Name in the certificate.")
    stamped_at: datetime | None = Field(
        default=None, description="When it was signed, as a time-stamping authority says, if one was asked."
    )
    source_type: str = Field(default="", description="IPTC's code for how it came to be.")
    made_by: str = Field(default="", description="What made it.")
    request_id: str = Field(default="", description="fal's id of the request.")
    seed: int | None = Field(default=None, description="The seed that was used.")
    ingredients: tuple[str, ...] = Field(
        default=(), description="What it was made with: relationship, and digest or title."
    )
    problems: tuple[str, ...] = Field(default=(), description="Why it is not trusted, or not valid.")


class Signer:
    """Signs the pictures of one batch with one certificate. May be used by several threads."""

    def __init__(self, certificate: bytes, key: bytes, *, tsa_url: str | None = None) -> None:
        """Take a certificate chain, its own certificate first, and its private key, both PEM.

        The time-stamping authority at `tsa_url` says when each picture is signed, for so long as it answers: a batch
        waits `STAMP_WAIT_S` for it in all.

        Raises:
            ConfigurationError: they can't be read, or pictures signed with them would not be valid.
        """
        check_installed()
        import c2pa

        private = _private_key(key)
        algorithm, pkcs8 = _algorithm(private), _pkcs8(private)
        self._context = _context()
        try:
            self._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, certificate, pkcs8, None))
            self._stamping, self._waited_s = None, 0.0
            probe = self.signed(_PIXEL, _PROBE, received=_PIXEL, references=())
        except (c2pa.C2paError, CannotSign) as error:
            raise ConfigurationError(f"IDEOGRAM_C2PA_CERTIFICATE can't be used: {error}") from None
        found = read(probe.content)
        if found is None or found.state == "invalid":
            problems = "; ".join(found.problems) if found else "no manifest"
            raise ConfigurationError(
                f"IDEOGRAM_C2PA_CERTIFICATE and IDEOGRAM_C2PA_KEY make no valid credentials: {problems}. "
                "Check that the key belongs to the first certificate, that this is valid today, and that the chain "
                "follows it."
            )
        if tsa_url:
            info = c2pa.C2paSignerInfo(algorithm, certificate, pkcs8, tsa_url.encode())
            self._stamping = c2pa.Signer.from_info(info)

    @classmethod
    def load(cls, certificate: str, key: str, *, tsa_url: str | None = None) -> Signer:
        """Return a signer with the certificate chain and key in two files, and a time-stamping authority's address.

        Raises:
            ConfigurationError: as above, or a file can't be read.
        """
        return cls(
            _file("IDEOGRAM_C2PA_CERTIFICATE", certificate), _file("IDEOGRAM_C2PA_KEY", key), tsa_url=tsa_url
        )

    def check(self) -> Signed:
        """Sign a picture of one pixel, and return it.

        Raises:
            CannotSign: not even that can be signed.
        """
        return self.signed(_PIXEL, _PROBE, received=_PIXEL, references=())

    def signed(
        self, content: bytes, marks: Marks, *, received: bytes, references: Sequence[Reference]
    ) -> Signed:
        """Return a picture with a manifest that says what the marks say; no pixel is touched.

        What `received` brings of credentials stays in it as the manifest's parent. Where no time stamp can be had it
        has none, and says why.

        Raises:
            CannotSign: the picture, a reference, or the credentials they bring can't be worked with.
        """
        if self._stamping is None:
            return self._signed(self._signer, content, marks, received, references)
        if self._waited_s >= STAMP_WAIT_S:
            because = f"the time-stamping authority kept the batch waiting for {STAMP_WAIT_S:.0f} s before"
            return self._unstamped(content, marks, received, references, because)
        begin = time.monotonic()
        try:
            made = self._signed(self._stamping, content, marks, received, references)
        except CannotSign as problem:  # the authority's fault, unless it can't be signed without it either
            return self._unstamped(content, marks, received, references, str(problem))
        finally:
            took = time.monotonic() - begin
            self._waited_s += took if took > PROMPT_STAMP_S else 0
        found = read(made.content)
        return replace(made, stamped_at=found.stamped_at if found else None)

    def _unstamped(
        self, content: bytes, marks: Marks, received: bytes, references: Sequence[Reference], because: str
    ) -> Signed:
        made = self._signed(self._signer, content, marks, received, references)
        return replace(made, unstamped_because=because)

    def _signed(
        self,
        signer: c2pa.Signer,
        content: bytes,
        marks: Marks,
        received: bytes,
        references: Sequence[Reference],
    ) -> Signed:
        import c2pa

        manifest_id = f"urn:c2pa:{uuid.uuid4()}"
        kind = mime_type(content)
        has_parent = has_credentials(received)
        signed = io.BytesIO()
        try:
            with c2pa.Builder.from_json(
                _manifest(manifest_id, marks, references, has_parent), self._context
            ) as builder:
                if has_parent:
                    parent = {"title": "as received", "relationship": "parentOf", "label": "parent"}
                    builder.add_ingredient(parent, kind, io.BytesIO(received))
                for reference in references:
                    if reference.content is not None:
                        builder.add_ingredient(
                            _ingredient(reference),
                            mime_type(reference.content),
                            io.BytesIO(reference.content),
                        )
                builder.sign(signer, kind, io.BytesIO(content), signed)
        except c2pa.C2paError as error:
            raise CannotSign(str(error)) from None
        return Signed(signed.getvalue(), manifest_id)


def read(content: bytes, *, anchors: str = "") -> Credentials | None:
    """Return what a picture's Content Credentials say; None if it brings none.

    `anchors` are the certificates (PEM) of those whom the reader trusts.

    Raises:
        ConfigurationError: c2pa-python is not installed, or the anchors can't be read.
    """
    if not has_credentials(content):
        return None
    check_installed()
    import c2pa

    try:
        context = _context(anchors)
    except c2pa.C2paError as error:
        raise ConfigurationError(f"The trust anchors can't be used: {error}") from None
    try:
        with c2pa.Reader(mime_type(content), io.BytesIO(content), context=context) as reader:
            return _credentials(json.loads(reader.json()))
    except c2pa.C2paError as error:
        return Credentials(state="invalid", manifest_id="", signed_by="", problems=(str(error),))


def is_installed() -> bool:
    """Say whether c2pa-python is there."""
    return find_spec("c2pa") is not None


def check_installed() -> None:
    """Raise a `ConfigurationError` where c2pa-python is missing."""
    if not is_installed():
        raise ConfigurationError(f"Content Credentials need c2pa-python: {INSTALL}.")


def _context(anchors: str = "") -> c2pa.Context:
    import c2pa

    settings: dict[str, Any] = {"builder": {"thumbnail": {"enabled": False}}, "verify": _OFFLINE}
    if anchors:
        settings["trust"] = {"trust_anchors": anchors}
    return c2pa.Context.from_dict(settings)


def _manifest(
    manifest_id: str, marks: Marks, references: Sequence[Reference], has_parent: bool
) -> dict[str, Any]:
    """Return a manifest definition: created, or added to what was created and signed before."""
    said = marks.model_dump(exclude_none=True, exclude={"source_type", "system", "system_version"})
    if has_parent:
        actions = [
            {"action": "c2pa.opened", "parameters": {"ingredientIds": ["parent"]}},
            {"action": "c2pa.edited.metadata", "parameters": said},
        ]
    else:
        created = {
            "action": "c2pa.created",
            "digitalSourceType": marks.source_type,
            "softwareAgent": {"name": marks.system, "version": marks.system_version},
            "parameters": said,
        }
        actions = [created]
    return {
        "label": manifest_id,
        "claim_generator_info": [{"name": "ideogram_pipeline", "version": _own_version()}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
        "ingredients": [_ingredient(one) for one in references if one.content is None],
    }


@cache
def _own_version() -> str:
    return version("ideogram_pipeline")


def _ingredient(reference: Reference) -> dict[str, str]:
    """Return what is told of a reference: its digest, and neither name nor picture, which may be private."""
    return {
        "title": "reference",
        "relationship": "inputTo",
        "description": f"sha256:{reference.sha256}",
    }


def _credentials(found: dict[str, Any]) -> Credentials:
    manifest_id = found["active_manifest"]
    manifest = found["manifests"][manifest_id]
    actions = [
        action
        for assertion in manifest.get("assertions", ())
        if assertion["label"].startswith("c2pa.actions")
        for action in assertion["data"]["actions"]
    ]
    said: dict[str, Any] = {}
    for action in actions:
        said |= action.get("parameters", {})
    created: dict[str, Any] = next((one for one in actions if one["action"] == "c2pa.created"), {})
    seed, signature = said.get("seed"), manifest.get("signature_info", {})
    stamp = signature.get("time")
    return Credentials(
        state=found["validation_state"].lower(),
        manifest_id=manifest_id,
        signed_by=signature.get("common_name", ""),
        stamped_at=datetime.fromisoformat(stamp) if stamp else None,
        source_type=created.get("digitalSourceType", ""),
        made_by=str(created.get("softwareAgent", {}).get("name", "")),
        request_id=str(said.get("request_id", "")),
        seed=seed if isinstance(seed, int) else None,
        ingredients=tuple(
            f"{one.get('relationship', '')} {one.get('description') or one.get('title', '')}"
            for one in manifest.get("ingredients", ())
        ),
        problems=tuple(one.get("explanation", one["code"]) for one in found.get("validation_status", ())),
    )


def write_development_certificate(folder: Path) -> list[Path]:
    """Write an authority, a certificate of it, which the authority follows, and its key; return the three paths.

    They say in every name that they are for development: nobody trusts them who was not given the authority.

    Raises:
        ConfigurationError: one of the files is there already, or can't be written.
    """
    check_installed()
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(what: str) -> x509.Name:
        said = f"ideogram_pipeline DEVELOPMENT {what}, not to be trusted"
        return x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, said),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "ideogram_pipeline DEVELOPMENT"),
            ]
        )

    def certificate(what: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(what))
            .issuer_name(name("authority"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=DEVELOPMENT_DAYS))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    now = datetime.now(UTC)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = authority_key.public_key()
    authority = (
        certificate("authority", issuer)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    own = (
        certificate("certificate", key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    files = {
        "development-authority.pem": authority.public_bytes(pem),
        "development-certificate.pem": own.public_bytes(pem) + authority.public_bytes(pem),
        "development-key.pem": _pkcs8(key),
    }
    for there in (folder / file for file in files if (folder / file).exists()):
        raise ConfigurationError(f"{str(there)!r} is there already. Name another folder, or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            with open(os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as written:
                written.write(content)
    except OSError as error:
        raise ConfigurationError(f"{str(folder)!r} can't be written to: {error.strerror}.") from None
    return [folder / file for file in files]


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _file(variable: str, path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{variable}: {path!r} can't be read: {error.strerror}.") from None


def _private_key(pem: bytes) -> PrivateKeyTypes:
    from cryptography.hazmat.primitives import serialization

    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (TypeError, ValueError):  # neither may quote the key
        raise ConfigurationError(
            "IDEOGRAM_C2PA_KEY holds no private key that can be read: it has to be PEM, without a password."
        ) from None


def _pkcs8(key: PrivateKeyTypes) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _algorithm(key: PrivateKeyTypes) -> bytes:
    """Return the C2PA name of the algorithm that a key signs with (C2PA specification 2.2, section 13.2)."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    match key:
        case ec.EllipticCurvePrivateKey():
            found = {"secp256r1": b"es256", "secp384r1": b"es384", "secp521r1": b"es512"}.get(key.curve.name)
        case rsa.RSAPrivateKey():
            found = b"ps256"
        case ed25519.Ed25519PrivateKey():
            found = b"ed25519"
        case _:
            found = None
    if found is None:
        raise ConfigurationError(
            "IDEOGRAM_C2PA_KEY is of a kind that Content Credentials don't know: P-256, P-384, P-521, RSA or Ed25519."
        )
    return found
