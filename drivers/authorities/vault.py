"""An external certificate authority: OpenBao or HashiCorp Vault, by the API of its PKI engine.

A role says the organizational unit of all that is signed by it (`ou`), so each unit has one of its
own: ROLE-UNIT, where ROLE is `ca.plugin.vault.role`; what has no unit is signed by ROLE. They must
take names from the request's parameters and not from the CSR: `use_csr_common_name=false
use_csr_sans=false`. The token needs `update` on `issuer/default/sign/ROLE*` and `revoke` of the
mount; chain and lists are public.
"""

import ssl
from typing import Any

import httpx

from contracts.certificates import RevocationReason
from contracts.errors import Conflict, Failed, Unavailable
from contracts.settings import CA_VAULT_MOUNT, CA_VAULT_ROLE
from drivers.authorities.protocols import CertificateOrder, ProviderContext
from drivers.authorities.x509 import split_chain

_TIMEOUT_S = 20.0
_ISSUER = "issuer/default"


class VaultAuthority:
    """CertificateAuthority. It keeps nothing: the token is read anew each time, since an agent
    replaces it."""

    def __init__(self, context: ProviderContext) -> None:
        self._settings = context.settings
        self._access = context.access

    async def chain(self) -> tuple[str, ...]:
        """The chain of the mount's default issuer."""
        return await self._chain(_ISSUER)

    async def issue(self, order: CertificateOrder) -> str:
        """Signed by the role. Names are parameters; those of the request do not count."""
        role, wants = str(self._settings[CA_VAULT_ROLE]), ""
        if order.names.unit is not None:
            role, wants = f"{role}-{order.names.unit}", f" (it says ou={order.names.unit})"
        answer = await self._ask(
            "POST",
            f"{_ISSUER}/sign/{role}",
            {
                "csr": order.csr,
                "common_name": order.names.common_name,
                "alt_names": ",".join(order.names.dns_names),
                "ip_sans": ",".join(order.names.ip_addresses),
                "exclude_cn_from_sans": True,
                "ttl": f"{int(order.validity.total_seconds())}s",
                "format": "pem",
            },
            remedy=f"Check the role {role}{wants} and the policy of the token.",
        )
        pem = self._data(answer).get("certificate")
        if not isinstance(pem, str):
            raise self._odd()
        return f"{pem.strip()}\n"

    async def revoke(self, serial: str, reason: RevocationReason) -> None:
        """By its serial; the API knows no reasons."""
        digits = serial.zfill(len(serial) + len(serial) % 2)
        octets = ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
        await self._ask("POST", "revoke", {"serial_number": octets})

    async def crl(self, issuer: str) -> bytes:
        """What the server has; unless it is told otherwise, it makes a new one at each
        revocation."""
        return (await self._ask("GET", f"{await self._path(issuer)}/crl/der")).content

    async def _path(self, issuer: str) -> str:
        """Of that one of the mount's issuers; which one is the default changes."""
        (wanted,) = split_chain(issuer)
        listed = self._data(await self._ask("LIST", "issuers")).get("keys")
        for key in listed if isinstance(listed, list) else []:
            path = f"issuer/{key}"
            if split_chain((await self._chain(path))[0]) == (wanted,):
                return path
        raise Failed(
            f"The CA at {self._url()} has an issuer no more that has signed certificates.",
            remedy="Import its certificate and key there again: its revocations are listed by it.",
        )

    async def _chain(self, path: str) -> tuple[str, ...]:
        data = self._data(await self._ask("GET", f"{path}/json"))
        chain = data.get("ca_chain") or [data.get("certificate")]
        if not isinstance(chain, list) or not all(isinstance(pem, str) for pem in chain):
            raise self._odd()
        return tuple(chain)

    async def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, object] | None = None,
        *,
        remedy: str = "Check the policy of the token.",
    ) -> httpx.Response:
        """Raises Conflict if a setting is missing or wrong, Unavailable, Failed."""
        url = self._url()
        try:
            async with httpx.AsyncClient(
                verify=self._trust(url), timeout=_TIMEOUT_S, trust_env=False
            ) as client:
                response = await client.request(
                    method,
                    f"{url}/v1/{self._settings[CA_VAULT_MOUNT]}/{path}",
                    json=body,
                    headers={"X-Vault-Token": self._token()} if body is not None else {},
                )
        except httpx.TransportError as error:
            raise Unavailable(
                f"The CA at {url} does not answer ({error or type(error).__name__})."
            ) from error
        if response.is_success:
            return response
        said = f"The CA at {url} refuses {path}: {_errors(response)}."
        # Sealed, standby, too busy, or broken: all of that passes.
        if response.is_server_error or response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise Unavailable(said)
        raise Failed(said, remedy=remedy)

    def _url(self) -> str:
        if self._access.url is None:
            raise Conflict(
                "It is not said where the CA is.", remedy="Set HOSTLER_CA_URL for every worker."
            )
        return self._access.url.rstrip("/")

    def _token(self) -> str:
        path = self._access.token_file
        if path is None:
            raise Conflict(
                "It is not said where the token for the CA is.",
                remedy="Set HOSTLER_CA_TOKEN_FILE for every worker.",
            )
        try:
            token, problem = path.read_text(encoding="utf-8", errors="replace").strip(), ""
        except OSError as error:
            token, problem = "", f"{error.strerror}"
        # A header takes nothing else, and its error would show the token.
        if not (token.isascii() and token.isprintable() and token and " " not in token):
            raise Failed(
                f"The token for the CA can't be read from {path} on the worker's machine: "
                f"{problem or 'what is there is no token'}."
            )
        return token

    def _trust(self, url: str) -> ssl.SSLContext | bool:
        path = self._access.trust_file
        if path is None or url.startswith("http://"):
            return True
        try:
            return ssl.create_default_context(cafile=path)
        except OSError as error:
            raise Failed(f"{path} can't be used to trust the CA's HTTPS: {error}.") from error

    def _data(self, response: httpx.Response) -> dict[str, Any]:
        try:
            data = response.json()["data"]
        except (ValueError, KeyError, TypeError):
            raise self._odd() from None
        if not isinstance(data, dict):
            raise self._odd()
        return data

    def _odd(self) -> Failed:
        return Failed(f"What is at {self._url()} does not answer as a PKI engine does.")


def _errors(response: httpx.Response) -> str:
    """What it says of the refusal; never what it was sent."""
    try:
        said = response.json()["errors"]
    except (ValueError, KeyError, TypeError):
        said = []
    words = "; ".join(str(one) for one in said) if isinstance(said, list) else ""
    return " ".join(words.split()).rstrip(".") or f"{response.status_code} {response.reason_phrase}"
