"""Certificates of exchanges: made for one, or the user's own; and what a server with one speaks."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import logging
import os
import socket
import ssl
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from academy_hpc.errors import ExchangeStartError
from academy_hpc.exchange.http.certificate import (
    Certificate,
    choose_certificate,
    make_certificate,
    read_certificate,
    server_context,
)
from academy_hpc.exchange.http.server import ServerConfig
from tests.exchange_server import TOKEN, running_exchange

__all__: list[str] = []

ANY = "0.0.0.0"  # noqa: S104 the point of some tests
MADE = make_certificate()
DAY = datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM


def parsed(certificate: Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.chain.encode())


# Made for one exchange


def test_a_certificate_is_made_for_one_exchange() -> None:
    other = make_certificate()
    assert MADE.fingerprint != other.fingerprint
    assert MADE.private_key != other.private_key
    assert parsed(MADE).serial_number != parsed(other).serial_number


def test_it_is_a_self_signed_one_on_an_elliptic_curve_valid_for_ten_years() -> None:
    """And from yesterday: the clocks of two machines differ."""
    certificate, now = parsed(MADE), datetime.datetime.now(datetime.UTC)
    certificate.verify_directly_issued_by(certificate)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert now - 2 * DAY < certificate.not_valid_before_utc < now - DAY / 2
    assert now + 3649 * DAY < certificate.not_valid_after_utc
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName)[:1] == ["localhost"]


def test_the_fingerprint_is_that_of_the_first_certificate_in_hexadecimal() -> None:
    chain = Certificate(f"issued to whom it may concern\n{MADE.chain}{make_certificate().chain}", MADE.private_key)
    assert chain.fingerprint == parsed(MADE).fingerprint(hashes.SHA256()).hex()


def test_no_form_for_people_shows_the_key() -> None:
    secret = MADE.private_key.splitlines()[1]
    config = ServerConfig(token=TOKEN, certificate=MADE)
    shown = [repr(MADE), str(MADE), repr([MADE]), repr(MADE.__rich_repr__()), repr(config)]
    assert [text for text in shown if secret in text] == []
    assert MADE.fingerprint in repr(MADE)


@pytest.mark.parametrize("host", ["", "localhost", "løgin", "login-1.example"])
def test_any_name_of_the_machine_will_do(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    names = parsed(make_certificate()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"] + ["login-1.example"] * (host == "login-1.example")


# Which one is used


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_loopback_has_none_unless_it_is_wanted(host: str) -> None:
    assert choose_certificate(host, tls=None, given=None, kept=MADE) is None
    assert choose_certificate(host, tls=False, given=None, kept=MADE) is None
    assert choose_certificate(host, tls=True, given=None, kept=None) is not None


@pytest.mark.parametrize("host", [ANY, "::", "192.0.2.1", "fd00::1", "fe80::1%eth0"])
def test_all_else_has_one_unless_it_is_not_wanted_which_is_told(host: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_certificate(host, tls=None, given=None, kept=None) is not None
        assert caplog.text == ""
        assert choose_certificate(host, tls=False, given=None, kept=MADE) is None
        assert f"The exchange at {host} speaks plain http" in caplog.text


def test_a_given_one_goes_before_a_kept_one_before_a_new_one() -> None:
    given = make_certificate()
    assert choose_certificate(ANY, tls=None, given=given, kept=MADE) == given
    assert choose_certificate("127.0.0.1", tls=None, given=given, kept=MADE) == given
    assert choose_certificate(ANY, tls=None, given=None, kept=MADE) == MADE


# The user's own


class Files:
    """Makes certificate and key files as a user has them."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "server.pem", folder / "server.key"

    def write(
        self,
        *,
        starts: datetime.timedelta = -DAY,
        lasts: datetime.timedelta = 90 * DAY,
        key: Any = None,
        encryption: Any = None,
    ) -> Certificate | None:
        """Write both, and read them as spawn_http_exchange does."""
        key = key or ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "login.example")])
        start = datetime.datetime.now(datetime.UTC) + starts
        builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + lasts)
        self.certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(PEM))
        self.key.touch(0o600)
        encryption = encryption or serialization.NoEncryption()
        self.key.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption))
        return self.read()

    def read(self) -> Certificate | None:
        return read_certificate(self.certificate, self.key)

    def refusal(self, act: Callable[[], Any] | None = None) -> str:
        """The one line that says why they are refused; it does not repeat what is in them."""
        with pytest.raises(ExchangeStartError) as caught:
            (act or self.read)()
        text = str(caught.value)
        assert len(text.splitlines()) == 1
        assert "BEGIN" not in text
        return text


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_the_user_may_have_a_certificate_of_his_own(files: Files, kind: str) -> None:
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else None
    certificate = files.write(key=key)
    assert certificate is not None
    der = ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
    assert certificate.fingerprint == hashlib.sha256(der).hexdigest()
    assert read_certificate(None, None) is None


def test_a_link_to_the_key_is_followed(files: Files) -> None:
    """Programs that renew certificates keep the newest behind a link."""
    files.write()
    files.key = files.key.rename(files.key.with_suffix(".1"))
    link = files.key.with_name("link")
    link.symlink_to(files.key)
    assert read_certificate(files.certificate, link) == files.read()


