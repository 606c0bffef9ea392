"""OAUTHBEARER tokens from a command or a file, cached until most of their lifetime has passed.

librdkafka asks for a token through ``oauth_cb`` and again after 80% of its lifetime; aiokafka asks at each connection.
Errors contain neither the output of the command nor the content of the file.
"""

from __future__ import annotations

import base64
import binascii
import logging
import subprocess
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from stream_scorer.connections import TokenSource
from stream_scorer.errors import AccessDenied
from stream_scorer.structs import prepare

COMMAND_TIMEOUT_S = 20.0
# Lifetime of a token that is not a JWT and comes without one.
OPAQUE_LIFETIME_S = 300.0
# Share of the lifetime after which another token is fetched; librdkafka uses the same.
_RENEW_AT = 0.8
_log = logging.getLogger(__name__)


class Token(NamedTuple):
    """One token; `expires_at` in epoch seconds, `principal` is its subject or empty."""

    value: str
    expires_at: float
    principal: str


class _Document(msgspec.Struct):
    """The answer of a token endpoint (RFC 6749, section 5.1), as far as it is used."""

    access_token: str
    expires_in: float | None = None


class _Claims(msgspec.Struct):
    exp: float | None = None
    sub: str = ""


@lru_cache(maxsize=8)
def tokens_of(source: TokenSource) -> Tokens:
    """The tokens of `source`, which all clients of the process share."""
    return Tokens(source)


class Tokens:
    """The present token of a source. Thread-safe."""

    def __init__(self, source: TokenSource, now: Callable[[], float] = time.time) -> None:
        self._source = source
        self._now = now
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._renew_at = 0.0

    def get(self) -> Token:
        """A valid token; runs the command or reads the file if there is none or most of its lifetime has passed.

        Raises:
            AccessDenied: the command fails or the file cannot be read, or the token is empty or has expired.
        """
        with self._lock:
            now = self._now()
            if self._token is None or now >= self._renew_at:
                self._token = self._renewed(now)
                self._renew_at = now + _RENEW_AT * (self._token.expires_at - now)
            return self._token

    def callback(self, _config: str) -> tuple[str, float, str, dict[str, str]]:
        """``oauth_cb`` of confluent_kafka."""
        token = self.get()
        return token.value, token.expires_at, token.principal, {}

    def _renewed(self, now: float) -> Token:
        """Another token; the present one if it is still valid and no other is to be had."""
        try:
            return parse_token(self._fetch(), now)
        except AccessDenied as error:
            if self._token is None or now >= self._token.expires_at:
                raise
            _log.warning("the OAUTHBEARER token is not renewed yet: %s", error.message)
            return self._token

    def _fetch(self) -> str:
        if not self._source.command:
            try:
                return Path(self._source.file).expanduser().read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                raise AccessDenied(f"cannot read the token file {self._source.file}: {reason}") from None
        program = self._source.command[0]
        try:
            done = subprocess.run(
                self._source.command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except OSError as error:
            raise AccessDenied(f"cannot run the token command {program}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise AccessDenied(f"the token command {program} did not end within {COMMAND_TIMEOUT_S:.0f} s") from None
        if done.returncode != 0:
            raise AccessDenied(f"the token command {program} ended with exit code {done.returncode}")
        return done.stdout.decode("utf-8", "replace").strip()


def parse_token(text: str, now: float) -> Token:
    """The token in `text`: a JWT, a JSON document with ``access_token`` and ``expires_in``, or an opaque token.

    The expiry is that of the JWT, else ``expires_in``, else `OPAQUE_LIFETIME_S`.

    Raises:
        AccessDenied: the text is empty, or the token has expired.
    """
    lifetime_s = None
    if text.startswith("{"):
        try:
            document = msgspec.json.decode(text.encode(), type=_Document)
        except msgspec.DecodeError:
            raise AccessDenied("the OAUTHBEARER token is a JSON document without `access_token`") from None
        text, lifetime_s = document.access_token, document.expires_in
    if not text or any(character.isspace() for character in text):
        raise AccessDenied("the OAUTHBEARER token is empty or contains white space")
    claims = _claims(text)
    expires_at = claims.exp or now + (OPAQUE_LIFETIME_S if lifetime_s is None else lifetime_s)
    if expires_at <= now:
        raise AccessDenied("the OAUTHBEARER token has expired")
    return Token(text, expires_at, claims.sub)


def _claims(token: str) -> _Claims:
    """The claims of a JWT; none if it is not one. The broker verifies the signature."""
    parts = token.split(".")
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)) if len(parts) == 3 else b"{}"
        return msgspec.json.decode(payload, type=_Claims)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return _Claims()


prepare(globals())
