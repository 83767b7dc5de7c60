"""A client's token of Globus Auth: got once, kept privately, renewed in time, and never a reason to hang."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from globus_sdk.login_flows import CommandLineLoginFlowManager

from academy_hpc.errors import ExchangeUnavailableError, LoginRequiredError, UnauthorizedError
from academy_hpc.exchange.http import globus_login
from academy_hpc.exchange.http.globus_login import GlobusCredential
from tests.globus_stand_in import EXCHANGE, GlobusStandIn

__all__: list[str] = []

TOKEN_ROUTE = "/v2/oauth2/token"  # noqa: S105 - a path
ADA = "ada00000-0000-4000-8000-000000000000"
LOGIN = [sys.executable, "-m", "academy_hpc", "login"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def service_account(globus: GlobusStandIn, monkeypatch: pytest.MonkeyPatch) -> str:
    """This process acts as a confidential client; its secret."""
    variables = globus.new_client()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables["ACADEMY_GLOBUS_CLIENT_SECRET"]


@pytest.fixture
def at_a_terminal(globus: GlobusStandIn, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Somebody sits at a terminal and logs in as Ada; the addresses that were shown."""
    shown: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(CommandLineLoginFlowManager, "print_authorize_url", lambda _, url: shown.append(url))
    monkeypatch.setattr(CommandLineLoginFlowManager, "prompt_for_code", lambda _: globus.approve(shown[-1], ADA))
    return shown


@pytest.fixture
def nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)


