"""What a start can set, by environment variables `HOSTLER_<NAME>`.

What operators change while Hostler runs is in `contracts/settings.py`.
"""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, FilePath, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from contracts.errors import InvalidInput
from contracts.operations import DEFAULT_TASK_QUEUE

PREFIX = "HOSTLER_"

# Read by the command line's client alone, which needs none of the settings below.
CLIENT_VARIABLES = frozenset(
    {
        "HOSTLER_TOKEN",
        "HOSTLER_API_URL",
        "HOSTLER_API_CA_FILE",
        "HOSTLER_API_CLIENT_CERT_FILE",
        "HOSTLER_API_CLIENT_KEY_FILE",
    }
)

_HIGHEST_PORT = 65535
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MAY_BE_SECRET = ("database_url", "master_keys", "key_service_url")
Port = Annotated[int, Field(ge=1, le=_HIGHEST_PORT)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class WrongSettings(InvalidInput):
    """A variable is unknown, or its value is not possible."""


class Settings(BaseSettings):
    """One field per variable; `HOSTLER_API_PORT` is `api_port`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    home: Path = Field(
        default=Path("~/.local/share/hostler"),
        validate_default=True,
        description="Directory of the embedded default's state, and of keys.",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="The inventory as an SQLAlchemy URL (sqlite:///... or postgresql://...). "
        "Default: inventory.db in the home.",
    )
    master_key_file: Path | None = Field(
        default=None,
        description="File with the keys that encrypt stored credentials, one a line. "
        "Default: master-key in the home.",
    )
    master_keys: SecretStr | None = Field(
        default=None,
        description="These keys, separated by blanks, in the place of the file.",
    )
    key_service_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/@?#]+/?$",
        description="OpenBao or Vault, whose transit engine wraps new master keys, and unwraps "
        "those that it has wrapped.",
    )
    key_service_mount: str = Field(
        default="transit", pattern=r"^[\w./-]+$", description="Where the engine is mounted there."
    )
    key_service_key: str = Field(
        default="hostler", pattern=r"^[\w.-]+$", description="The engine's key."
    )
    key_service_token_file: FilePath | None = Field(
        default=None,
        validate_default=True,
        description="File with the token for it; read anew for each use.",
    )
    key_service_ca_file: FilePath | None = Field(
        default=None, description="CA certificates (PEM) of it. Default: the system's."
    )

    temporal_address: str = Field(
        default="127.0.0.1:7233",
        pattern=r"^.+:[0-9]{1,5}$",
        description="HOST:PORT of Temporal's frontend; `hostler up` serves it there.",
    )
    temporal_namespace: str = Field(
        default="default", min_length=1, description="Temporal's namespace."
    )
    temporal_tls_ca_file: FilePath | None = Field(
        default=None, description="CA certificate (PEM) of Temporal's frontend; turns TLS on."
    )
    temporal_tls_cert_file: FilePath | None = Field(
        default=None, description="Client certificate (PEM) for Temporal; turns TLS on."
    )
    temporal_tls_key_file: FilePath | None = Field(
        default=None,
        validate_default=True,
        description="Private key (PEM) of the client certificate.",
    )
    temporal_ui_port: Port = Field(
        default=8233, description="Port of Temporal's web pages under `hostler up`."
    )
    task_queue: str = Field(
        default=DEFAULT_TASK_QUEUE, min_length=1, description="Task queue of the workers."
    )

    api_host: str = Field(
        default="127.0.0.1", min_length=1, description="Address that the API listens on."
    )
    api_port: Port = Field(default=8480, description="Port that the API listens on.")
    api_tls_cert_file: FilePath | None = Field(
        default=None,
        description="Certificate of the API and its chain (PEM): it speaks HTTPS, and nothing "
        "else. Read anew when it changes.",
    )
    api_tls_key_file: FilePath | None = Field(
        default=None, validate_default=True, description="Private key (PEM) of that certificate."
    )
    api_tls_client_ca_file: FilePath | None = Field(
        default=None,
        description="CA certificates (PEM): whoever connects to the API must show a certificate "
        "of one of these, beside the token. Read anew when it changes.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="What is logged, on stderr: this and everything worse."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="One line of text, or one JSON object, per log record."
    )

    ssh_connect_timeout_s: Seconds = Field(
        default=10, description="Until a host counts as unreachable."
    )
    ssh_keepalive_interval_s: Seconds = Field(
        default=5, description="Between two keepalives on an idle SSH connection."
    )
    ssh_keepalive_count: int = Field(
        default=3, ge=1, le=100, description="Unanswered keepalives that end a connection."
    )
    libvirt_call_timeout_s: Seconds = Field(
        default=30, description="Deadline of one call to a host's libvirt (not of a migration)."
    )
    libvirt_keepalive_interval_s: int = Field(
        default=5, ge=1, le=3600, description="Between two keepalives of libvirt's protocol."
    )
    libvirt_keepalive_count: int = Field(
        default=3, ge=1, le=100, description="Unanswered ones that end a libvirt connection."
    )
    libvirt_migration_threads: int = Field(
        default=8, ge=1, le=128, description="Threads per host for its migrations; more wait."
    )

    ca_url: str | None = Field(
        default=None,
        pattern=r"^https?://[!-~]+$",
        description="Where the external CA is, for the provider `vault`: OpenBao or Vault.",
    )
    ca_token_file: Path | None = Field(
        default=None,
        description="File with the token that workers show it, as its agent keeps it: read anew "
        "each time.",
    )
    ca_trust_file: FilePath | None = Field(
        default=None, description="CA certificate (PEM) of its HTTPS. Default: the machine's."
    )

    max_concurrent_activities: int = Field(
        default=200, ge=1, le=10_000, description="Activities at a time in one worker."
    )
    shutdown_timeout_s: Seconds = Field(
        default=15, description="How long a stopping worker waits for its activities."
    )

    @field_validator("home", "master_key_file", "ca_token_file", mode="after")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.expanduser().absolute() if path else None

    @field_validator("temporal_tls_key_file", "api_tls_key_file", mode="after")
    @classmethod
    def _key_of_certificate(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        certificate = str(info.field_name).replace("key_file", "cert_file")
        if path and not info.data.get(certificate):
            raise ValueError(f"needs {PREFIX}{certificate.upper()} as well")
        if not path and info.data.get(certificate):
            raise ValueError(f"is needed beside {PREFIX}{certificate.upper()}")
        return path

    @field_validator("api_tls_client_ca_file", mode="after")
    @classmethod
    def _client_ca_of_api(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path and not info.data.get("api_tls_cert_file"):
            raise ValueError("needs HOSTLER_API_TLS_CERT_FILE as well")
        return path

    @field_validator("key_service_url", mode="after")
    @classmethod
    def _encrypted(cls, url: str | None) -> str | None:
        if url and url.startswith("http:") and (urlsplit(url).hostname not in _LOOPBACK):
            raise ValueError("must be https, except on this machine: the token would go in clear")
        return url

    @field_validator("key_service_token_file", mode="after")
    @classmethod
    def _token_of_service(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if not path and info.data.get("key_service_url"):
            raise ValueError("is needed beside HOSTLER_KEY_SERVICE_URL")
        return path

    @field_validator("temporal_address", mode="after")
    @classmethod
    def _with_a_port(cls, address: str) -> str:
        if not 1 <= int(address.rpartition(":")[2]) <= _HIGHEST_PORT:
            raise ValueError(f"its port must be 1 to {_HIGHEST_PORT}")
        return address

    @property
    def inventory_url(self) -> str:
        """The inventory's URL; may hold a password."""
        if self.database_url:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home / 'inventory.db'}"

    @property
    def master_key_path(self) -> Path:
        """Where the master key is."""
        return self.master_key_file or self.home / "master-key"

    @property
    def admin_token_path(self) -> Path:
        """Where `hostler up` leaves the first admin token."""
        return self.home / "admin-token"

    @property
    def api_url(self) -> str:
        """Where a client on this machine reaches the API."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.api_host, self.api_host)  # noqa: S104
        bracketed = f"[{host.strip('[]')}]" if ":" in host else host
        scheme = "https" if self.api_tls_cert_file is not None else "http"
        return f"{scheme}://{bracketed}:{self.api_port}"

    @property
    def temporal_ui_url(self) -> str:
        """Temporal's web pages under `hostler up`."""
        return f"http://{self.temporal_address.rpartition(':')[0]}:{self.temporal_ui_port}"


def load_settings() -> Settings:
    """Read the environment. Raises WrongSettings, in one line that names every wrong variable."""
    problems = [
        f"{variable}: there is no such setting{_alike(variable)}"
        for variable in sorted(os.environ)
        if variable.startswith(PREFIX)
        and variable not in CLIENT_VARIABLES
        and variable.removeprefix(PREFIX).lower() not in Settings.model_fields
    ]
    try:
        settings = Settings()
    except ValidationError as error:
        problems += [_say(str(item["loc"][0]), item["msg"]) for item in error.errors()]
    else:
        if not problems:
            return settings
    raise WrongSettings(
        f"Wrong settings: {'; '.join(problems)}.", remedy="Correct or unset them and start again."
    )


def _alike(variable: str) -> str:
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    alike = get_close_matches(variable, known, n=1)
    return f" (is {alike[0]} meant?)" if alike else ""


def _say(name: str, message: str) -> str:
    variable = f"{PREFIX}{name.upper()}"
    message = message.removeprefix("Value error, ")
    # Values that may hold a secret are not repeated.
    shown = "" if name in _MAY_BE_SECRET else f" (it is {os.environ.get(variable, '')!r})"
    return f"{variable}: {message[:1].lower()}{message[1:]}{shown}"
