"""Connection info: text, file and environment form, and what each refuses."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import msgspec
import pytest

from academy_hpc.errors import ConnectionInfoError
from academy_hpc.exchange.http import origin
from academy_hpc.exchange.http.connection import CONNECTION_VARIABLE, ConnectionInfo
from academy_hpc.exchange.http.origin import ServerOrigin

__all__: list[str] = []

SECRET = "zebra-crossing-zebra-crossing-zebra"  # noqa: S105 not one, but looked for everywhere
FINGERPRINT = "0123456789abcdef" * 4

INFO = ConnectionInfo(
    urls=("https://10.0.0.1:5463", "https://login1.example:5463/exchange", "https://[fd00::2]:5463"),
    headers={"Authorization": f"Bearer {SECRET}", "X-Site": "here"},
    fingerprint=FINGERPRINT,
)

HERE = ServerOrigin.here()
ELSEWHERE = ServerOrigin("login2", "another machine", 1, 1.0)


def text_with(**changes: Any) -> str:
    """The text of INFO with other fields; ... takes one out."""
    fields = json.loads(INFO.to_json()) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "connection.json"


# Text


def test_text_brings_back_the_same() -> None:
    assert ConnectionInfo.from_json(INFO.to_json()) == INFO
    assert ConnectionInfo.from_json(INFO.to_json().encode()) == INFO
    assert ConnectionInfo.from_json(INFO.to_json()).urls == INFO.urls


def test_the_text_says_what_it_is() -> None:
    """Other programs read it, too."""
    assert json.loads(INFO.to_json()) == {
        "kind": "academy-hpc-connection",
        "version": 1,
        "urls": list(INFO.urls),
        "headers": INFO.headers,
        "fingerprint": FINGERPRINT,
        "trust_env": False,
        "server": None,
        "proof": False,
        "auth_method": None,
        "durable": False,
    }


def test_loopback_urls_are_tried_on_the_machine_of_the_exchange_alone() -> None:
    """Elsewhere a stranger may listen there, who would be given the token."""
    urls = ("http://10.0.0.7:5463", "http://127.0.0.1:5463", "http://localhost:5463", "http://[::1]:5463")
    assert ConnectionInfo(urls).candidates() == urls
    assert ConnectionInfo(urls, server=HERE).candidates() == urls
    assert ConnectionInfo(urls, server=ELSEWHERE).candidates() == urls[:1]
    assert ConnectionInfo(urls[1:], server=ELSEWHERE).candidates() == urls[1:]


def test_what_a_text_leaves_out_has_its_default() -> None:
    text = text_with(headers=..., fingerprint=..., trust_env=...)
    assert ConnectionInfo.from_json(text) == ConnectionInfo(urls=INFO.urls)


def test_a_field_that_is_not_known_yet_is_ignored() -> None:
    assert ConnectionInfo.from_json(text_with(color="red")) == INFO


def test_another_version_is_refused_with_both_numbers_and_the_way_out() -> None:
    with pytest.raises(ConnectionInfoError, match=r"version 2.*version 1.*install the same") as caught:
        ConnectionInfo.from_json(text_with(version=2))
    assert "\n" not in str(caught.value)


BAD_TEXTS = {
    "empty": "",
    "no JSON": f"Bearer {SECRET}",
    "cut off": INFO.to_json()[:-9],
    "list": f'["{SECRET}"]',
    "number": "1",
    "no UTF-8": INFO.to_json().encode().replace(b"zebra", b"z\xe9bra"),
    "no UTF-8 at all": b"\x80" + SECRET.encode(),
    "no kind": text_with(kind=...),
    "other kind": text_with(kind="jupyter"),
    "no version": text_with(version=...),
    "version as text": text_with(version="1"),
    "version true": text_with(version=True),
    "no urls": text_with(urls=...),
    "empty urls": text_with(urls=[]),
    "urls as text": text_with(urls=INFO.urls[0]),
    "urls of numbers": text_with(urls=[1]),
    "headers as list": text_with(headers=[SECRET]),
    "header value a number": text_with(headers={"Authorization": 1}),
    "header value a list": text_with(headers={"Authorization": [SECRET]}),
    "header value of two lines": text_with(headers={"Authorization": f"{SECRET}\r\nX: y"}),
    "header name of two lines": text_with(headers={f"A\r\n{SECRET}": "b"}),
    "fingerprint too short": text_with(fingerprint="ab"),
    "fingerprint in capitals": text_with(fingerprint=FINGERPRINT.upper()),
    "trust_env as text": text_with(trust_env="no"),
}


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_bad_text_is_refused_in_one_line_that_holds_no_secret(text: str | bytes) -> None:
    with pytest.raises(ConnectionInfoError) as caught:
        ConnectionInfo.from_json(text)
    assert len(str(caught.value).splitlines()) == 1
    assert "zebra" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.0.0.1:5463",
        "ftp://10.0.0.1",
        "http://",
        "http://:5463",
        "http://host:port",
        "http://host:99999",
        "http://host:0",
        "http://[fd00::2:5463",
        "http://ho st",
        "http://host/\r\nX: y",
        f"http://user:{SECRET}@host",
        f"http://host/?token={SECRET}",
        f"http://host/#{SECRET}",
        None,
    ],
)
def test_what_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(ConnectionInfoError) as caught:
        ConnectionInfo(urls=(url,))
    assert len(str(caught.value).splitlines()) == 1
    assert SECRET not in str(caught.value)


def test_a_fingerprint_goes_with_https_alone() -> None:
    """At an http:// URL the token would be sent unchecked."""
    for urls in (("http://host:1",), ("https://host:1", "http://host:1")):
        with pytest.raises(ConnectionInfoError, match="https:// URLs only"):
            ConnectionInfo(urls, fingerprint=FINGERPRINT)


