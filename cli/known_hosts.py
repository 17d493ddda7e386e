"""Fingerprints from a file in the form of OpenSSH's known_hosts (sshd(8))."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

# As a host is asked for its key: the first of these that it has is the one that it shows.
_KINDS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
)
_SSH_PORT = 22
_HASHED = "|1|"


class KnownHosts:
    """The keys of a known_hosts file. Patterns with wildcards, revoked keys and certificate
    authorities are no host's own key: they are left out."""

    def __init__(self, text: str) -> None:
        self._lines = [
            (names.split(","), kind, key)
            for names, kind, key, *_ in (line.split() for line in _entries(text))
            if kind in _KINDS
        ]

    def fingerprint(self, names: Iterable[str], port: int) -> str | None:
        """Of the key that the host of one of these names shows, if the file has it."""
        wanted = [name if port == _SSH_PORT else f"[{name}]:{port}" for name in names]
        found = {
            kind: key
            for patterns, kind, key in reversed(self._lines)
            if any(_matches(pattern, name) for pattern in patterns for name in wanted)
        }
        for kind in _KINDS:
            if kind in found:
                return _fingerprint(found[kind])
        return None


def _entries(text: str) -> Iterable[str]:
    for line in text.splitlines():
        if len(line.split()) >= 3 and not line.lstrip().startswith(("#", "@")):
            yield line


def _matches(pattern: str, name: str) -> bool:
    if not pattern.startswith(_HASHED):
        return pattern == name
    try:
        salt, digest = (base64.b64decode(part) for part in pattern[len(_HASHED) :].split("|"))
    except (ValueError, binascii.Error):
        return False
    # SHA-1 is the format's own.
    return hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), digest)


def _fingerprint(key: str) -> str | None:
    try:
        digest = hashlib.sha256(base64.b64decode(key, validate=True)).digest()
    except (ValueError, binascii.Error):
        return None
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
