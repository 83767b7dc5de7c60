"""What anybody needs to reach one exchange, and its text, file and environment forms.

Text is what crosses to a compute node: versioned JSON, so that two installations that do not fit say so, where a
pickled object would fail in the middle of an import.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import msgspec

from academy_hpc.errors import ConnectionInfoError
from academy_hpc.exchange.http.origin import ServerOrigin
from academy_hpc.exchange.http.private_file import read_private, write_private

__all__ = ["CONNECTION_VARIABLE", "ConnectionInfo", "is_loopback"]

CONNECTION_VARIABLE = "ACADEMY_HPC_CONNECTION"
"""Environment variable with the *path* of a connection file. Others can often read a job's environment, so the
connection info with its token is never in it."""

KIND = "academy-hpc-connection"
VERSION = 1

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2: token
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?")  # RFC 9110, 5.5, ASCII only
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_HIDDEN = "…"


class ConnectionInfo(msgspec.Struct, frozen=True):
    """Where an exchange can be reached, and what opens it. Whoever holds one may use the exchange: treat it as a key.

    Attributes:
        urls: Candidate base URLs, the most useful first; not all need to be reachable from everywhere.
        headers: What any HTTP client must send with each request, such as ``Authorization``. `repr` hides the values.
        fingerprint: SHA-256 of the server's certificate in lower-case hexadecimal, for URLs that are all https://;
            None where nothing is pinned.
        trust_env: Whether proxy variables (``http_proxy`` and the like) apply, which they never do to loopback. Off for
            spawned exchanges: sites export them for the way to the internet, and they break calls inside the machine.
        server: Where the exchange runs; None: not known. Its loopback addresses lead to it there alone: elsewhere, a
            stranger may listen on them.
        proof: Whether a server at an http:// URL has to prove that it knows the token before it is shown the token.
        durable: Whether the exchange keeps its state and is started again when it dies: who finds it out of reach may
            wait for it.
        auth_method: ``"globus"``: everybody shows a token of their own, of Globus Auth; None: the headers are all.

    Raises:
        ConnectionInfoError: A field is malformed. The text never repeats a header's value.
    """

    urls: tuple[str, ...]
    headers: dict[str, str] = {}
    fingerprint: str | None = None
    trust_env: bool = False
    server: ServerOrigin | None = None
    proof: bool = False
    auth_method: Literal["globus"] | None = None
    durable: bool = False

    def __post_init__(self) -> None:
        """Check the fields, and take copies that nobody else holds."""
        if isinstance(self.urls, str) or not self.urls:
            raise ConnectionInfoError("Connection info needs a list of at least one URL.")
        msgspec.structs.force_setattr(self, "urls", tuple(_checked_url(url) for url in self.urls))
        msgspec.structs.force_setattr(self, "headers", _checked_headers(self.headers))
        if self.fingerprint is not None and not _FINGERPRINT.fullmatch(self.fingerprint):
            raise ConnectionInfoError("The fingerprint of connection info is 64 lower-case hexadecimal digits.")
        if self.fingerprint is not None and not all(url.startswith("https://") for url in self.urls):
            raise ConnectionInfoError(
                "Connection info with a fingerprint has https:// URLs only: http:// has no certificate to check."
            )
        if self.auth_method is not None and not all(_hides_tokens(url) for url in self.urls):
            raise ConnectionInfoError("A Globus token is sent to https:// URLs only, or to this machine's loopback.")

    def __repr__(self) -> str:
        """All but the header values."""
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich, which would otherwise show the fields of a Struct."""
        shown = msgspec.structs.asdict(self) | {"headers": dict.fromkeys(self.headers, _HIDDEN)}
        return list(shown.items())

    @property
    def uses_proxies(self) -> bool:
        """Whether proxy variables apply here. Never to loopback: a proxy would be shown all, and has one of its own."""
        return self.trust_env and not any(map(is_loopback, self.urls))

    def candidates(self) -> tuple[str, ...]:
        """The URLs to try from here: those of loopback only on the machine that they are meant for, or if all are."""
        if self.server is None or self.server.may_be_here:
            return self.urls
        return tuple(url for url in self.urls if not is_loopback(url)) or self.urls

    def headers_with(self, authorization: str) -> dict[str, str]:
        """The headers with another value of Authorization."""
        return self.without_token().headers | {"Authorization": authorization}

    def without_token(self) -> Self:
        """The same without its Authorization header: for those who have a token of their own."""
        headers = {name: value for name, value in self.headers.items() if name.lower() != "authorization"}
        return msgspec.structs.replace(self, headers=headers)

    def at_place_of(self, other: ConnectionInfo) -> Self:
        """The same exchange at another place: what opens it stays as it is."""
        return msgspec.structs.replace(self, urls=other.urls, fingerprint=other.fingerprint, server=other.server)

    def for_globus(self) -> Self:
        """What to give to others at an exchange with Globus Auth. It holds no secret: everybody has a token of theirs.

        Raises:
            ConnectionInfoError: The exchange has an http:// URL that is not of loopback.
        """
        return msgspec.structs.replace(self.without_token(), auth_method="globus", proof=False)

    def to_json(self) -> str:
        """Versioned JSON text, with the secrets: it belongs in a private file or an encrypted channel."""
        return msgspec.json.encode({"kind": KIND, "version": VERSION, **msgspec.structs.asdict(self)}).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The connection info that `to_json` wrote.

        Fields unknown here are ignored: what must not be ignored raises the version.

        Raises:
            ConnectionInfoError: Other text, another version, or a malformed field, in one line without the text.
        """
        try:
            _check_heading(msgspec.json.decode(text))
            return msgspec.json.decode(text, type=cls)
        # msgspec names the place and the type, never a value; UnicodeDecodeError would quote the text.
        except (msgspec.DecodeError, RecursionError) as error:
            raise ConnectionInfoError(f"This text is no connection info: {error}.") from None
        except UnicodeDecodeError:
            raise ConnectionInfoError("This text is no connection info: it is not UTF-8.") from None

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file form: readable by this user only, replaced in one step. A missing directory is made (0700).

        Raises:
            ConnectionInfoError: The directory is open to others or not ours, or the file can't be written.
        """
        try:
            write_private(path, self.to_json() + "\n")
        except OSError as error:
            raise ConnectionInfoError(f"Can't write the connection file {os.fspath(path)}: {error}.") from error

    @contextlib.contextmanager
    def kept_at(self, path: str | os.PathLike[str] | None) -> Iterator[None]:
        """Keep the file form for the ``with`` block; what another exchange has put in its place by then stays.

        Args:
            path: Where; None: write nothing.

        Raises:
            ConnectionInfoError: See `write`.
        """
        if path is None:
            yield
            return
        self.write(path)
        owner = os.getpid()
        try:
            yield
        finally:
            # A forked copy of this program leaves the file to the original. A file that can't be read is not ours.
            if os.getpid() == owner:
                with contextlib.suppress(OSError, ValueError):
                    if read_private(path) == self.to_json() + "\n":
                        Path(path).expanduser().unlink()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """The connection info in the file that `write` made.

        Raises:
            ConnectionInfoError: No such file; it or its directory is open to others, not ours, or a link; it holds
                something else; or its exchange ran on this machine and has ended.
        """
        try:
            text, written = read_private(path), Path(path).expanduser().stat().st_mtime
        except UnicodeDecodeError:
            raise ConnectionInfoError(f"{os.fspath(path)} is no connection file: it is not UTF-8.") from None
        except (OSError, ValueError) as error:
            raise ConnectionInfoError(f"Can't read the connection file {os.fspath(path)}: {error}.") from error
        try:
            info = cls.from_json(text)
        except ConnectionInfoError as error:
            raise ConnectionInfoError(f"{os.fspath(path)}: {error}") from None
        _check_runs(info, path, written=written)
        return info

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """The connection info in the file that ``ACADEMY_HPC_CONNECTION`` names.

        Args:
            environment: Variables to look in; default: those of this process.

        Raises:
            ConnectionInfoError: The variable is not set, or holds something else than the path of a private
                connection file.
        """
        path = (os.environ if environment is None else environment).get(CONNECTION_VARIABLE, "")
        if not path:
            raise ConnectionInfoError(f"{CONNECTION_VARIABLE} is not set. Set it to the path of a connection file.")
        if path.lstrip().startswith("{"):
            raise ConnectionInfoError(
                f"{CONNECTION_VARIABLE} holds the path of a connection file, never the JSON: "
                "others may read an environment. Take a new token if that one is real."
            )
        return cls.read(path)


