"""The client's side of Globus Auth: a token for the exchange, got, kept and renewed by globus_sdk.

A person logs in once, on a terminal; the tokens go to a private file, so that later programs, also on the nodes, need
no login. A service account has its id and secret in the environment and keeps nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from academy_hpc.errors import ExchangeUnavailableError, LoginRequiredError
from academy_hpc.exchange.http.globus_settings import exchange_scope, resource_server
from academy_hpc.exchange.http.private_file import read_private, write_private
from academy_hpc.exchange.http.threads import in_daemon_thread

if TYPE_CHECKING:
    import globus_sdk

__all__ = ["GlobusCredential"]

# Those of academy-py (docs/protocol.md, section 11).
CLIENT_ID_VARIABLE = "ACADEMY_GLOBUS_CLIENT_ID"
CLIENT_SECRET_VARIABLE = "ACADEMY_GLOBUS_CLIENT_SECRET"  # noqa: S105 - the name of a variable
DEFAULT_CLIENT_ID = "1624cf3f-45ee-4f54-9de4-2d5d79191346"
"""The native application under which academy-py has people log in; public, so it has no secret."""

TOKEN_DIRECTORY = "~/.academy_hpc/globus"  # noqa: S105 - a place

APP_NAME = "academy_hpc"
# A token that ends within this time is renewed; globus_sdk does the same.
RENEW_S = 60
# So is one that the exchange refuses, though it should be good, such as a revoked one; then not for this time.
REFUSED_S = 60.0
HTTP_TIMEOUT_S = 15.0
HTTP_RETRIES = 2


class GlobusCredential:
    """A Globus Auth token for the exchange, renewed before it expires. Pickles without anything secret.

    Environment:
        ACADEMY_GLOBUS_CLIENT_ID, ACADEMY_GLOBUS_CLIENT_SECRET: Act as this client, without a login of a person. The id
            alone: the native application with which a person logs in.
        ACADEMY_EXCHANGE_CLIENT_ID: The exchange, as Globus Auth knows it; default: the public one of Academy.
    """

    def __init__(self) -> None:
        self._client_id = os.environ.get(CLIENT_ID_VARIABLE) or ""
        self._secret = os.environ.get(CLIENT_SECRET_VARIABLE) or ""
        self._server = resource_server()
        # globus_sdk's applications are not for several threads at once.
        self._lock = threading.Lock()
        self._app: globus_sdk.GlobusApp | None = None
        self._kept: tuple[str, float] | None = None  # the last value, and until when (time.time) it is good
        self._refused_s = float("-inf")  # when one was last renewed because it was refused (time.monotonic)

    def __eq__(self, other: object) -> bool:
        """For the same client and exchange."""
        return isinstance(other, GlobusCredential) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process has an environment and token file of its own."""
        return type(self), ()

    @property
    def _key(self) -> tuple[str, str, bool]:
        return self._client_id, self._server, bool(self._secret)

    async def authorization(self, *, refused: str | None = None) -> str:
        """See `Credential`. Asks a person to log in if that is needed and there is a terminal.

        Raises:
            LoginRequiredError: A login is needed, and there is no terminal; or Globus Auth refuses the client.
            ExchangeUnavailableError: Globus Auth does not answer.
        """
        if self._kept is not None and self._kept[0] != refused and time.time() < self._kept[1]:
            return self._kept[0]
        return await in_daemon_thread(self.blocking_authorization, refused)

    def blocking_authorization(self, refused: str | None = None) -> str:
        """As `authorization`, for programs without an event loop."""
        import globus_sdk

        with self._lock:
            if refused is not None and not self._may_renew(refused):
                return self._kept[0] if self._kept is not None else refused
            try:
                if self._app is None:
                    self._app = self._application()
                return self._header(self._app, renew=refused is not None)
            except globus_sdk.GlobusAPIError as error:
                if error.http_status >= 500 or error.http_status == 429:
                    raise _unavailable(f"answered {error.http_status}") from None
                raise LoginRequiredError(f"Globus Auth refused the login ({_told(error)}). {self._advice()}") from None
            except globus_sdk.NetworkError as error:
                raise _unavailable(str(error)) from None
            except globus_sdk.GlobusError as error:
                raise LoginRequiredError(f"The login at Globus failed: {error} {self._advice()}") from None
            except LookupError:  # its repr would show the answer, and tokens in it
                raise _unavailable("gave an answer that can't be read") from None
            except (OSError, ValueError) as error:
                raise LoginRequiredError(f"The Globus tokens can't be kept or read: {error}.") from None

    def _may_renew(self, refused: str) -> bool:
        """Whether another token would help: nobody else has renewed it, nor has that been tried just now."""
        if self._kept is not None and self._kept[0] != refused:
            return False
        now = time.monotonic()
        if now < self._refused_s + REFUSED_S:
            return False
        self._refused_s = now
        return True

    def _header(self, app: globus_sdk.GlobusApp, *, renew: bool) -> str:
        import globus_sdk

        try:
            authorizer: Any = app.get_authorizer(self._server)
            if renew:
                authorizer.handle_missing_authorization()  # as globus_sdk does when a service refuses one
            header: str = authorizer.get_authorization_header()
        except globus_sdk.AuthAPIError as error:
            if self._secret or error.http_status not in (400, 401, 403):
                raise
            self._log_in(app)  # what was kept can't be renewed any more
            authorizer = app.get_authorizer(self._server)
            header = authorizer.get_authorization_header()
        self._kept = header, authorizer.expires_at - RENEW_S
        return header

    def _application(self) -> globus_sdk.GlobusApp:
        import globus_sdk
        from globus_sdk.transport import RequestsTransport, RetryConfig

        options: dict[str, Any] = {
            "app_name": APP_NAME,
            "transport": RequestsTransport(http_timeout=HTTP_TIMEOUT_S),
            "retry_config": RetryConfig(max_retries=HTTP_RETRIES),
        }
        scopes = {self._server: exchange_scope(self._server)}
        if self._secret:
            if not self._client_id:
                raise LoginRequiredError(f"{CLIENT_SECRET_VARIABLE} is set and {CLIENT_ID_VARIABLE} is not. Set both.")
            client = globus_sdk.ConfidentialAppAuthClient(self._client_id, self._secret, **options)
            # What can be had again at any time is not kept.
            config = globus_sdk.GlobusAppConfig(token_storage="memory")  # noqa: S106 - a kind of storage
            return globus_sdk.ClientApp(APP_NAME, login_client=client, scope_requirements=scopes, config=config)
        client_id = self._client_id or DEFAULT_CLIENT_ID
        config = globus_sdk.GlobusAppConfig(
            token_storage=_token_storage(Path(TOKEN_DIRECTORY).expanduser() / f"{client_id}.json"),
            request_refresh_tokens=True,
            token_validation_error_handler=lambda app, _: self._log_in(app),
        )
        native = globus_sdk.NativeAppAuthClient(client_id, **options)
        return globus_sdk.UserApp(APP_NAME, login_client=native, scope_requirements=scopes, config=config)

    def _log_in(self, app: globus_sdk.GlobusApp) -> None:
        """Have a person log in. Raises LoginRequiredError where there is nobody."""
        if sys.stdin is None or not sys.stdin.isatty():
            raise LoginRequiredError(f"A login at Globus is needed, and there is no terminal here. {self._advice()}")
        app.login(force=True)

    def _advice(self) -> str:
        if self._secret:
            return f"Check {CLIENT_ID_VARIABLE} and {CLIENT_SECRET_VARIABLE}."
        return f"Run `academy-hpc login` once in a terminal, or set {CLIENT_ID_VARIABLE} and {CLIENT_SECRET_VARIABLE}."