# Secrets and changes


def test_no_form_for_people_shows_the_value_of_a_header() -> None:
    shown = [repr(INFO), str(INFO), f"{INFO}", f"{INFO!r:>10}", repr([INFO]), repr(INFO.__rich_repr__())]
    assert [text for text in shown if SECRET in text] == []
    assert "Authorization" in repr(INFO)
    assert INFO.urls[0] in repr(INFO)


def test_it_does_not_change() -> None:
    with pytest.raises(AttributeError):
        INFO.trust_env = True  # type: ignore[misc]


def test_what_it_was_made_from_is_not_shared() -> None:
    urls, headers = ["http://host:1"], {"A": "b"}
    info = ConnectionInfo(urls=urls, headers=headers)  # type: ignore[arg-type]
    urls.append("http://host:2")
    headers["A"] = "c"
    assert info == ConnectionInfo(urls=("http://host:1",), headers={"A": "b"})


def test_it_can_be_pickled_and_changed_in_a_copy() -> None:
    assert pickle.loads(pickle.dumps(INFO)) == INFO  # noqa: S301 our own
    assert msgspec.structs.replace(INFO, urls=INFO.urls[:1]).urls == INFO.urls[:1]


# File


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_file_is_for_this_user_alone_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        INFO.write(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert ConnectionInfo.read(path) == INFO


def test_the_file_is_private_from_its_first_byte(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    real_fsync = os.fsync

    def fsync(fd: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(fd).st_mode))
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    before = os.umask(0)
    try:
        INFO.write(path)
    finally:
        os.umask(before)
    assert modes == [0o600, 0o700]  # the file, then its directory


def test_a_file_is_replaced_in_one_step(path: Path) -> None:
    """Who reads while another writes gets the old or the new one, never a part."""
    other = ConnectionInfo(urls=tuple(f"http://host{number}:1" for number in range(2000)))
    INFO.write(path)
    done = threading.Event()

    def write() -> None:
        for _ in range(30):
            other.write(path)
            INFO.write(path)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not done.is_set():
        seen.append(ConnectionInfo.read(path))
    writer.join()
    assert [info for info in seen if info not in (INFO, other)] == []
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    INFO.write(path)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ConnectionInfoError, match="No space left"):
            ConnectionInfo(urls=("http://host:1",)).write(path)
    assert ConnectionInfo.read(path) == INFO
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_writing_replaces_a_link_and_leaves_its_target_alone(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    path.parent.mkdir(mode=0o700)
    path.symlink_to(target)
    INFO.write(path)
    assert target.read_text() == "mine"
    assert not path.is_symlink()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o660])
def test_a_file_open_to_others_is_refused(path: Path, mode: int) -> None:
    INFO.write(path)
    path.chmod(mode)
    with pytest.raises(ConnectionInfoError, match=r"open to other users.*chmod 600"):
        ConnectionInfo.read(path)


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_directory_open_to_others_is_refused_on_reading_and_on_writing(path: Path, mode: int) -> None:
    INFO.write(path)
    path.parent.chmod(mode)
    for act in (lambda: ConnectionInfo.read(path), lambda: INFO.write(path)):
        with pytest.raises(ConnectionInfoError, match=r"open to other users.*chmod 700"):
            act()


def test_the_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    INFO.write(path)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(ConnectionInfoError, match="another user"):
        ConnectionInfo.read(path)
    with pytest.raises(ConnectionInfoError, match="another user"):
        INFO.write(path)


def test_a_link_is_not_followed_on_reading(path: Path) -> None:
    INFO.write(path)
    link = path.with_name("link")
    link.symlink_to(path)
    with pytest.raises(ConnectionInfoError, match="link"):
        ConnectionInfo.read(link)


def test_a_pipe_in_the_place_of_the_file_is_refused_and_does_not_hang(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    os.mkfifo(path, 0o600)
    with pytest.raises(ConnectionInfoError, match="not a regular file"):
        ConnectionInfo.read(path)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b" " * (2 << 20)], ids=["empty", "binary", "other", "large"])