def _check_runs(info: ConnectionInfo, path: str | os.PathLike[str], *, written: float) -> None:
    why = None if info.server is None else info.server.ended()
    if info.server is None or why is None:
        return
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(written))
    raise ConnectionInfoError(
        f"{os.fspath(path)} is the file of an exchange that has ended: it served on {info.server.host} since {since}, "
        f"and {why}. Start an exchange and use its connection file; this one can be removed."
    )


def _hides_tokens(url: str) -> bool:
    return url.startswith("https://") or is_loopback(url)


def is_loopback(url: str) -> bool:
    """Whether a URL leads to the machine that uses it, whichever that is."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_heading(content: Any) -> None:
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ConnectionInfoError(f'This text is no connection info: it has no "kind": "{KIND}".')
    version = content.get("version")
    if type(version) is not int:
        raise ConnectionInfoError("This text is no connection info: it has no version number.")
    if version != VERSION:
        raise ConnectionInfoError(
            f"This connection info has version {version}, and this academy_hpc reads version {VERSION}: "
            "install the same academy_hpc on both sides."
        )


def _checked_url(url: str) -> str:
    if not isinstance(url, str) or set(url) & set("@?#"):
        raise ConnectionInfoError("The URL of an exchange is http(s)://HOST:PORT/PATH; secrets go into a header.")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isprintable() or " " in url:
        raise ConnectionInfoError(f"{url!r} is no URL of an exchange: http://HOST:PORT or https://HOST:PORT.")
    return url


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ConnectionInfoError("Connection info has a malformed header name.")
        if not _HEADER_VALUE.fullmatch(value):
            raise ConnectionInfoError(f"The header {name} of connection info has an empty or malformed value.")
    return dict(headers)
