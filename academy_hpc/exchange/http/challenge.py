"""How a client makes an exchange prove that it knows a token before it shows the token. For plain http alone.

A client that is going to show a token asks without it, with the header ``Academy-Challenge: NAME NONCE``; the 401 that
it gets carries ``Academy-Proof``. NAME says which token: ``owner``, or the uid of an agent in hexadecimal.
"""

from __future__ import annotations

import hmac
import re
import secrets
import uuid
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from academy_hpc.exchange.http.tokens import agent_token, agent_uid, server_proof

__all__ = ["CHALLENGE_HEADER", "PROOF_HEADER", "UNPROVED", "Challenge", "answer_challenge"]

CHALLENGE_HEADER = "Academy-Challenge"
PROOF_HEADER = "Academy-Proof"
UNPROVED = "another program answers there; it does not know this exchange's token"

_OWNER = "owner"
_CHALLENGE = re.compile(rf"({_OWNER}|[0-9a-f]{{32}}) ([0-9a-f]{{32,128}})")


class Challenge(msgspec.Struct, frozen=True):
    """One question to one server. `repr` hides the proof that is expected."""

    text: str
    proof: str

    @classmethod
    def new(cls, token: str, url: str) -> Self:
        """What to ask the server at `url` before it is shown `token`."""
        uid = agent_uid(token)
        nonce = secrets.token_hex(32)
        port = urlsplit(url).port or 80
        return cls(f"{_OWNER if uid is None else uid.hex} {nonce}", server_proof(token, nonce, port))

    def is_met_by(self, answer: str | None) -> bool:
        """Whether this is the proof; it takes the same time for every wrong one."""
        return hmac.compare_digest((answer or "").encode(errors="surrogateescape"), self.proof.encode())

    def __repr__(self) -> str:
        """The question."""
        return f"{type(self).__name__}({self.text!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich, which would otherwise show all fields of a Struct."""
        return [("text", self.text)]


def answer_challenge(challenge: str, *, secret: str, port: int) -> str | None:
    """The proof of an exchange with the token `secret` that listens on `port`; None for what is no challenge."""
    match = _CHALLENGE.fullmatch(challenge)
    if match is None:
        return None
    name, nonce = match.groups()
    token = secret if name == _OWNER else agent_token(secret, uuid.UUID(hex=name))
    return server_proof(token, nonce, port)
