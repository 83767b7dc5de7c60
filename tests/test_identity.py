"""What a durable exchange is known by, and that its next start is known by the same."""

from __future__ import annotations

import logging
import stat
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from academy_hpc.errors import ExchangeStartError, StoreError
from academy_hpc.exchange.http.certificate import make_certificate
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.identity import Identity
from academy_hpc.exchange.http.spawn import spawn_http_exchange

__all__: list[str] = []

TOKEN = "zebra-crossing-zebra-crossing-zebra"  # noqa: S105 opens nothing
MADE = make_certificate()
IDENTITY = Identity(5463, TOKEN, MADE)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


def info_of(state_dir: Path, **arguments: object) -> ConnectionInfo:
    """Start and end an exchange there."""
    with spawn_http_exchange(port=0, state_dir=state_dir, **arguments) as factory:  # type: ignore[arg-type]
        return factory.connection_info


def test_it_is_kept_in_a_private_file(state_dir: Path) -> None:
    state_dir.mkdir(mode=0o700)
    assert Identity.read(state_dir) is None
    IDENTITY.write(state_dir)
    assert Identity.read(state_dir) == IDENTITY
    (path,) = state_dir.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_one_without_a_certificate_is_read_too(state_dir: Path) -> None:
    """Exchanges of earlier versions, and those on loopback, have none."""
    IDENTITY.write(state_dir)
    path = state_dir / "identity.json"
    path.write_text(msgspec.json.encode({"port": 5463, "token": TOKEN, "version": 1}).decode())
    assert Identity.read(state_dir) == Identity(5463, TOKEN)


def test_no_form_for_people_shows_a_secret() -> None:
    secrets = (TOKEN, MADE.private_key.splitlines()[1])
    for text in (repr(IDENTITY), str(IDENTITY), repr([IDENTITY]), repr(IDENTITY.__rich_repr__())):
        assert [secret for secret in secrets if secret in text] == []


@pytest.mark.parametrize("content", ["", "{}", f'{{"port": "{TOKEN}"}}'])
def test_a_file_with_something_else_is_refused_in_one_line_without_it(state_dir: Path, content: str) -> None:
    IDENTITY.write(state_dir)
    (state_dir / "identity.json").write_text(content)
    with pytest.raises(StoreError) as caught:
        Identity.read(state_dir)
    assert len(str(caught.value).splitlines()) == 1
    assert TOKEN not in str(caught.value)


def test_the_next_start_has_the_same_address_token_and_certificate(state_dir: Path) -> None:
    first, second = info_of(state_dir), info_of(state_dir)
    assert first.fingerprint is not None
    assert (second.urls, second.headers, second.fingerprint) == (first.urls, first.headers, first.fingerprint)


def test_a_start_without_tls_does_not_lose_the_certificate(state_dir: Path) -> None:
    before = info_of(state_dir)
    plain = info_of(state_dir, tls=False)
    assert (plain.fingerprint, urlsplit(plain.urls[0]).scheme) == (None, "http")
    assert info_of(state_dir).fingerprint == before.fingerprint


def test_the_user_s_own_certificate_is_pinned_and_not_copied(state_dir: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    certificate.write_text(MADE.chain)
    key.touch(0o600)
    key.write_text(MADE.private_key)
    made = info_of(state_dir)
    assert info_of(state_dir, certificate=certificate, private_key=key).fingerprint == MADE.fingerprint
    assert info_of(state_dir).fingerprint == made.fingerprint
    assert MADE.private_key.splitlines()[1] not in (state_dir / "identity.json").read_text()


def test_a_certificate_that_can_not_be_used_is_told_before_anything_is_started(state_dir: Path) -> None:
    with pytest.raises(ExchangeStartError, match=r"no\.pem can't be read"):
        info_of(state_dir, certificate=state_dir / "no.pem", private_key=state_dir / "no.key")
    assert not state_dir.exists()


def test_plain_http_for_other_machines_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), spawn_http_exchange(port=0, tls=False) as factory:
        assert factory.connection_info.fingerprint is None
    assert "speaks plain http" in caplog.text
