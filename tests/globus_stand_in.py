"""Globus Auth and Globus Groups on a port of loopback, as far as an exchange and its clients ask them.

globus_sdk finds it through its own environment variables. It knows confidential clients by id and secret, people by id,
groups by their members, and every token that it gave out. What it can't play: real logins, consents, policies.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import secrets
import threading
import time
import uuid
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa

__all__ = ["DEPENDENT", "EXCHANGE", "EXCHANGE_SECRET", "GlobusStandIn"]

EXCHANGE = str(uuid.uuid4())
EXCHANGE_SECRET = "the-secret-of-the-exchange-0123456789"  # noqa: S105 - opens nothing but this
DEPENDENT = "urn:globus:auth:grant_type:dependent_token"
GROUPS = "groups.api.globus.org"


class _Token(msgspec.Struct):
    identity: str
    client: str
    scope: str
    expires: int  # whole seconds, as `exp` is
    kind: str = "access"

    @property
    def server(self) -> str:
        if self.scope == "openid":
            return "auth.globus.org"
        return GROUPS if GROUPS in self.scope else urlsplit(self.scope).path.split("/")[2]


class GlobusStandIn:
    """Both services. Enter it to serve."""

    def __init__(self, *, life_s: float = 172_800) -> None:
        self.life_s = life_s
        self.clients = {EXCHANGE: EXCHANGE_SECRET}
        self.members: dict[str, dict[str, str]] = {}  # group -> identity -> status
        self.tokens: dict[str, _Token] = {}
        self.codes: dict[str, dict[str, str]] = {}  # authorization code -> what was asked for
        self.asked: Counter[str] = Counter()  # what was done, and what was asked for
        self.failing: set[str] = set()  # "auth", "groups": answer 503
        self.without_consent = False  # dependent grants are refused
        self.delay_s = 0.0
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which globus_sdk finds the two services, and a client its exchange."""
        return {
            "GLOBUS_SDK_SERVICE_URL_AUTH": self.url,
            "GLOBUS_SDK_SERVICE_URL_GROUPS": self.url,
            "ACADEMY_EXCHANGE_CLIENT_ID": EXCHANGE,
            "ACADEMY_EXCHANGE_SECRET": EXCHANGE_SECRET,
        }

    def new_client(self, *groups: str) -> dict[str, str]:
        """Register a confidential client that is in `groups`; the variables with which a program acts as it."""
        name, secret = str(uuid.uuid4()), secrets.token_urlsafe(24)
        self.clients[name] = secret
        self.join(name, *groups)
        return {"ACADEMY_GLOBUS_CLIENT_ID": name, "ACADEMY_GLOBUS_CLIENT_SECRET": secret}

    def join(self, identity: str, *groups: str, status: str = "active") -> None:
        for group in groups:
            self.members.setdefault(group, {})[identity] = status

    def token(self, identity: str | None = None, *, server: str = EXCHANGE, life_s: float | None = None) -> str:
        """An access token of `identity` (default: somebody new) for the service `server`."""
        scope = f"https://auth.globus.org/scopes/{server}/academy_exchange"
        issued = self._issue(identity or str(uuid.uuid4()), "a-client", scope, life_s=life_s)
        return str(issued["access_token"])

    def approve(self, authorize_url: str, identity: str) -> str:
        """What a person does in a browser: log in at `authorize_url` as `identity`, and read the code."""
        fields = {name: values[0] for name, values in parse_qs(urlsplit(authorize_url).query).items()}
        code = secrets.token_urlsafe(12)
        self.codes[code] = fields | {"identity": identity}
        return code

    def revoke_all(self) -> None:
        self.tokens.clear()

    # What it answers

    def answer(self, method: str, path: str, fields: dict[str, str], authorization: str) -> tuple[int, Any]:
        time.sleep(self.delay_s)
        self.asked[path] += 1
        if ("groups" if path.startswith("/v2/groups") else "auth") in self.failing:
            return 503, {"error": "down"}
        routes: dict[tuple[str, str], Any] = {
            ("POST", "/v2/oauth2/token"): self._token,
            ("POST", "/v2/oauth2/token/introspect"): self._introspect,
            ("POST", "/v2/oauth2/token/revoke"): self._revoke,
            ("GET", "/v2/oauth2/userinfo"): self._userinfo,
            ("GET", "/.well-known/openid-configuration"): self._configuration,
            ("GET", "/jwk.json"): self._keys,
            ("GET", "/v2/groups/my_groups"): self._my_groups,
        }
        route = routes.get((method, path))
        return (404, {"error": "no such route"}) if route is None else route(fields, authorization)

    def _client(self, authorization: str) -> str | None:
        kind, _, text = authorization.partition(" ")
        if kind != "Basic":
            return None
        name, _, secret = base64.b64decode(text).decode().partition(":")
        return name if self.clients.get(name) == secret else None

    def _bearer(self, authorization: str, server: str) -> _Token | None:
        return self._live(authorization.removeprefix("Bearer "), server)

    def _live(self, text: str, server: str | None = None) -> _Token | None:
        token = self.tokens.get(text)
        if token is None or token.expires <= time.time() or (server is not None and token.server != server):
            return None
        return token

    def _token(self, fields: dict[str, str], authorization: str) -> tuple[int, Any]:
        grant = fields["grant_type"]
        self.asked[grant] += 1
        client = self._client(authorization)
        if grant == "refresh_token":
            token = self.tokens.get(fields["refresh_token"])
            if token is None or token.kind != "refresh" or (client or fields.get("client_id")) != token.client:
                return 400, {"error": "invalid_grant"}
            issued = self._issue(token.identity, token.client, token.scope, refresh=fields["refresh_token"])
            return 200, issued | {"other_tokens": []}
        if grant == "authorization_code":
            return self._by_code(fields)
        if client is None:
            return 401, {"error": "invalid_client"}
        if grant == "client_credentials":
            return 200, self._all(client, client, fields["scope"].split())
        return self._dependent(client, fields)

    def _by_code(self, fields: dict[str, str]) -> tuple[int, Any]:
        asked = self.codes.pop(fields["code"], None)
        digest = base64.urlsafe_b64encode(hashlib.sha256(fields["code_verifier"].encode()).digest())
        if asked is None or asked["code_challenge"] != digest.rstrip(b"=").decode():
            return 400, {"error": "invalid_grant"}
        offline = asked.get("access_type") == "offline"
        answer = self._all(asked["identity"], asked["client_id"], asked["scope"].split(), offline=offline)
        claims = {"sub": asked["identity"], "aud": asked["client_id"], "iat": time.time(), "exp": time.time() + 600}
        return 200, answer | {"id_token": jwt.encode(claims, self.key, "RS512"), "state": asked.get("state")}

    def _dependent(self, client: str, fields: dict[str, str]) -> tuple[int, Any]:
        token = self._live(fields["token"], client)
        if token is None or self.without_consent:
            return 403, {"error": "ConsentRequired"}
        return 200, [self._issue(token.identity, client, scope) for scope in fields["scope"].split()]

    def _all(self, identity: str, client: str, scopes: list[str], *, offline: bool = False) -> dict[str, Any]:
        first, *others = [self._issue(identity, client, scope, offline=offline) for scope in scopes]
        return first | {"other_tokens": others}

    def _issue(
        self,
        identity: str,
        client: str,
        scope: str,
        *,
        life_s: float | None = None,
        offline: bool = False,
        refresh: str | None = None,
    ) -> dict[str, Any]:
        life_s = self.life_s if life_s is None else life_s
        text = f"Ag{secrets.token_urlsafe(48)}"
        token = self.tokens[text] = _Token(identity, client, scope, math.ceil(time.time() + life_s))
        if offline:
            refresh = f"Ag{secrets.token_urlsafe(48)}"
            self.tokens[refresh] = _Token(identity, client, scope, math.ceil(time.time()) + 10_000_000, "refresh")
        issued = {"access_token": text, "scope": scope, "expires_in": life_s, "resource_server": token.server}
        return issued | {"token_type": "Bearer"} | ({} if refresh is None else {"refresh_token": refresh})

    def _introspect(self, fields: dict[str, str], authorization: str) -> tuple[int, Any]:
        client = self._client(authorization)
        if client is None:
            return 401, {"error": "invalid_client"}
        token = self._live(fields["token"])
        if token is None:
            return 200, {"active": False}
        return 200, {
            "active": True,
            "sub": token.identity,
            "username": f"{token.identity[:8]}@example.org",
            "aud": [token.server, token.client],
            "scope": token.scope,
            "client_id": token.client,
            "exp": token.expires,
            "token_type": "Bearer",
        }

    def _revoke(self, fields: dict[str, str], authorization: str) -> tuple[int, Any]:
        return 200, {"active": self.tokens.pop(fields["token"], None) is not None}

    def _userinfo(self, fields: dict[str, str], authorization: str) -> tuple[int, Any]:
        token = self._bearer(authorization, "auth.globus.org")
        return (401, {"error": "no"}) if token is None else (200, {"sub": token.identity})

    def _configuration(self, fields: dict[str, str], authorization: str) -> tuple[int, Any]:
        return 200, {"jwks_uri": f"{self.url}jwk.json", "id_token_signing_alg_values_supported": ["RS512"]}

    def _keys(self, fields: dict[str, str], authorization: str) -> tuple[int, Any]:
        return 200, {"keys": [json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))]}

    def _my_groups(self, fields: dict[str, str], authorization: str) -> tuple[int, Any]:
        token = self._bearer(authorization, GROUPS)
        if token is None:
            return 401, {"code": "AUTHENTICATION_ERROR"}
        return 200, [
            {"id": group, "my_memberships": [{"identity_id": token.identity, "status": members[token.identity]}]}
            for group, members in self.members.items()
            if token.identity in members
        ]


def _handler(services: GlobusStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one piece: in two, the second would wait for the other side

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            fields = {name: values[0] for name, values in parse_qs(body).items()}
            path = urlsplit(self.path).path
            status, content = services.answer(self.command, path, fields, self.headers.get("Authorization") or "")
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve  # noqa: N815 - names of http.server

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler
