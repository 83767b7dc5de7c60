"""A spawned exchange: real processes, real sockets, and deaths of every kind."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest

from academy_hpc.errors import ConnectionInfoError, ExchangeStartError
from academy_hpc.exchange.http import process
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.identity import Identity
from academy_hpc.exchange.http.probe import ask_first
from academy_hpc.exchange.http.spawn import spawn_http_exchange

__all__: list[str] = []

ROOT = Path(process.__file__).parents[3]
ANY = "0.0.0.0"  # noqa: S104 the point of some tests
DEAD_PROXY = "http://127.0.0.1:9"


def get(url: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """One GET without proxies."""
    with contextlib.closing(connection_to(url)) as connection:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()


def connection_to(url: str) -> http.client.HTTPConnection:
    """Without a look at the certificate: these tests give away no secret that matters."""
    parts = urlsplit(url)
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    context = ssl._create_unverified_context()  # noqa: S323
    return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=5, context=context)


def who(info: ConnectionInfo, url: str | None = None) -> dict[str, Any]:
    """What the exchange says of itself."""
    status, body = get(url or info.urls[-1], "/whoami", info.headers)
    assert status == 200, body
    answer: dict[str, Any] = json.loads(body)
    return answer


def token_of(info: ConnectionInfo) -> str:
    scheme, token = info.headers["Authorization"].split(" ")
    assert scheme == "Bearer"
    return token


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    """No such process, or only its remains, which wait for their parent."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def refuses_connections(url: str) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def pipe_at(pid: int, fd: int) -> str:
    """The name of what a process has open at a descriptor, such as ``pipe:[123]``."""
    return str(Path(f"/proc/{pid}/fd/{fd}").readlink())


def open_pipes(pid: int) -> set[str]:
    names = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # such as the descriptor that lists the directory
            names.add(str(entry.readlink()))
    return {name for name in names if name.startswith("pipe:")}


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    """No child process, descriptor or thread more than before."""
    gc.collect()
    children = set(psutil.Process().children())
    before = (psutil.Process().num_fds(), threading.active_count())
    yield
    gc.collect()
    assert set(psutil.Process().children()) <= children
    assert (psutil.Process().num_fds(), threading.active_count()) == before


