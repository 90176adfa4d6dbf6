"""Certificates for servers of tests: an authority of our own, and a key and certificate signed by it."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Pair = tuple[ec.EllipticCurvePrivateKey, x509.Certificate]


def write(folder: Path, name: str) -> Path:
    """The folder with ca.pem and, for this host name and signed by it, server.pem."""
    authority = _signed("a CA of the tests", None)
    key, server = _signed(name, authority)
    (folder / "ca.pem").write_bytes(authority[1].public_bytes(serialization.Encoding.PEM))
    plain = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(plain + server.public_bytes(serialization.Encoding.PEM))
    return folder


def _signed(name: str, issuer: Pair | None) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    built = x509.CertificateBuilder(
        issuer[1].subject if issuer else named, named, key.public_key(), x509.random_serial_number(), now - day, now + day
    )
    built = built.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False) if issuer else built
    return key, built.sign(issuer[0] if issuer else key, hashes.SHA256())