def test_one_without_the_other_and_one_for_plain_http_make_no_sense(files: Files) -> None:
    files.write()
    for arguments in ((files.certificate, None), (None, files.key)):
        with pytest.raises(ValueError, match="give both"):
            read_certificate(*arguments)
    with pytest.raises(ValueError, match="leave out tls=False"):
        read_certificate(files.certificate, files.key, tls=False)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_that_others_can_read_or_write_is_refused(files: Files, mode: int) -> None:
    files.write()
    files.key.chmod(mode)
    assert f"chmod 600 {files.key}" in files.refusal()
    files.key.chmod(0o600)
    files.certificate.chmod(0o644)
    files.read()


def test_the_key_of_another_user_is_refused(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write()
    if os.geteuid() == 0:
        os.chown(files.key, 12345, -1)
    else:
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert "belongs to another user" in files.refusal()


def test_the_key_of_another_certificate_is_refused(files: Files) -> None:
    files.write()
    files.key.write_text(make_certificate().private_key)
    assert f"{files.key} is not that of the certificate {files.certificate}" in files.refusal()


def test_a_certificate_that_is_out_of_date_is_refused(files: Files) -> None:
    yesterday = f"{datetime.datetime.now(datetime.UTC) - DAY:%Y-%m-%d}"
    assert f"expired on {yesterday}" in files.refusal(lambda: files.write(starts=-9 * DAY, lasts=8 * DAY))
    assert "valid only from" in files.refusal(lambda: files.write(starts=DAY))


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(files: Files) -> None:
    encryption = serialization.BestAvailableEncryption(b"a secret")
    assert "is encrypted" in files.refusal(lambda: files.write(encryption=encryption))


def test_a_certificate_that_openssl_finds_too_weak_is_refused_here(files: Files) -> None:
    """Not when the exchange process has started."""
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 that is the point
    assert "OpenSSL can't use the certificate" in files.refusal(lambda: files.write(key=key))


@pytest.mark.parametrize("content", [b"", b"no PEM", b"\xff\xfe", b"\x30\x82\x01\x0a"])
@pytest.mark.parametrize("which", ["certificate", "key"])
def test_what_is_no_pem_is_refused_with_its_name(files: Files, which: str, content: bytes) -> None:
    files.write()
    path: Path = getattr(files, which)
    path.write_bytes(content)
    text = files.refusal()
    assert str(path) in text
    assert "PEM form" in text


@pytest.mark.parametrize("which", ["certificate", "key"])
def test_what_is_not_there_or_no_file_is_refused_with_its_name(files: Files, which: str) -> None:
    files.write()
    path: Path = getattr(files, which)
    path.unlink()
    assert f"{path} can't be read: No such file" in files.refusal()
    os.mkfifo(path, 0o600)
    assert f"{path} is not a regular file" in files.refusal()


# Serving


def test_the_key_is_on_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("this system keeps files on disks only")

    def refused(*_: Any, **__: Any) -> None:
        pytest.fail("a temporary file")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refused)
    assert server_context(MADE).minimum_version is ssl.TLSVersion.TLSv1_2


def test_where_there_are_no_files_in_memory_a_private_one_serves_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []
    load = ssl.SSLContext.load_cert_chain

    def look(context: ssl.SSLContext, path: str) -> None:
        seen.append((Path(path).parent, stat.S_IMODE(Path(path).stat().st_mode)))
        load(context, path)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", look)
    server_context(MADE)
    assert seen == [(tmp_path, 0o600)]
    assert list(tmp_path.iterdir()) == []


def handshake(port: int, *, newest: ssl.TLSVersion) -> tuple[str | None, str]:
    """Version and fingerprint of the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is the server who refuses
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain, context.wrap_socket(plain) as sock:
        return sock.version(), hashlib.sha256(sock.getpeercert(binary_form=True) or b"").hexdigest()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_a_client_that_speaks_nothing_newer_than_tls_1_1_is_refused() -> None:
    async with running_exchange(ServerConfig(token=TOKEN, certificate=MADE)) as exchange:
        for newest, expected in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
            seen = await asyncio.to_thread(handshake, exchange.port, newest=newest)
            assert seen == (expected, MADE.fingerprint)
        for newest in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises(ssl.SSLError, match=r"EOF|PROTOCOL_VERSION"):
                await asyncio.to_thread(handshake, exchange.port, newest=newest)


async def test_clients_work_over_tls() -> None:
    async with running_exchange(ServerConfig(token=TOKEN, certificate=MADE)) as exchange:
        assert exchange.factory.connection_info.urls[0].startswith("https://")
        async with await exchange.factory.create_user_client() as client:
            assert await client.discover("no.such.Class") == ()


async def test_a_certificate_crosses_to_the_exchange_process_as_text() -> None:
    config = msgspec.convert(
        msgspec.json.decode(msgspec.json.encode({"token": TOKEN, "certificate": MADE})), ServerConfig
    )
    assert config.certificate == MADE
