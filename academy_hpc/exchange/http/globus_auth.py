"""Callers known by Globus Auth: tokens are introspected, and what was found is remembered for a while.

Each check asks a service on the internet three times: whose token it is, for a token with which to look at that
person's groups, and for the groups. All three are asked for at once and remembered together, because what a caller may
do is decided by the registry, which does no I/O and must have the groups in hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from academy_hpc.directory import Caller
from academy_hpc.errors import ExchangeUnavailableError, ForbiddenError
from academy_hpc.exchange.http.auth import bearer_token
from academy_hpc.exchange.http.globus_settings import GlobusSettings
from academy_hpc.exchange.http.threads import in_daemon_thread

if TYPE_CHECKING:
    import globus_sdk

__all__ = ["GlobusAuthenticator"]

logger = logging.getLogger(__name__)

GROUPS_SERVER = "groups.api.globus.org"
GROUPS_SCOPE = f"urn:globus:auth:scope:{GROUPS_SERVER}:view_my_groups_and_memberships"

# How long a token that was revoked, or a membership that has ended, may go on working. Shorter would be safer and would
# have a thousand clients ask Globus more than ten times a second.
KNOWN_S = 300.0
# A refused token is hardly ever accepted later; this only keeps a client that repeats itself from reaching Globus.
REFUSED_S = 10.0
# While Globus does not answer, what was known goes on being good, and Globus is asked again after this time.
RETRY_S = 15.0
KNOWN_TOKENS = 10_000
# In a memory of their own: whoever makes tokens up must not push out those that are good.
REFUSED_TOKENS = 10_000

THREADS = 8
# Tokens that may wait to be checked. More than that is an attack, or a start of thousands, whose clients come again.
MAX_CHECKS = 256
HTTP_TIMEOUT_S = 5.0
HTTP_RETRIES = 1


class _Known(msgspec.Struct, frozen=True):
    """What Globus said of a token. All times by `time.monotonic`."""

    caller: Caller
    ends_s: float  # the token's life


class GlobusAuthenticator:
    """Tells callers by their Globus Auth token. `Caller.user` is the id of the identity, which nobody else ever gets.

    Args:
        settings: The exchange as Globus Auth knows it.
    """

    def __init__(self, settings: GlobusSettings) -> None:
        self._settings = settings
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._refused: OrderedDict[bytes, float] = OrderedDict()
        self._warned_s = float("-inf")
        self._checks: dict[bytes, asyncio.Task[Caller]] = {}
        # globus_sdk blocks, and its clients are not for several threads: each check takes one that is idle.
        self._threads = asyncio.Semaphore(THREADS)
        self._idle: list[globus_sdk.ConfidentialAppAuthClient] = []

    async def authenticate(self, authorization: str | None) -> Caller:
        """The identity that the token was issued to, and its groups. See `Authenticator`.

        Raises:
            UnauthorizedError: No token.
            ForbiddenError: It is not active, or was issued for another service.
            ExchangeUnavailableError: Globus does not answer, and the token was not seen before.
        """
        token = bearer_token(authorization)
        key = hashlib.sha256(token.encode(errors="surrogateescape")).digest()
        now = time.monotonic()
        if self._refused.get(key, now) > now:
            raise _refusal()
        known = self._known.get(key)
        if known is not None and known.caller.expires_s is not None and known.caller.expires_s > now:
            self._known.move_to_end(key)
            return known.caller
        # Shielded: others may wait for the same answer.
        return await asyncio.shield(self._checks.get(key) or self._start_check(key, token))

    def _start_check(self, key: bytes, token: str) -> asyncio.Task[Caller]:
        if len(self._checks) >= MAX_CHECKS:
            raise ExchangeUnavailableError("Too many tokens wait to be checked. Try again in a few seconds.")
        check = asyncio.create_task(self._check(key, token), name="globus check")
        self._checks[key] = check
        check.add_done_callback(lambda _: self._checks.pop(key, None))
        # Everybody who waited may have gone: that its error is never looked at is no news.
        check.add_done_callback(lambda done: done.cancelled() or done.exception())
        return check

    async def _check(self, key: bytes, token: str) -> Caller:
        try:
            async with self._threads:
                found = await in_daemon_thread(self._ask, token)
        except ExchangeUnavailableError as error:
            found = self._while_unavailable(key, error)
        if found is None:
            self._known.pop(key, None)
            _remember(self._refused, key, time.monotonic() + REFUSED_S, REFUSED_TOKENS)
            raise _refusal()
        _remember(self._known, key, found, KNOWN_TOKENS)
        return found.caller

    def _while_unavailable(self, key: bytes, error: ExchangeUnavailableError) -> _Known:
        """What was known, for a little longer, as long as the token has not expired."""
        known, now = self._known.get(key), time.monotonic()
        if known is None or known.ends_s <= now:
            raise error
        if now > self._warned_s + RETRY_S:  # not for every token
            self._warned_s = now
            logger.warning("%s: what is known of callers stays good", error)
        expires_s = min(known.ends_s, now + RETRY_S)
        return _Known(Caller(known.caller.user, known.caller.groups, expires_s=expires_s), known.ends_s)

    # In another thread

    def _ask(self, token: str) -> _Known | None:
        """What Globus says of the token; None: it opens nothing here. Raises ExchangeUnavailableError."""
        try:
            client = self._idle.pop()
        except IndexError:
            client = _new_client(self._settings)
        try:
            return self._ask_with(client, token)
        finally:
            self._idle.append(client)

    def _ask_with(self, client: globus_sdk.ConfidentialAppAuthClient, token: str) -> _Known | None:
        with _asking("Globus Auth"):
            answer = client.oauth2_token_introspect(token)
            if not answer["active"] or not self._is_for_us(answer["aud"]):
                return None
            user, exp = str(answer["sub"]), float(answer["exp"])
        with _asking("Globus Groups"):
            groups = _groups(client, token)
        now = time.monotonic()
        # A clock of ours that is wrong must not make every request another check.
        ends_s = now + max(1.0, exp - time.time())
        return _Known(Caller(user, groups, expires_s=min(ends_s, now + KNOWN_S)), ends_s)

    def _is_for_us(self, audience: str | list[str]) -> bool:
        return self._settings.client_id in ([audience] if isinstance(audience, str) else audience)


def _groups(client: globus_sdk.ConfidentialAppAuthClient, token: str) -> frozenset[str]:
    """The groups of which the token's identity is an active member; none where it does not let us look."""
    import globus_sdk

    try:
        granted = client.oauth2_get_dependent_tokens(token, scope=GROUPS_SCOPE).by_resource_server
        authorizer = globus_sdk.AccessTokenAuthorizer(granted[GROUPS_SERVER]["access_token"])
        groups = globus_sdk.GroupsClient(authorizer=authorizer, transport=client.transport, retry_config=_retries())
        return frozenset(str(group["id"]) for group in groups.get_my_groups() if _is_active(group))
    except globus_sdk.GlobusAPIError as error:
        if _is_outage(error):
            raise
        logger.info("the groups of a caller are not known: Globus answered %d", error.http_status)
        return frozenset()


