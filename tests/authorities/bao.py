"""A real OpenBao server: its PKI engine is what the provider `vault` talks to."""

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.ports import free_port

_STARTS_WITHIN_S = 60
_POLICY = """
path "pki/issuer/default/sign/+" { capabilities = ["update"] }
path "pki/revoke" { capabilities = ["update"] }
"""
_YEARS = "87600h"
ROLE = {
    "allow_any_name": True,
    "enforce_hostnames": False,
    "use_csr_common_name": False,
    "use_csr_sans": False,
    "key_type": "any",
    "organization": "Hostler",
    "max_ttl": _YEARS,
}
"""As the provider wants it."""


class Bao:
    """In memory, over TLS. The engine `pki` has an intermediate CA below the one of `top`, and the
    role `hostler` as the provider wants it for what has no unit.

    Args:
        program: of OpenBao; None: the one of this environment.

    Attributes:
        pid: while it runs.
        token_file: with a token that may sign and revoke, and nothing else.
        ca_file: what its own TLS certificate is signed by.
    """

    def __init__(self, directory: Path, program: Path | None = None) -> None:
        self._program = program or Path(sys.executable).with_name("bao")
        self.directory = directory
        self.token_file = directory / "token"
        self.ca_file = directory / "vault-ca.pem"
        self.url = f"https://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it is set up."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(self._program), "server"),
                    *("-dev-tls", f"-dev-tls-cert-dir={self.directory}"),
                    *("-dev-root-token-id=root", "-dev-no-store-token"),
                    f"-dev-listen-address={self.url.removeprefix('https://')}",
                ],
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
            )
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while not self._answers():
            assert self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, "it does not start"
            time.sleep(0.1)
        self._set_up()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def write(self, path: str, **body: object) -> dict[str, Any]:
        """With the root token."""
        response = self._client().post(f"/v1/{path}", json=body)
        assert response.is_success, response.text
        answer = response.json() if response.content else {}
        data: dict[str, Any] = answer.get("data") or answer.get("auth") or {}
        return data

    def read(self, path: str) -> dict[str, Any]:
        response = self._client().get(f"/v1/{path}")
        assert response.is_success, response.text
        data: dict[str, Any] = response.json()["data"]
        return data

    def serve_unit(self, unit: str, name: str = "hostler", **change: object) -> None:
        """With a role for certificates of that unit; `change`: what is wrong with it."""
        self.write(f"pki/roles/{name}-{unit}", **{**ROLE, "ou": unit, **change})

    def new_issuer(self) -> None:
        """Another intermediate CA issues from now on."""
        csr = self.write("pki/issuers/generate/intermediate/internal", common_name="Issuing CA")
        signed = self.write(
            "top/root/sign-intermediate", csr=csr["csr"], common_name="Issuing CA", ttl=_YEARS
        )
        chain = f"{signed['certificate']}\n{signed['issuing_ca']}"
        imported = self.write("pki/issuers/import/bundle", pem_bundle=chain)
        issuer = next(
            name
            for name, key in imported["mapping"].items()
            if key and name in imported["imported_issuers"]
        )
        self.write("pki/config/issuers", default=issuer)

    def _set_up(self) -> None:
        for mount in ("top", "pki"):
            self.write(f"sys/mounts/{mount}", type="pki", config={"max_lease_ttl": _YEARS})
        self.write("top/root/generate/internal", common_name="Top CA", ttl=_YEARS)
        self.new_issuer()
        self.write("pki/roles/hostler", **ROLE)
        self.write("sys/policies/acl/hostler", policy=_POLICY)
        token = self.write("auth/token/create", policies=["hostler"])
        self.token_file.write_text(f"{token['client_token']}\n")

    def _answers(self) -> bool:
        try:
            return self.ca_file.exists() and self._client().get("/v1/sys/health").is_success
        except httpx.TransportError:
            return False

    def _client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            verify=ssl.create_default_context(cafile=self.ca_file),
            headers={"X-Vault-Token": "root"},
            trust_env=False,
        )


def octets(serial: str) -> str:
    """As the API names a certificate: two digits each, with colons."""
    digits = serial.zfill(len(serial) + len(serial) % 2)
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


@contextmanager
def bao(directory: Path, program: Path | None = None) -> Iterator[Bao]:
    server = Bao(directory, program)
    server.start()
    try:
        yield server
    finally:
        server.stop()