def test_a_file_with_something_else_is_refused_with_its_name(path: Path, content: bytes) -> None:
    INFO.write(path)
    path.write_bytes(content)
    with pytest.raises(ConnectionInfoError) as caught:
        ConnectionInfo.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(ConnectionInfoError, match=str(path)):
        ConnectionInfo.read(path)
    path.parent.mkdir(mode=0o700)
    with pytest.raises(ConnectionInfoError, match=str(path)):
        ConnectionInfo.read(path)


def test_the_home_directory_has_its_short_name(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    INFO.write("~/private/connection.json")
    assert ConnectionInfo.read("~/private/connection.json") == ConnectionInfo.read(path) == INFO


# Files of exchanges that have ended


def text_of_refusal(path: Path, **changes: Any) -> str:
    """Why the file of an exchange in this process is not read, once it is as `changes` say."""
    msgspec.structs.replace(INFO, server=msgspec.structs.replace(HERE, **changes)).write(path)
    with pytest.raises(ConnectionInfoError) as caught:
        ConnectionInfo.read(path)
    text = str(caught.value)
    assert "\n" not in text
    for part in (str(path), "has ended", HERE.host, time.strftime("%Y-%m-%d"), "Start an exchange"):
        assert part in text
    return text


def test_the_file_of_an_exchange_whose_process_is_gone_is_refused(path: Path) -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:  # ends with its input
        pid = process.pid
    assert f"process {pid} is gone" in text_of_refusal(path, pid=pid)


def test_the_file_of_an_exchange_whose_process_number_is_another_s_by_now_is_refused(path: Path) -> None:
    assert f"process {os.getpid()} is gone" in text_of_refusal(path, started_s=1.0)


def test_the_file_of_an_exchange_from_before_a_restart_of_the_machine_is_refused(path: Path) -> None:
    assert "was restarted since" in text_of_refusal(path, boot_id="the one before")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"host": "login7", "boot_id": "its own", "pid": 1},
        {"boot_id": None, "pid": 1 << 22},
        {"pid_namespace": "pid:[1]", "pid": 1 << 22},
    ],
    ids=["runs", "other machine", "unknown", "other container"],
)
def test_the_file_of_an_exchange_that_may_run_is_read(path: Path, changes: dict[str, Any]) -> None:
    info = msgspec.structs.replace(INFO, server=msgspec.structs.replace(HERE, **changes))
    info.write(path)
    assert ConnectionInfo.read(path) == info


def test_a_process_that_has_ended_and_waits_for_its_parent_is_gone(path: Path) -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        started_s = origin._started_s(process.pid)
        assert started_s is not None
        assert process.stdin is not None
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert "is gone" in text_of_refusal(path, pid=process.pid, started_s=started_s)


def test_a_file_is_kept_for_a_block(path: Path) -> None:
    with INFO.kept_at(path):
        assert ConnectionInfo.read(path) == INFO
    assert list(path.parent.iterdir()) == []
    with pytest.raises(KeyError), INFO.kept_at(path):
        raise KeyError
    assert list(path.parent.iterdir()) == []


def test_the_file_of_a_later_exchange_is_not_removed_by_the_end_of_an_earlier_one(path: Path) -> None:
    other = ConnectionInfo(urls=("http://host:1",))
    with INFO.kept_at(path):
        other.write(path)
    assert ConnectionInfo.read(path) == other


def test_a_file_that_somebody_has_removed_is_not_missed(path: Path) -> None:
    with INFO.kept_at(path):
        path.unlink()
    with INFO.kept_at(path):
        path.unlink()
        path.parent.rmdir()


def test_a_forked_copy_of_the_program_leaves_the_file_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with INFO.kept_at(path):
        monkeypatch.setattr(os, "getpid", lambda: 1)
    assert ConnectionInfo.read(path) == INFO


# Environment


def test_the_environment_names_a_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    INFO.write(path)
    monkeypatch.setenv(CONNECTION_VARIABLE, str(path))
    assert CONNECTION_VARIABLE == "ACADEMY_HPC_CONNECTION"
    assert ConnectionInfo.from_environment() == INFO
    assert ConnectionInfo.from_environment({CONNECTION_VARIABLE: str(path)}) == INFO


@pytest.mark.parametrize("environment", [{}, {CONNECTION_VARIABLE: ""}])
def test_an_environment_without_the_variable_is_told_its_name(environment: dict[str, str]) -> None:
    with pytest.raises(ConnectionInfoError, match=CONNECTION_VARIABLE):
        ConnectionInfo.from_environment(environment)


@pytest.mark.parametrize("padding", ["", "  ", "\n"])
def test_the_text_itself_in_the_environment_is_refused_and_not_repeated(padding: str) -> None:
    with pytest.raises(ConnectionInfoError, match="path of a connection file") as caught:
        ConnectionInfo.from_environment({CONNECTION_VARIABLE: padding + INFO.to_json()})
    assert SECRET not in str(caught.value)