def _new_client(settings: GlobusSettings) -> globus_sdk.ConfidentialAppAuthClient:
    import globus_sdk
    from globus_sdk.transport import RequestsTransport

    return globus_sdk.ConfidentialAppAuthClient(
        settings.client_id,
        settings.client_secret,
        app_name="academy_hpc exchange",
        transport=RequestsTransport(http_timeout=HTTP_TIMEOUT_S),
        retry_config=_retries(),
    )


@contextlib.contextmanager
def _asking(service: str) -> Iterator[None]:
    """A "no" that is only an outage would end agents; this error makes their clients come again."""
    import globus_sdk

    try:
        yield
    except globus_sdk.GlobusAPIError as error:
        what = f"answered {error.http_status}"
    except globus_sdk.GlobusError as error:
        what = type(error).__name__
    except (LookupError, TypeError, ValueError):  # its text could show a token
        what = "gave an answer that can't be read"
    else:
        return
    raise ExchangeUnavailableError(f"{service} can't be asked about a token ({what}). Try again later.")


def _is_outage(error: globus_sdk.GlobusAPIError) -> bool:
    return error.http_status >= 500 or error.http_status == 429


def _retries() -> Any:
    from globus_sdk.transport import RetryConfig

    return RetryConfig(max_retries=HTTP_RETRIES, max_sleep=1)


def _is_active(group: dict[str, Any]) -> bool:
    return any(membership.get("status") == "active" for membership in group.get("my_memberships") or ())


def _remember(memory: OrderedDict[bytes, Any], key: bytes, value: Any, limit: int) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > limit:
        memory.popitem(last=False)


def _refusal() -> ForbiddenError:
    return ForbiddenError("Token expired or revoked.")
