"""A real OpenBao server for tests: its dev mode, in memory, with TLS of its own making."""

import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.ports import free_port

_PROGRAM = Path(sys.executable).with_name("bao")
_ROOT_TOKEN = "root-token-of-a-test"


class OpenBao:
    """A server with a transit engine and the key `hostler` in it.

    Attributes:
        url: of the server.
        ca_file: the CA of its certificate.
        token_file: a token that may encrypt and decrypt with that key, and nothing else.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ca_file = directory / "vault-ca.pem"
        self.token_file = directory / "token"
        self._port = free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it is ready; what was in it before is gone."""
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(str(_PROGRAM), "server", "-dev-tls", "-dev-no-store-token"),
                    f"-dev-listen-address=127.0.0.1:{self._port}",
                    f"-dev-root-token-id={_ROOT_TOKEN}",
                    f"-dev-tls-cert-dir={self._directory}",
                ],
                env={"PATH": os.environ["PATH"], "HOME": str(self._directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        while not self._answers():
            assert self._process.poll() is None, (self._directory / "log").read_text()
            time.sleep(0.1)
        self.ask("POST", "sys/mounts/transit", type="transit")
        self.ask("POST", "transit/keys/hostler")
        self.ask("POST", "transit/keys/another")
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(self.token_that_may("encrypt", "decrypt") + "\n")

    def token_that_may(self, *actions: str) -> str:
        """Do these with the key `hostler`, and nothing else."""
        rules = "\n".join(
            f'path "transit/{action}/hostler" {{ capabilities = ["update"] }}' for action in actions
        )
        name = "-".join(("hostler", *actions))
        self.ask("PUT", f"sys/policies/acl/{name}", policy=rules)
        created = self.ask("POST", "auth/token/create", policies=[name])
        token: str = created["auth"]["client_token"]
        return token

    def stop(self) -> None:
        """As a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, method: str, path: str, **body: object) -> Any:
        """A request of its operator."""
        with self._client() as http:
            response = http.request(method, f"/v1/{path}", json=body or None)
        assert response.is_success, response.text
        return response.json() if response.content else None

    def _answers(self) -> bool:
        if not self.ca_file.exists():
            return False
        try:
            with self._client() as http:
                return http.get("/v1/sys/health").is_success
        except (httpx.TransportError, ssl.SSLError):
            return False

    def _client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers={"X-Vault-Token": _ROOT_TOKEN},
            verify=ssl.create_default_context(cafile=self.ca_file),
            trust_env=False,
        )


@contextmanager
def openbao() -> Iterator[OpenBao]:
    """A server that runs; a block that stops it starts it again, or leaves it stopped."""
    with tempfile.TemporaryDirectory(prefix="hostler-openbao-") as directory:
        server = OpenBao(Path(directory))
        server.start()
        try:
            yield server
        finally:
            server.stop()
