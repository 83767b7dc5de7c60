"""The secrets of one exchange: all are derived from its token, and each opens only what it is for.

The token is the owner's. An agent's token names its mailbox and is derived for it, so the exchange keeps no list of
them: it opens that mailbox while the mailbox is open. A proof shows that somebody knows a token without showing it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import uuid

__all__ = ["agent_token", "agent_uid", "is_agent_token", "proof", "server_proof"]

# Different uses of one secret must never give the same bytes.
_AGENT, _START, _SERVER = "academy-hpc agent 1", "academy-hpc start 1", "academy-hpc server 1"
_PREFIX = "agent"


def agent_token(secret: str, uid: uuid.UUID) -> str:
    """The token for the mailbox `uid` of the exchange whose token is `secret`."""
    mac = base64.urlsafe_b64encode(_mac(secret, _AGENT, uid.hex)).rstrip(b"=").decode()
    return f"{_PREFIX}.{uid.hex}.{mac}"


def agent_uid(token: str) -> uuid.UUID | None:
    """The mailbox that `token` claims to be for, good or not; None where it is no agent's token."""
    words = token.split(".")
    if len(words) != 3 or words[0] != _PREFIX:
        return None
    try:
        return uuid.UUID(hex=words[1])
    except ValueError:
        return None


def is_agent_token(secret: str, token: str, uid: uuid.UUID) -> bool:
    """Whether `token` is that of the mailbox `uid`. Takes the same time for every wrong one."""
    return hmac.compare_digest(token.encode(errors="surrogateescape"), agent_token(secret, uid).encode())


def proof(token: str, nonce: str) -> str:
    """What an exchange process answers to the program that started it with `nonce`, in hexadecimal."""
    return _mac(token, _START, nonce).hex()


def server_proof(token: str, nonce: str, port: int) -> str:
    """What an exchange at `port` answers to a client that is going to show it `token`, in hexadecimal.

    The port is part of it: a stranger on another port can't have it made by the real exchange.
    """
    return _mac(token, _SERVER, f"{port} {nonce}").hex()


def _mac(secret: str, purpose: str, text: str) -> bytes:
    return hmac.new(secret.encode(), f"{purpose}\n{text}".encode(), hashlib.sha256).digest()
