"""Content Credentials: what is signed is validated by c2pa-python's own reader, in every container."""

import io
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from ideogram_pipeline import containers, marks
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.marks import credentials
from ideogram_pipeline.marks.credentials import CannotSign, Reference, Signer

MARKS = marks.Marks(
    source_type=marks.TRAINED_ALGORITHM,
    system="Ideogram by fal.ai",
    system_version="V3, fal-ai/ideogram/character",
    prompt_sha256="ab" * 32,
    prompt_id="row-1",
    fingerprint="f" * 64,
    request_id="0192-abc",
    seed=7,
    image_index=0,
    backend="fal",
)
KINDS = ["PNG", "JPEG", "WEBP"]
DIGEST = "cd" * 32


def picture(kind="PNG", **options) -> bytes:
    sink = io.BytesIO()
    Image.radial_gradient("L").resize((37, 23)).convert("RGB").save(sink, kind, **options)
    return sink.getvalue()


def pixels(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return image.tobytes()


@pytest.fixture(scope="module")
def signer(certificate) -> Signer:
    return Signer.load(str(certificate.chain), str(certificate.key))


def validated(content: bytes, authority: Path) -> dict:
    """What c2pa-python's own reader says, with the authority as its only anchor."""
    context = c2pa.Context.from_dict({"trust": {"trust_anchors": authority.read_text()}})
    with c2pa.Reader(containers.mime_type(content), io.BytesIO(content), context=context) as reader:
        said = json.loads(reader.json())
    return {"state": said["validation_state"], **said["manifests"][said["active_manifest"]], "all": said}


@pytest.mark.parametrize("kind", KINDS)
def test_a_signed_picture_says_what_made_it_and_from_which_reference(certificate, signer, kind):
    content = marks.written(picture(kind), MARKS)
    reference = Reference(DIGEST, picture("JPEG"))
    signed = signer.signed(content, MARKS, received=picture(kind), references=[reference])
    found = validated(signed.content, certificate.authority)
    assert found["state"] == "Trusted"
    assert found["label"] == signed.manifest_id
    (action,) = found["assertions"][0]["data"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"] == marks.TRAINED_ALGORITHM
    assert action["softwareAgent"] == {"name": MARKS.system, "version": MARKS.system_version}
    assert action["parameters"]["request_id"] == "0192-abc"
    assert action["parameters"]["seed"] == 7
    (ingredient,) = found["ingredients"]
    assert (ingredient["relationship"], ingredient["description"]) == ("inputTo", f"sha256:{DIGEST}")
    assert pixels(signed.content) == pixels(picture(kind))
    assert marks.read(signed.content) == MARKS


@pytest.mark.parametrize("kind", KINDS)
def test_what_came_signed_stays_in_it_as_its_parent(certificate, signer, kind):
    upstream = signer.signed(picture(kind), MARKS, received=picture(kind), references=())
    received = upstream.content
    content = marks.written(received, MARKS, to_be_signed=True)
    signed = signer.signed(content, MARKS, received=received, references=())
    found = validated(signed.content, certificate.authority)
    assert found["state"] == "Trusted"
    assert [one["relationship"] for one in found["ingredients"]] == ["parentOf"]
    assert found["ingredients"][0]["active_manifest"] == upstream.manifest_id
    assert set(found["all"]["manifests"]) == {upstream.manifest_id, signed.manifest_id}
    assert [one["action"] for one in found["assertions"][0]["data"]["actions"]] == [
        "c2pa.opened",
        "c2pa.edited.metadata",
    ]


def test_the_credentials_of_a_reference_go_along(certificate, signer):
    photo = signer.signed(picture("JPEG"), MARKS, received=picture("JPEG"), references=())
    signed = signer.signed(
        picture(), MARKS, received=picture(), references=[Reference(DIGEST, photo.content)]
    )
    found = validated(signed.content, certificate.authority)
    assert found["state"] == "Trusted"
    assert photo.manifest_id in found["all"]["manifests"]


def test_a_reference_that_is_gone_is_named_by_its_digest(certificate, signer):
    signed = signer.signed(picture(), MARKS, received=picture(), references=[Reference(DIGEST, None)])
    (ingredient,) = validated(signed.content, certificate.authority)["ingredients"]
    assert (ingredient["relationship"], ingredient["description"]) == ("inputTo", f"sha256:{DIGEST}")


def test_a_changed_picture_is_invalid_and_an_unknown_signer_is_not_trusted(certificate, signer):
    signed = signer.signed(picture(), MARKS, received=picture(), references=()).content
    anchors = certificate.authority.read_text()
    trusted = credentials.read(signed, anchors=anchors)
    assert (trusted.state, trusted.problems) == ("trusted", ())
    assert (trusted.request_id, trusted.seed, trusted.made_by) == ("0192-abc", 7, MARKS.system)
    assert "DEVELOPMENT" in trusted.signed_by
    assert credentials.read(signed).state == "valid"
    end = signed.rindex(b"IEND") - 8
    changed = credentials.read(signed[: end - 1] + bytes([signed[end - 1] ^ 1]) + signed[end:])
    assert (changed.state, bool(changed.problems)) == ("invalid", True)
    assert credentials.read(picture()) is None


def test_the_development_files_say_what_they_are_and_the_key_is_private(certificate):
    assert stat.S_IMODE(certificate.key.stat().st_mode) == 0o600
    for path in (certificate.authority, certificate.chain):
        assert path.name.startswith("development-")
        for one in x509.load_pem_x509_certificates(path.read_bytes()):
            assert "DEVELOPMENT" in one.subject.rfc4514_string()
    with pytest.raises(ConfigurationError, match="is there already"):
        credentials.write_development_certificate(certificate.key.parent)


def own(key, *, days=30) -> tuple[bytes, bytes]:
    """A self-made authority's certificate for a key of any kind, and the key, both PEM."""
    authority = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)

    def certificate(name, public):
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=60))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    usage = credentials._key_usage
    chain = [
        certificate("test", key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
        )
        .sign(authority, hashes.SHA256()),
        certificate("test authority", authority.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(key_cert_sign=True), critical=True)
        .sign(authority, hashes.SHA256()),
    ]
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return b"".join(one.public_bytes(pem) for one in chain), private


KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("kind", KEYS)
def test_every_kind_of_key_that_the_standard_knows_signs(kind):
    signer = Signer(*own(KEYS[kind]()))
    signed = signer.signed(picture(), MARKS, received=picture(), references=())
    assert credentials.read(signed.content).state == "valid"


def test_an_older_form_of_a_key_is_read(certificate):
    key = serialization.load_pem_private_key(certificate.key.read_bytes(), None)
    older = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    assert Signer(certificate.chain.read_bytes(), older)


def encrypted() -> bytes:
    return KEYS["P-256"]().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


@pytest.mark.parametrize(
    ("chain", "key", "message"),
    [
        (None, b"nonsense-of-a-key", "IDEOGRAM_C2PA_KEY holds no private key"),
        (None, encrypted, "IDEOGRAM_C2PA_KEY holds no private key"),
        (
            None,
            lambda: own(ec.generate_private_key(ec.SECP256K1()))[1],
            "of a kind that Content Credentials don't",
        ),
        (None, lambda: own(KEYS["P-256"]())[1], "make no valid credentials"),
        (b"nonsense", None, "IDEOGRAM_C2PA_CERTIFICATE can't be used"),
    ],
    ids=["no key", "with a password", "a curve it doesn't know", "another's key", "no certificate"],
)
def test_what_could_not_sign_is_found_before_anything_is_paid_for(certificate, chain, key, message):
    given = key() if callable(key) else key or certificate.key.read_bytes()
    with pytest.raises(ConfigurationError, match=message) as problem:
        Signer(chain or certificate.chain.read_bytes(), given)
    assert "nonsense-of-a-key" not in str(problem.value)
    assert "PRIVATE KEY" not in str(problem.value)


def test_an_expired_certificate_is_found_before_anything_is_paid_for():
    with pytest.raises(ConfigurationError, match="IDEOGRAM_C2PA_CERTIFICATE"):
        Signer(*own(KEYS["P-256"](), days=-30))


def test_a_file_that_is_not_there_is_named(certificate):
    with pytest.raises(ConfigurationError, match=r"IDEOGRAM_C2PA_KEY: 'nowhere.pem' can't be read"):
        Signer.load(str(certificate.chain), "nowhere.pem")


def test_what_is_no_picture_can_not_be_signed(signer):
    with pytest.raises(CannotSign):
        signer.signed(picture()[:20], MARKS, received=picture(), references=())
