"""The transit secrets engine of OpenBao and HashiCorp Vault, as far as wrapping a key takes it.

HTTP API: POST /v1/MOUNT/encrypt/KEY and /v1/MOUNT/decrypt/KEY.
https://openbao.org/api-docs/secret/transit/
"""

import base64
import binascii
import ssl
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from contracts.errors import Failed, Unavailable
from drivers.private_files import read_private
from drivers.protocols import KeyService

# What it answers with begins so, whichever of the two products it is.
WRAPPED_PREFIX = "vault:"

_WITHIN_S = 10.0
# A ciphertext that the same key made for something else is not taken for a master key.
_PURPOSE = base64.b64encode(b"hostler master key").decode()
_MAX_WORDS = 300


class TransitKeyService(KeyService):
    """Wraps with a key that never leaves the service.

    Args:
        url: of the service, without a path.
        mount: where the engine is mounted.
        key: the engine's key, of type aes256-gcm96 (its default) or another one with associated
            data.
        token_file: read anew for each call: an agent may renew the token. Nobody else may read it.
        ca_file: CA certificates (PEM) of the service; None: those of the system.
    """

    def __init__(
        self, url: str, *, mount: str, key: str, token_file: Path, ca_file: Path | None
    ) -> None:
        self.origin = url
        self._path = f"{url.rstrip('/')}/v1/{mount.strip('/')}/{{}}/{key}"
        self._key = key
        self._token_file = token_file
        self._ca_file = ca_file

    async def wrap(self, secret: str) -> str:
        """Raises Unavailable, Failed."""
        plaintext = base64.b64encode(secret.encode()).decode()
        return await self._ask("encrypt", {"plaintext": plaintext}, "ciphertext")

    async def unwrap(self, wrapped: str) -> str:
        """Raises Unavailable, Failed."""
        answer = await self._ask("decrypt", {"ciphertext": wrapped}, "plaintext")
        try:
            return base64.b64decode(answer, validate=True).decode()
        except (binascii.Error, ValueError):
            # The error itself would show what was answered.
            raise self._not_understood() from None

    async def _ask(self, action: str, body: dict[str, str], wanted: str) -> str:
        token = self._token()
        try:
            # Not through a proxy of the environment, which would see the token.
            async with httpx.AsyncClient(
                verify=self._trusted(), timeout=_WITHIN_S, trust_env=False
            ) as http:
                response = await http.post(
                    self._path.format(action),
                    headers={"X-Vault-Token": token, "X-Vault-Request": "true"},
                    json={**body, "associated_data": _PURPOSE},
                )
        except httpx.TransportError as error:
            raise Unavailable(
                f"The key service at {self.origin} does not answer "
                f"({error or type(error).__name__}).",
                remedy="Bring it back; without it, no wrapped master key can be read.",
            ) from error
        if not response.is_success:
            raise self._refusal(response, action)
        try:
            answer = response.json()["data"][wanted]
        except (ValueError, KeyError, TypeError):
            raise self._not_understood() from None
        if not isinstance(answer, str):
            raise self._not_understood()
        return answer

    def _refusal(self, response: httpx.Response, action: str) -> Failed | Unavailable:
        words = f"{response.status_code}: {_words(response)}"
        if response.status_code == HTTPStatus.FORBIDDEN:
            return Failed(
                f"The key service at {self.origin} refuses the token in {self._token_file} "
                f"({words}).",
                remedy=f"It needs a policy that allows to {action} with the key {self._key!r}.",
            )
        if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return Unavailable(
                f"The key service at {self.origin} can't serve now ({words}).",
                remedy="Is it sealed? Unseal it.",
            )
        return Failed(
            f"The key service at {self.origin} can't {action} with the key {self._key!r} "
            f"({words}).",
            remedy="Check HOSTLER_KEY_SERVICE_MOUNT and HOSTLER_KEY_SERVICE_KEY; a wrapped master "
            "key takes the very key that wrapped it.",
        )

    def _token(self) -> str:
        try:
            token = read_private(self._token_file, "The key service's token in").strip()
        except OSError as error:
            raise Failed(
                f"The key service's token in {self._token_file} can't be read: {error.strerror}.",
                remedy="Set HOSTLER_KEY_SERVICE_TOKEN_FILE to a file with one.",
            ) from error
        if not (token.isascii() and token.isprintable() and token and " " not in token):
            raise Failed(f"What is in {self._token_file} is no token of a key service.")
        return token

    def _trusted(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ssl.SSLError) as error:
            raise Failed(f"{self._ca_file} has no CA certificates: {error}.") from error

    def _not_understood(self) -> Failed:
        return Failed(
            f"{self.origin} answered something that is not the transit engine's.",
            remedy="Check HOSTLER_KEY_SERVICE_URL.",
        )


def _words(response: httpx.Response) -> str:
    try:
        errors: Any = response.json()["errors"]
        text = "; ".join(str(error) for error in errors)
    except (ValueError, KeyError, TypeError):
        text = ""
    return " ".join((text or response.reason_phrase).split())[:_MAX_WORDS]