def _told(error: globus_sdk.GlobusAPIError) -> str:
    """Why, in one line; the answer itself may be long."""
    return " ".join(f"{error.http_status} {error.message or error.code or error.http_reason}".split())[:200]


def _unavailable(what: str) -> ExchangeUnavailableError:
    return ExchangeUnavailableError(f"Globus Auth can't be asked for a token ({what}). Is the internet reachable?")


def _token_storage(path: Path) -> Any:
    """globus_sdk's own storages make directories that others can read, and do not look at what they find there."""
    from globus_sdk import ValidationError
    from globus_sdk.token_storage import TokenStorage, TokenStorageData

    class PrivateTokenStorage(TokenStorage):
        def store_token_data_by_resource_server(self, token_data_by_resource_server: Mapping[str, Any]) -> None:
            self._write(self.get_token_data_by_resource_server() | dict(token_data_by_resource_server))

        def get_token_data_by_resource_server(self) -> dict[str, Any]:
            try:
                kept = msgspec.json.decode(read_private(path), type=dict[str, dict[str, Any]])
                return {name: TokenStorageData.from_dict(fields) for name, fields in kept.items()}
            except FileNotFoundError:
                return {}
            except (msgspec.MsgspecError, UnicodeError, ValidationError, TypeError):
                raise ValueError(f"{path} is no token file; remove it") from None

        def remove_token_data(self, resource_server: str) -> bool:
            kept = self.get_token_data_by_resource_server()
            removed = kept.pop(resource_server, None)
            self._write(kept)
            return removed is not None

        def _write(self, kept: dict[str, Any]) -> None:
            write_private(path, msgspec.json.encode({name: data.to_dict() for name, data in kept.items()}).decode())

    return PrivateTokenStorage()