def files(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


def token_file(home: Path) -> Path:
    (path,) = files(home)
    return path


def opens_the_exchange(globus: GlobusStandIn, value: str) -> str:
    """For which identity."""
    token = globus.tokens[value.removeprefix("Bearer ")]
    assert (token.server, token.kind) == (EXCHANGE, "access")
    assert token.expires > time.time()
    return token.identity


# Service accounts


@pytest.mark.usefixtures("service_account")
async def test_a_service_account_needs_no_login_and_leaves_nothing_behind(globus: GlobusStandIn, home: Path) -> None:
    value = await GlobusCredential().authorization()
    assert opens_the_exchange(globus, value) == os.environ["ACADEMY_GLOBUS_CLIENT_ID"]
    assert files(home) == []


@pytest.mark.usefixtures("service_account")
async def test_a_token_is_used_until_it_is_about_to_expire(globus: GlobusStandIn) -> None:
    credential = GlobusCredential()
    assert len({await credential.authorization() for _ in range(5)}) == 1
    assert globus.asked["client_credentials"] == 1
    globus.life_s = globus_login.RENEW_S + 1
    another = GlobusCredential()
    first = await another.authorization()
    assert await another.authorization() == first
    await asyncio.sleep(1.1)
    assert await another.authorization() != first


@pytest.mark.usefixtures("service_account")
async def test_those_who_ask_together_share_one_token(globus: GlobusStandIn) -> None:
    globus.delay_s = 0.1
    credential = GlobusCredential()
    values = await asyncio.gather(*(credential.authorization() for _ in range(10)))
    assert len(set(values)) == globus.asked["client_credentials"] == 1


@pytest.mark.usefixtures("service_account")
async def test_the_event_loop_goes_on_and_a_caller_may_go(globus: GlobusStandIn) -> None:
    globus.delay_s = 0.5
    asking = asyncio.create_task(GlobusCredential().authorization())
    before = time.monotonic()
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert time.monotonic() - before < 0.4


async def test_refused_credentials_are_told_apart_from_an_outage(
    globus: GlobusStandIn, service_account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    globus.failing.add("auth")
    with pytest.raises(ExchangeUnavailableError, match=r"answered 503"):
        await GlobusCredential().authorization()
    globus.failing.clear()
    with monkeypatch.context() as changed:
        changed.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", "http://127.0.0.1:9/")
        with pytest.raises(ExchangeUnavailableError, match=r"\(ConnectionError on request\)"):
            await GlobusCredential().authorization()
    globus.clients.clear()
    with pytest.raises(LoginRequiredError, match=r"refused .*401.* Check ACADEMY_GLOBUS_CLIENT_ID and") as raised:
        await GlobusCredential().authorization()
    assert service_account not in str(raised.value)
    assert "\n" not in str(raised.value)
    monkeypatch.delenv("ACADEMY_GLOBUS_CLIENT_ID")
    with pytest.raises(LoginRequiredError, match="ACADEMY_GLOBUS_CLIENT_ID is not"):
        await GlobusCredential().authorization()


# People


@pytest.mark.usefixtures("at_a_terminal")
async def test_a_login_is_kept_where_nobody_else_can_read_it(globus: GlobusStandIn, home: Path) -> None:
    old = os.umask(0)
    try:
        value = await GlobusCredential().authorization()
    finally:
        os.umask(old)
    assert opens_the_exchange(globus, value) == ADA
    path = token_file(home)
    assert path.name == f"{globus_login.DEFAULT_CLIENT_ID}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(path.read_text())[EXCHANGE]["access_token"] in value


async def test_one_login_serves_later_programs_longer_than_a_token_lives(
    globus: GlobusStandIn, at_a_terminal: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    globus.life_s = 1
    first = await GlobusCredential().authorization()
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    await asyncio.sleep(1.1)
    second = await GlobusCredential().authorization()  # as another program
    assert second != first
    assert opens_the_exchange(globus, second) == ADA
    assert (len(at_a_terminal), globus.asked["authorization_code"]) == (1, 1)
    assert stat.S_IMODE(token_file(home).stat().st_mode) == 0o600


async def test_the_login_asks_for_the_exchange_and_for_tokens_that_can_be_renewed(at_a_terminal: list[str]) -> None:
    await GlobusCredential().authorization()
    (url,) = at_a_terminal
    assert f"scopes%2F{EXCHANGE}%2Facademy_exchange" in url
    assert "access_type=offline" in url
    assert f"client_id={globus_login.DEFAULT_CLIENT_ID}" in url


@pytest.mark.usefixtures("globus", "nobody_there")
async def test_without_a_terminal_a_login_that_is_needed_is_an_error_that_says_what_to_do(home: Path) -> None:
    with pytest.raises(LoginRequiredError) as raised:
        async with asyncio.timeout(5):
            await GlobusCredential().authorization()
    assert isinstance(raised.value, UnauthorizedError)
    text = str(raised.value)
    assert re.search(r"no terminal here. Run `academy-hpc login` once", text)
    assert "ACADEMY_GLOBUS_CLIENT_SECRET" in text
    assert "\n" not in text
    assert files(home) == []


async def test_a_login_that_was_withdrawn_is_asked_for_again(
    globus: GlobusStandIn, at_a_terminal: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    globus.life_s = 1
    credential = GlobusCredential()
    await credential.authorization()
    globus.revoke_all()
    assert opens_the_exchange(globus, await credential.authorization()) == ADA
    assert len(at_a_terminal) == 2
    globus.revoke_all()
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(LoginRequiredError, match="no terminal here"):
        await credential.authorization()


async def test_a_login_as_somebody_else_is_refused(
    globus: GlobusStandIn, at_a_terminal: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await GlobusCredential().authorization()
    globus.revoke_all()
    monkeypatch.setattr(
        CommandLineLoginFlowManager, "prompt_for_code", lambda _: globus.approve(at_a_terminal[-1], "somebody-else")
    )
    globus.life_s = 1
    with pytest.raises(LoginRequiredError, match="change in identity"):
        async with asyncio.timeout(5):
            await renewed(GlobusCredential())


async def renewed(credential: GlobusCredential) -> str:
    """What takes the place of its token, which an exchange has refused."""
    return await credential.authorization(refused=await credential.authorization())


@pytest.mark.usefixtures("service_account")
async def test_a_refused_token_is_replaced_once_for_all_who_hold_it(globus: GlobusStandIn) -> None:
    credential = GlobusCredential()
    refused = await credential.authorization()
    first, second = [await credential.authorization(refused=refused) for _ in range(2)]
    assert first == second != refused
    assert await credential.authorization() == first
    assert await credential.authorization(refused=first) == first  # not again and again
    assert globus.asked["client_credentials"] == 2


@pytest.mark.usefixtures("at_a_terminal")
@pytest.mark.parametrize("which", ["file", "directory"])
async def test_tokens_that_others_could_read_are_not_used(globus: GlobusStandIn, home: Path, which: str) -> None:
    await GlobusCredential().authorization()
    path = token_file(home)
    (path if which == "file" else path.parent).chmod(0o755 if which == "directory" else 0o644)
    with pytest.raises(LoginRequiredError, match=r"is open to other users; `chmod"):
        await GlobusCredential().authorization()


@pytest.mark.usefixtures("at_a_terminal")
async def test_a_file_that_holds_something_else_is_told_without_what_it_holds(
    globus: GlobusStandIn, home: Path
) -> None:
    await GlobusCredential().authorization()
    path = token_file(home)
    for content in ('{"x": "a-secret"}', "a-secret", '{"x": {"access_token": "a-secret"}}', '{"x": {"a-secret": 1}}'):
        path.write_text(content)
        with pytest.raises(LoginRequiredError) as raised:
            await GlobusCredential().authorization()
        assert "a-secret" not in str(raised.value)


# Secrets


async def test_nothing_secret_is_shown_logged_or_pickled(
    globus: GlobusStandIn, service_account: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    credential = GlobusCredential()
    value = await credential.authorization()
    copy = pickle.loads(pickle.dumps(credential))  # noqa: S301 - of this test
    text = caplog.text + repr(credential) + repr(pickle.dumps(credential))
    assert TOKEN_ROUTE in text
    for secret in (service_account, value.removeprefix("Bearer "), *globus.tokens):
        assert secret not in text
    assert opens_the_exchange(globus, await copy.authorization()) == os.environ["ACADEMY_GLOBUS_CLIENT_ID"]


def test_a_client_without_globus_does_not_load_its_sdk() -> None:
    code = (
        "import sys, academy_hpc; academy_hpc.HttpExchangeFactory('http://h:1'); sys.exit('globus_sdk' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# A real terminal


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)  # noqa: S606 - no shell is wanted
        self.output = ""

    def read_until(self, pattern: str) -> str:
        until = time.monotonic() + 20
        while (found := re.search(pattern, self.output)) is None:
            assert time.monotonic() < until, self.output
            if select.select([self._fd], [], [], 0.1)[0]:
                self.output += os.read(self._fd, 4096).decode()
        return found[0]

    def type(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())

    def wait(self) -> int:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self._fd)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"it does not end: {self.output}")


def start(command: list[str]) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads; it executes at once
        return Terminal(command)


def test_a_person_logs_in_once_in_a_terminal(globus: GlobusStandIn, home: Path) -> None:
    terminal = start(LOGIN)
    url = terminal.read_until(r"http://127\S+")
    terminal.read_until("Code here: ")
    terminal.type(globus.approve(url, ADA))
    terminal.read_until("Logged in")
    assert terminal.wait() == 0
    program = (
        "import asyncio; from academy_hpc.exchange.http.globus_login import GlobusCredential as C;"
        "print(asyncio.run(C().authorization()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert opens_the_exchange(globus, run.stdout.strip()) == ADA


@pytest.mark.usefixtures("globus")
def test_a_program_that_waits_for_the_code_can_be_stopped() -> None:
    """Waiting for a person holds up neither the event loop nor the end of the program."""
    program = (
        "import asyncio; from academy_hpc.exchange.http.globus_login import GlobusCredential as C\n"
        "async def main():\n"
        "    asking = asyncio.create_task(C().authorization())\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    terminal = start([sys.executable, "-c", program])
    terminal.read_until("Code here: ")
    os.kill(terminal.pid, signal.SIGINT)
    terminal.wait()


# The command


def academy_hpc(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "academy_hpc", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.usefixtures("globus")
def test_the_command_that_logs_in_needs_a_terminal() -> None:
    ended = academy_hpc("login")
    assert ended.returncode == 1
    assert re.fullmatch(r"Error: A login at Globus is needed, and there is no terminal here\. .*\n", ended.stderr)


@pytest.mark.usefixtures("service_account")
def test_a_service_account_may_try_whether_globus_knows_it() -> None:
    ended = academy_hpc("login")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.usefixtures("globus")
def test_an_exchange_can_t_be_run_for_globus_without_being_known_there(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACADEMY_EXCHANGE_SECRET")
    ended = academy_hpc("exchange", "run", "--globus", "--port", "0", "--connection-file", str(home / "x" / "c.json"))
    assert ended.returncode == 1
    assert re.fullmatch(r"Error: ACADEMY_EXCHANGE_SECRET is not set: .*\n", ended.stderr)