@contextlib.contextmanager
def program(code: str, *, stdin_script: bool = False, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run `code` in a Python of its own, which is gone afterwards."""
    arguments = [sys.executable, "-"] if stdin_script else [sys.executable, "-c", textwrap.dedent(code)]
    options.setdefault("env", {**os.environ, "PYTHONPATH": str(ROOT)})
    running = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    with running:
        try:
            if stdin_script:
                assert running.stdin is not None
                running.stdin.write(textwrap.dedent(code))
                running.stdin.close()
                running.stdin = None
            yield running
        finally:
            running.kill()


def output_of(code: str, **options: Any) -> list[str]:
    """The lines that a program prints that ends well."""
    with program(code, **options) as running:
        output, errors = running.communicate(timeout=30)
    assert running.returncode == 0, errors
    assert errors == ""
    return output.splitlines()


# Start


def test_the_factory_reaches_the_exchange_under_each_url() -> None:
    """From here, all addresses of this machine are reachable."""
    with nothing_left_behind(), spawn_http_exchange(port=0) as factory:
        info = factory.connection_info
        answers = [who(info, url) for url in info.urls]
    assert len({json.dumps(answer) for answer in answers}) == 1
    assert len(info.urls) > 1 or psutil.net_if_addrs().keys() == {"lo"}
    assert ANY not in repr(info)
    assert urlsplit(info.urls[-1]).hostname == "127.0.0.1"
    assert not info.trust_env


def test_it_speaks_tls_unless_only_this_machine_can_reach_it() -> None:
    """Each exchange with a certificate of its own, whose fingerprint clients check."""
    with spawn_http_exchange(port=0) as one, spawn_http_exchange("127.0.0.1", 0, tls=True) as other:
        infos = [one.connection_info, other.connection_info]
        assert {urlsplit(url).scheme for info in infos for url in info.urls} == {"https"}
        for info in infos:
            parts = urlsplit(info.urls[0])
            pem = ssl.get_server_certificate((parts.hostname or "", parts.port or 0))
            assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() == info.fingerprint
    assert infos[0].fingerprint != infos[1].fingerprint
    with spawn_http_exchange("127.0.0.1", 0) as factory:
        assert urlsplit(factory.connection_info.urls[0]).scheme == "http"
        assert factory.connection_info.fingerprint is None


@pytest.mark.parametrize("host", ["127.0.0.1", ANY])
def test_a_connection_file_is_there_as_long_as_the_exchange(host: str, tmp_path: Path) -> None:
    path = tmp_path / "private" / "connection.json"
    with spawn_http_exchange(host, 0, connection_file=path) as factory:
        info = ConnectionInfo.read(path)
        assert info == factory.connection_info
        assert info.server is not None
        assert (info.server.pid, info.server.host) == (os.getpid(), socket.gethostname())
    assert list(path.parent.iterdir()) == []


def test_a_connection_file_that_can_not_be_written_is_told_and_nothing_stays(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with (
        nothing_left_behind(),
        pytest.raises(ConnectionInfoError, match="chmod 700"),
        spawn_http_exchange("127.0.0.1", 0, connection_file=tmp_path / "connection.json"),
    ):
        pytest.fail("started")


@pytest.mark.faults
def test_the_connection_file_of_a_program_that_was_killed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "connection.json"
    code = SERVE_FOR_EVER.replace("0) as", f"0, connection_file={str(path)!r}) as")
    with program(code.format(before="")) as running:
        info = info_from(running)
        assert ConnectionInfo.read(path) == info
        running.kill()
        running.wait()
        with pytest.raises(ConnectionInfoError, match=f"has ended.*process {running.pid} is gone"):
            ConnectionInfo.read(path)


def test_without_the_token_it_answers_nobody() -> None:
    with spawn_http_exchange("127.0.0.1", 0) as factory:
        url = factory.connection_info.urls[0]
        for path in ("/whoami", "/mailbox", "/", "/stream", "/no-such-path"):
            assert get(url, path, {})[0] == 401
            assert get(url, path, {"Authorization": f"Bearer {'x' * 43}"})[0] in (401, 403)


def test_each_exchange_has_its_own_random_token() -> None:
    with spawn_http_exchange("127.0.0.1", 0) as one, spawn_http_exchange("127.0.0.1", 0) as two:
        tokens = [token_of(factory.connection_info) for factory in (one, two)]
        assert get(one.connection_info.urls[0], "/whoami", two.connection_info.headers)[0] == 403
    assert tokens[0] != tokens[1]
    assert [token for token in tokens if not re.fullmatch(r"[A-Za-z0-9_-]{43}", token)] == []  # 256 bits in base64


def test_a_given_token_is_used() -> None:
    token = "0123456789" * 4
    with spawn_http_exchange("127.0.0.1", 0, token=token) as factory:
        assert token_of(factory.connection_info) == token
        who(factory.connection_info)


def test_a_loopback_exchange_is_advertised_and_reachable_on_loopback_only() -> None:
    with spawn_http_exchange("127.0.0.1", 0) as factory:
        (url,) = factory.connection_info.urls
        assert url.startswith("http://127.0.0.1:")
        with pytest.raises(ConnectionRefusedError):
            get(url.replace("127.0.0.1", "127.0.0.2"), "/whoami", factory.connection_info.headers)


def test_an_interface_is_bound_and_advertised_alone() -> None:
    with spawn_http_exchange(port=0, interface="lo") as factory:
        (url,) = factory.connection_info.urls
        assert url.startswith("http://127.0.0.1:")
        assert refuses_connections(url.replace("127.0.0.1", "127.0.0.2"))


def test_an_address_is_advertised_first_and_the_rest_stays() -> None:
    with spawn_http_exchange(port=0, address="gateway.example") as factory:
        first, *others = factory.connection_info.urls
        assert first.startswith("https://gateway.example:")
        who(factory.connection_info, others[0])


@pytest.mark.parametrize("host", ["::1", "::"])
def test_an_exchange_on_ipv6_without_tls_proves_itself_as_well(host: str) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with spawn_http_exchange(host, 0, tls=False) as factory:
        info = factory.connection_info
        url, _ = ask_first(msgspec.structs.replace(info, urls=info.urls[-1:]), timeout_s=5)
        assert url.startswith("http://[::1]:")


def test_an_ipv6_wildcard_takes_both_families() -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with spawn_http_exchange("::", 0) as factory:
        hosts = [urlsplit(url).hostname for url in factory.connection_info.urls]
        assert hosts[-2:] == ["127.0.0.1", "::1"]
        for url in factory.connection_info.urls:
            who(factory.connection_info, url)


def test_a_host_name_is_bound_and_advertised_as_its_address() -> None:
    with spawn_http_exchange("localhost", 0) as factory:
        assert urlsplit(factory.connection_info.urls[0]).hostname == "127.0.0.1"
        who(factory.connection_info)


def test_a_message_limit_reaches_the_server() -> None:
    """REST answers 413 for a body that cannot hold an allowed message."""
    with spawn_http_exchange("127.0.0.1", 0, max_message_bytes=1000) as factory:
        info = factory.connection_info
        parts = urlsplit(info.urls[0])
        with contextlib.closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)) as connection:
            connection.request("PUT", "/message", body=json.dumps({"message": "x" * 1_000_000}), headers=info.headers)
            assert connection.getresponse().status == 413


# The process


def test_it_is_a_new_interpreter_in_a_session_of_its_own_without_our_descriptors() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    try:
        with spawn_http_exchange("127.0.0.1", 0) as factory:
            child = psutil.Process(who(factory.connection_info)["pid"])
            assert child.ppid() == os.getpid()
            assert child.cmdline()[1:] == ["-P", "-m", "academy_hpc.exchange.http.serve"]
            assert os.getsid(child.pid) == child.pid
            # It holds its standard input, and what tells us of its start and end; of the pipes that we hold no other.
            shared = open_pipes(os.getpid()) & open_pipes(child.pid)
            assert pipe_at(child.pid, 0) in shared
            assert len(shared) == 2
            assert pipe_at(os.getpid(), reading) in open_pipes(os.getpid()) - shared
    finally:
        os.close(reading)
        os.close(writing)


def test_the_parent_keeps_no_copy_of_the_socket() -> None:
    """An exchange that died must refuse connections; a socket that nobody serves would let them wait."""
    with spawn_http_exchange("127.0.0.1", 0) as factory:
        (url,) = factory.connection_info.urls
        os.kill(who(factory.connection_info)["pid"], signal.SIGKILL)
        assert within(2, lambda: refuses_connections(url))


def test_token_and_key_are_in_no_place_that_others_see(tmp_path: Path) -> None:
    """Not in the arguments or environment of the process, nor, at the most talkative level, in its log."""
    path, state_dir = tmp_path / "exchange.log", tmp_path / "state"
    with spawn_http_exchange("127.0.0.1", 0, level="DEBUG", log_path=path, state_dir=state_dir, tls=True) as factory:
        info = factory.connection_info
        token = token_of(info)
        pid = who(info)["pid"]
        get(info.urls[0], "/whoami", {"Authorization": f"Bearer {token[:-1]}"})
        get(info.urls[0], f"/{token}", info.headers)
        get(info.urls[0], f"/mailbox?token={token}", info.headers)
        seen = {name: Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ", "comm")}
    seen["log"] = path.read_bytes()
    identity = Identity.read(state_dir)
    assert identity is not None
    assert identity.certificate is not None
    key = identity.certificate.private_key.splitlines()[1]
    assert b"DEBUG" in seen["log"]
    assert [name for name, content in seen.items() for secret in (token, key) if secret.encode() in content] == []


def test_a_log_file_is_private_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "exchange.log"
    path.write_text("before\n")
    path.unlink()
    before = os.umask(0)
    try:
        with spawn_http_exchange("127.0.0.1", 0, level=logging.INFO, log_path=path):
            pass
    finally:
        os.umask(before)
    first = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert "serves in process" in first
    with spawn_http_exchange("127.0.0.1", 0, level="info", log_path=path):
        pass
    assert path.read_text().startswith(first)
    assert path.read_text().count("serves in process") == 2


def test_a_log_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    path = tmp_path / "no-such-directory" / "log"
    with (
        nothing_left_behind(),
        pytest.raises(ExchangeStartError, match="no-such-directory"),
        spawn_http_exchange("127.0.0.1", 0, log_path=path),
    ):
        pytest.fail("started")


def test_what_it_logged_is_shown_when_it_stops(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), spawn_http_exchange("127.0.0.1", 0, level=logging.INFO):
        pass
    assert "serves in process" in caplog.text


def test_nothing_is_shown_when_it_logged_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), spawn_http_exchange("127.0.0.1", 0):
        pass
    assert [record for record in caplog.records if record.name.startswith("academy_hpc")] == []


# Arguments that make no sense


@pytest.mark.parametrize(
    "arguments",
    [
        {"port": -1},
        {"port": 65536},
        {"level": "LOUD"},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"token": ""},
        {"token": "short-secret"},
        {"token": "a" * 40 + "\r\nX: y"},
        {"host": "127.0.0.1", "interface": "lo"},
        {"certificate": "server.pem"},
        {"private_key": "server.key"},
        {"certificate": "server.pem", "private_key": "server.key", "tls": False},
    ],
    ids=repr,
)
def test_nonsense_is_refused_before_anything_is_started(arguments: dict[str, Any]) -> None:
    with (
        nothing_left_behind(),
        pytest.raises(ValueError) as caught,
        spawn_http_exchange(**{"port": 0, **arguments}),
    ):
        pytest.fail("started")
    assert "short-secret" not in str(caught.value)


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    with nothing_left_behind(), socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ExchangeStartError) as caught, spawn_http_exchange("127.0.0.1", port):
            pytest.fail("started")
    text = str(caught.value)
    assert "\n" not in text
    for part in (f"Port {port} of 127.0.0.1", "port=0", f"ss -ltnp 'sport = :{port}'"):
        assert part in text


def test_a_stranger_on_one_address_keeps_us_from_all() -> None:
    """Else who connects there would give the token to the stranger."""
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ExchangeStartError, match="in use"),
        spawn_http_exchange(port=other.getsockname()[1]),
    ):
        pytest.fail("started")


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
@pytest.mark.parametrize("host", ["127.0.0.1", ANY])
def test_nobody_can_share_the_port_of_an_exchange(option: int, host: str) -> None:
    with spawn_http_exchange(port=0) as factory, socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, option, 1)
        with pytest.raises(OSError, match="in use"):
            stranger.bind((host, urlsplit(factory.connection_info.urls[0]).port))
            stranger.listen()


def test_an_address_of_another_machine_is_told_with_those_of_this_one() -> None:
    expected = r"'198\.51\.100\.7'.*127\.0\.0\.1"
    with pytest.raises(ExchangeStartError, match=expected), spawn_http_exchange("198.51.100.7", 0):
        pytest.fail("started")


def test_a_name_that_does_not_resolve_is_told() -> None:
    host = "no-such-host.invalid"
    with pytest.raises(ExchangeStartError, match=host), spawn_http_exchange(host, 0):
        pytest.fail("started")


def test_an_interface_that_is_not_there_is_told_which_are() -> None:
    with (
        nothing_left_behind(),
        pytest.raises(ExchangeStartError, match=r"'hsn77'.*lo \(127\.0\.0\.1\)"),
        spawn_http_exchange(port=0, interface="hsn77"),
    ):
        pytest.fail("started")


def test_a_port_is_free_again_at_once_though_connections_linger() -> None:
    """The side that closes first keeps a connection in TIME_WAIT for a minute: that is the exchange."""
    with spawn_http_exchange("127.0.0.1", 0) as factory:
        parts = urlsplit(factory.connection_info.urls[0])
        client = socket.create_connection((parts.hostname, parts.port))
    with client, spawn_http_exchange("127.0.0.1", parts.port or 0) as again:
        who(again.connection_info)


# A start that fails


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts other code in the place of the exchange process."""

    def replace(code: str) -> None:
        (tmp_path / "stand_in.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(process, "MODULE", "stand_in")

    return replace


HANDOVER = """
    import os, sys, time, json
    from academy_hpc.exchange.http.handover import Ready
    from academy_hpc.exchange.http.tokens import proof
    import msgspec
    handover = json.loads(sys.stdin.readline())
    def say(**fields):
        ready = Ready(pid=os.getpid(), exchange="e", proof=proof(handover["server"]["token"], handover["nonce"]))
        print(msgspec.json.encode(msgspec.structs.replace(ready, **fields)).decode(), flush=True)
"""

FAILURES = {
    "dies": ("import sys; sys.exit('what a pity')", r"exit code 1(.|\n)*what a pity"),
    "raises": ("def f():\n    raise KeyError('deep inside')\nf()", r"exit code 1(.|\n)*KeyError: 'deep inside'"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL.*It logged nothing"),
    "ends without a word": ("", "exit code 0"),
    "says something else": ("print('Hello!', flush=True); input(); input()", "did not answer as one"),
    "closes its output": ("import os, time; os.close(1); time.sleep(60)", "it closed its output"),
    "hangs": ("import sys, time; print('waiting', file=sys.stderr); time.sleep(60)", r"in time.(.|\n)*waiting"),
    "hangs in a line": ("import time; print('{', end='', flush=True); time.sleep(60)", "in time"),
    "ignores signals": (
        "import signal, time; signal.signal(2, signal.SIG_IGN); signal.signal(15, signal.SIG_IGN); time.sleep(60)",
        "in time",
    ),
    "has a wrong proof": (HANDOVER + "    say(proof='00' * 32); time.sleep(60)", "did not prove"),
    "has the proof of another start": (
        HANDOVER + "    say(proof=proof(handover['server']['token'], '')); time.sleep(60)",
        "did not prove",
    ),
    "is another process": (HANDOVER + "    say(pid=1); time.sleep(60)", "did not prove"),
    "does not serve": (HANDOVER + "    say(); time.sleep(60)", "does not answer at 127.0.0.1.*timed out"),
    "closes its socket": (
        HANDOVER + "    os.close(handover['socket_fd']); say(); time.sleep(60)",
        "does not answer at 127.0.0.1, port .*refused",
    ),
    "speaks another protocol": (
        HANDOVER
        + """
    import socket
    sock = socket.socket(fileno=handover['socket_fd'])
    say()
    connection, _ = sock.accept()
    connection.recv(1000)
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\\r\\n")
    connection.close()
    time.sleep(60)
    """,
        "does not answer at 127.0.0.1, port .*SSH-2.0",
    ),
    "gives the answer of another": (
        HANDOVER
        + """
    import socket
    from academy_hpc.exchange.http.challenge import answer_challenge
    sock = socket.socket(fileno=handover['socket_fd'])
    say()
    connection, _ = sock.accept()
    challenge = connection.recv(1000).decode().split("Academy-Challenge: ")[1].splitlines()[0]
    answer = answer_challenge(challenge, secret=handover["server"]["token"], port=sock.getsockname()[1])
    connection.sendall(f"HTTP/1.1 401 No\\r\\nContent-Length: 0\\r\\nAcademy-Proof: {answer}\\r\\n\\r\\n".encode())
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + b'{"exchange": "other", "pid": %d}' % os.getpid())
    connection.close()
    time.sleep(60)
    """,
        "the answer of another one at 127.0.0.1",
    ),
    "does not know the token": (
        HANDOVER
        + """
    import socket
    sock = socket.socket(fileno=handover['socket_fd'])
    say()
    connection, _ = sock.accept()
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 401 No\\r\\nContent-Length: 0\\r\\nAcademy-Proof: 00\\r\\n\\r\\n")
    if b"Bearer" in connection.recv(1000):
        print("was shown the token", file=sys.stderr)
    time.sleep(60)
    """,
        "does not know this exchange's token.*It logged nothing",
    ),
}


@pytest.mark.faults
@pytest.mark.parametrize(("code", "expected"), FAILURES.values(), ids=FAILURES)
def test_a_process_that_fails_to_start_is_told_with_its_last_words_and_is_gone(
    stand_in: Callable[[str], None], code: str, expected: str
) -> None:
    stand_in(code)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    patience = {"in time": 1, "it closed": 1, "timed out": 3}
    timeout = next((limit for part, limit in patience.items() if part in expected), 10)
    with (
        nothing_left_behind(),
        pytest.raises(ExchangeStartError, match=expected),
        spawn_http_exchange("127.0.0.1", port, timeout=timeout),
    ):
        pytest.fail("started")
    with socket.create_server(("127.0.0.1", port)):
        pass  # and so is its socket


def test_no_interpreter_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that embeds Python may have none."""
    for executable in ("", "/no/such/python"):
        monkeypatch.setattr(sys, "executable", executable)
        with (
            nothing_left_behind(),
            pytest.raises(ExchangeStartError, match="No process can be started"),
            spawn_http_exchange("127.0.0.1", 0),
        ):
            pytest.fail("started")


# Stop


def test_it_is_gone_after_the_block_and_so_is_its_port() -> None:
    with nothing_left_behind():
        with spawn_http_exchange("127.0.0.1", 0) as factory:
            (url,) = factory.connection_info.urls
            pid = who(factory.connection_info)["pid"]
        assert gone(pid)
        assert refuses_connections(url)


def test_it_stops_in_order_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with nothing_left_behind(), pytest.raises(KeyError), spawn_http_exchange("127.0.0.1", 0, level=20, log_path=path):
        raise KeyError
    assert "stopping" in path.read_text()


def test_it_stops_at_once_with_idle_and_half_sent_requests() -> None:
    with contextlib.ExitStack() as stack:
        with spawn_http_exchange("127.0.0.1", 0) as factory:
            parts = urlsplit(factory.connection_info.urls[0])
            clients = [stack.enter_context(socket.create_connection((parts.hostname, parts.port))) for _ in range(20)]
            for client in clients[::2]:
                client.sendall(b"GET /whoami HTTP/1.1\r\nHost: x\r\nAuthor")
            started = time.monotonic()
        assert time.monotonic() - started < 1.5


@pytest.mark.faults
def test_one_that_does_not_stop_is_killed(
    stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(
        """
        import asyncio
        from academy_hpc.exchange.http import serve
        from academy_hpc.exchange.http.server import ExchangeServer
        async def close(self):
            serve.log.warning("I am not done")
            await asyncio.sleep(60)
        ExchangeServer.close = close
        serve.main()
        """
    )
    monkeypatch.setattr(process, "STOP_GRACE_S", 0.5)
    with nothing_left_behind():
        with spawn_http_exchange("127.0.0.1", 0):
            started = time.monotonic()
        assert 0.4 < time.monotonic() - started < 3
    assert "did not stop within 0.5 s" in caplog.text
    assert "I am not done" in caplog.text


@pytest.mark.faults
def test_one_that_died_meanwhile_is_told_and_does_not_fail_the_block(caplog: pytest.LogCaptureFixture) -> None:
    with nothing_left_behind(), spawn_http_exchange("127.0.0.1", 0) as factory:
        pid = who(factory.connection_info)["pid"]
        os.kill(pid, signal.SIGKILL)
        assert within(2, lambda: gone(pid))
    assert "ended by itself (killed by SIGKILL)" in caplog.text


def test_sigterm_stops_it_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with spawn_http_exchange("127.0.0.1", 0, level="INFO", log_path=path) as factory:
        pid = who(factory.connection_info)["pid"]
        os.kill(pid, signal.SIGTERM)
        assert within(2, lambda: gone(pid))
    assert "stopping" in path.read_text()
    assert "Traceback" not in path.read_text()


def test_blocked_signals_of_the_caller_do_not_make_it_deaf() -> None:
    blocked = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        with spawn_http_exchange("127.0.0.1", 0):
            started = time.monotonic()
        assert time.monotonic() - started < process.STOP_GRACE_S / 2
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)


# Whoever the parent is, and however it ends

SERVE_FOR_EVER = """
    import json, time
    from academy_hpc.exchange.http.spawn import spawn_http_exchange
    with spawn_http_exchange('127.0.0.1', 0) as factory:
        {before}
        print(factory.connection_info.to_json(), flush=True)
        time.sleep(60)
"""

FORK_A_SLEEPER = "import os; os.fork() or (time.sleep(8), os._exit(0))"


def info_from(running: subprocess.Popen[str]) -> ConnectionInfo:
    assert running.stdout is not None
    line = running.stdout.readline()
    if not line:
        pytest.fail(running.communicate()[1])
    return ConnectionInfo.from_json(line)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV])
def test_it_ends_when_its_parent_dies_of_any_signal(number: int) -> None:
    with program(SERVE_FOR_EVER.format(before="")) as running:
        pid = who(info_from(running))["pid"]
        running.send_signal(number)
        running.wait()
        assert within(2, lambda: gone(pid))


@pytest.mark.faults
def test_it_ends_with_its_parent_though_a_fork_of_that_lives_on() -> None:
    """The fork holds the parent's end of the pipe open."""
    with program(SERVE_FOR_EVER.format(before=FORK_A_SLEEPER)) as running:
        info = info_from(running)
        pid = who(info)["pid"]
        forks = psutil.Process(running.pid).children()
        running.kill()
        running.wait()
        try:
            assert within(2, lambda: gone(pid))
            assert len([fork for fork in forks if not gone(fork.pid)]) == 1
        finally:
            for fork in forks:
                fork.kill()


@pytest.mark.faults
def test_it_ends_though_its_parent_dies_while_it_starts() -> None:
    with program(
        """
        import os
        from academy_hpc.exchange.http import spawn
        def die(process, *_):
            print(process.pid, flush=True)
            os.kill(os.getpid(), 9)
        spawn.ExchangeProcess.wait_ready = die
        with spawn.spawn_http_exchange('127.0.0.1', 0): pass
        """
    ) as running:
        assert running.stdout is not None
        pid = int(running.stdout.readline())
        assert within(3, lambda: gone(pid))


@pytest.mark.faults
def test_ctrl_c_goes_to_the_parent_first() -> None:
    """It still has its exchange while it puts things in order."""
    with program(
        """
        import json, time, http.client, urllib.parse
        from academy_hpc.exchange.http.spawn import spawn_http_exchange
        with spawn_http_exchange('127.0.0.1', 0) as factory:
            info = factory.connection_info
            print(info.to_json(), flush=True)
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                time.sleep(0.3)
                connection = http.client.HTTPConnection(urllib.parse.urlsplit(info.urls[0]).netloc)
                connection.request('GET', '/whoami', headers=info.headers)
                print(connection.getresponse().status)
        """,
        start_new_session=True,
    ) as running:
        pid = who(info_from(running))["pid"]
        os.killpg(running.pid, signal.SIGINT)
        output, errors = running.communicate(timeout=10)
        assert (running.returncode, output, errors) == (0, "200\n", "")
        assert gone(pid)


def test_a_forked_copy_of_the_parent_leaves_it_alone() -> None:
    lines = output_of(
        """
        import os, sys, http.client, urllib.parse
        from academy_hpc.exchange.http.spawn import spawn_http_exchange
        def ask(info):
            connection = http.client.HTTPConnection(urllib.parse.urlsplit(info.urls[0]).netloc)
            connection.request('GET', '/whoami', headers=info.headers)
            return connection.getresponse().status
        with spawn_http_exchange('127.0.0.1', 0) as factory:
            copy = os.fork()
            if copy:
                os.waitpid(copy, 0)
                print(ask(factory.connection_info), flush=True)
        """
    )
    assert lines == ["200"]


MAIN = """
    from academy_hpc.exchange.http.spawn import spawn_http_exchange
    with spawn_http_exchange('127.0.0.1', 0) as factory:
        print(len(factory.connection_info.urls))
"""


def test_no_guard_is_needed_in_the_main_program() -> None:
    """The process does not import it: it may be a script, text from a pipe, or a notebook."""
    assert output_of(MAIN) == ["1"]
    assert output_of(MAIN, stdin_script=True) == ["1"]


@pytest.mark.parametrize("how", ["working directory", "sys.path"])
def test_the_process_is_of_the_same_installation_as_its_parent(tmp_path: Path, how: str) -> None:
    """Also of one that is not installed, but found where the program was told to look."""
    checkout = tmp_path / "check out"
    shutil.copytree(Path(process.__file__).parents[2], checkout / "academy_hpc")
    path = tmp_path / "log"
    code = f"""
        from academy_hpc.exchange.http.spawn import spawn_http_exchange
        with spawn_http_exchange('127.0.0.1', 0, level='DEBUG', log_path={str(path)!r}): pass
        """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if how == "sys.path":
        code = f"import sys; sys.path.insert(0, {str(checkout)!r})\n{textwrap.dedent(code)}"
    output_of(code, cwd=checkout if how == "working directory" else "/", env=environment)
    assert f"{checkout}/academy_hpc/exchange/http/serve.py" in path.read_text()


def test_a_program_without_standard_streams_can_spawn(tmp_path: Path) -> None:
    """Daemons close them; their numbers then go to whatever is opened next."""
    path = tmp_path / "result"
    code = f"""
        import os
        os.closerange(0, 3)
        from academy_hpc.exchange.http.spawn import spawn_http_exchange
        with spawn_http_exchange('127.0.0.1', 0) as factory:
            open({str(path)!r}, 'w').write(factory.connection_info.urls[0])
        """
    with program(code) as running:
        running.wait(20)
    assert path.read_text().startswith("http://127.0.0.1:")


def test_it_works_inside_an_event_loop() -> None:
    lines = output_of(
        """
        import asyncio
        from academy_hpc.exchange.http.spawn import spawn_http_exchange
        async def main():
            with spawn_http_exchange('127.0.0.1', 0) as factory:
                await asyncio.sleep(0)
                print(len(factory.connection_info.urls))
        asyncio.run(main())
        """
    )
    assert lines == ["1"]


def test_several_at_once_from_threads() -> None:
    def run(_: int) -> str:
        with spawn_http_exchange("127.0.0.1", 0) as factory:
            return str(who(factory.connection_info)["exchange"])

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(run, range(3)))) == 3


def test_the_end_of_the_thread_that_spawned_it_is_not_its_end() -> None:
    with contextlib.ExitStack() as stack:
        factories = []
        thread = threading.Thread(
            target=lambda: factories.append(stack.enter_context(spawn_http_exchange("127.0.0.1", 0)))
        )
        thread.start()
        thread.join()
        time.sleep(0.3)
        who(factories[0].connection_info)


def test_proxy_variables_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, DEAD_PROXY)
        monkeypatch.setenv(name.upper(), DEAD_PROXY)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with spawn_http_exchange(port=0) as factory:
        assert not factory.connection_info.trust_env
