"""The certificate by which clients know an exchange: made for it alone, or the user's own.

Clients pin its fingerprint, so no authority need vouch for it and its names don't matter.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import ipaddress
import logging
import os
import re
import socket
import ssl
import stat
import tempfile
from collections.abc import Iterator
from typing import Any

import msgspec

from academy_hpc.errors import ExchangeStartError

__all__ = ["Certificate", "choose_certificate", "make_certificate", "read_certificate", "server_context"]

log = logging.getLogger(__name__)

VALID_DAYS = 3650
MAX_BYTES = 1 << 20
"""More than this is no certificate, whatever it is."""

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class Certificate(msgspec.Struct, frozen=True):
    """A certificate and its private key, both as PEM text. `repr` hides the key.

    Attributes:
        chain: The certificate, then those of the authorities between it and a root, if there are any.
        private_key: Not encrypted.
    """

    chain: str
    private_key: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate in hexadecimal: what clients pin."""
        first = _PEM.search(self.chain)
        assert first is not None  # it was made or checked here
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first[0])).hexdigest()

    def __repr__(self) -> str:
        """The fingerprint."""
        return f"{type(self).__name__}(fingerprint={self.fingerprint!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich, which would otherwise show all fields of a Struct."""
        return [("fingerprint", self.fingerprint)]


def choose_certificate(
    bound: str, *, tls: bool | None, given: Certificate | None, kept: Certificate | None
) -> Certificate | None:
    """The certificate of an exchange that is bound to the address `bound`; None: it speaks plain http.

    Args:
        bound: An IP address.
        tls: None: unless only this machine can reach `bound`.
        given: The user's own.
        kept: That of its last run.
    """
    if given is not None:
        return given
    loopback = ipaddress.ip_address(bound.partition("%")[0]).is_loopback
    if tls or (tls is None and not loopback):
        return kept or make_certificate()
    if not loopback:
        log.warning("The exchange at %s speaks plain http: who can read that network can read its token.", bound)
    return None


def make_certificate() -> Certificate:
    """A new one, signed by itself."""
    # Late: it takes longer to import than to use, and an exchange on loopback or with a kept certificate needs none.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "academy_hpc exchange")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(today + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in _own_names()]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return Certificate(certificate.public_bytes(form[0]).decode(), key.private_bytes(*form).decode())


def read_certificate(
    certificate: str | os.PathLike[str] | None, private_key: str | os.PathLike[str] | None, *, tls: bool | None = None
) -> Certificate | None:
    """The user's own certificate, from PEM files; None where none is named.

    Raises:
        ExchangeStartError: A file can't be read, others can read the key, it belongs to another certificate, or the
            certificate is out of date.
        ValueError: Only one of the two is named, or TLS is off.
    """
    if certificate is None and private_key is None:
        return None
    if certificate is None or private_key is None:
        raise ValueError("certificate= and private_key= belong together: give both.")
    if tls is False:
        raise ValueError("A certificate is for TLS: leave out tls=False.")
    pair = Certificate(_read(certificate), _read(private_key, secret=True))
    _check(pair, os.fspath(certificate), os.fspath(private_key))
    return pair


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """The server side of TLS, 1.2 or newer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with _as_file(f"{certificate.private_key}\n{certificate.chain}") as path:
        context.load_cert_chain(path)
    return context


def _own_names() -> list[str]:
    host = socket.gethostname()
    return ["localhost", host] if host.isascii() and host not in ("", "localhost") else ["localhost"]


@contextlib.contextmanager
def _as_file(text: str) -> Iterator[str]:
    """A path for `ssl`, which reads from paths alone: in memory, so that the key is on no disk."""
    try:
        file = os.fdopen(os.memfd_create("certificate"), "w")
    except (AttributeError, OSError):  # not Linux
        with tempfile.NamedTemporaryFile("w") as fallback:  # 0600
            fallback.write(text)
            fallback.flush()
            yield fallback.name
        return
    with file:
        file.write(text)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _read(path: str | os.PathLike[str], *, secret: bool = False) -> str:
    what = "private key" if secret else "certificate"
    try:
        # O_NONBLOCK: opening a FIFO must not hang; for a regular file it means nothing.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ExchangeStartError(f"The {what} {os.fspath(path)} is not a regular file.")
            if secret:
                _check_private(status, os.fspath(path))
            content: bytes = file.read(MAX_BYTES)
            return content.decode("ascii")
    except OSError as error:
        raise ExchangeStartError(f"The {what} {os.fspath(path)} can't be read: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        raise ExchangeStartError(f"The {what} {os.fspath(path)} is not in PEM form.") from None


def _check_private(status: os.stat_result, path: str) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise ExchangeStartError(f"The private key {path} belongs to another user (uid {status.st_uid}).")
    if status.st_mode & 0o077:
        raise ExchangeStartError(
            f"The private key {path} is open to other users; `chmod 600 {path}` closes it. Others may know it already."
        )


def _check(pair: Certificate, certificate_path: str, key_path: str) -> None:
    first = _parse(pair.chain, certificate_path)
    key = _parse_key(pair.private_key, key_path)
    if key.public_key() != first.public_key():
        raise ExchangeStartError(f"The private key {key_path} is not that of the certificate {certificate_path}.")
    now = datetime.datetime.now(datetime.UTC)
    if now > first.not_valid_after_utc:
        raise ExchangeStartError(f"The certificate {certificate_path} expired on {first.not_valid_after_utc:%Y-%m-%d}.")
    if now < first.not_valid_before_utc:
        raise ExchangeStartError(
            f"The certificate {certificate_path} is valid only from {first.not_valid_before_utc:%Y-%m-%d %H:%M} UTC."
        )
    try:
        server_context(pair)
    except ssl.SSLError as error:
        raise ExchangeStartError(f"OpenSSL can't use the certificate {certificate_path}: {error.reason}.") from None


def _parse(text: str, path: str) -> Any:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(text.encode())[0]
    except ValueError:
        raise ExchangeStartError(f"The certificate {path} is not in PEM form.") from None


def _parse_key(text: str, path: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(text.encode(), password=None)
    except TypeError:
        raise ExchangeStartError(
            f"The private key {path} is encrypted: there is nobody to ask for its password. Give one that is not."
        ) from None
    # What went wrong may quote the text.
    except (ValueError, UnsupportedAlgorithm):
        raise ExchangeStartError(f"The private key {path} is no key in PEM form.") from None
