from pathlib import Path

import pytest

from workers.settings import Settings, WrongSettings, load_settings


def test_defaults_are_those_of_the_embedded_system() -> None:
    settings = load_settings()
    home = Path.home() / ".local/share/hostler"
    assert settings.home == home
    assert settings.inventory_url == f"sqlite:///{home}/inventory.db"
    assert settings.master_key_path == home / "master-key"
    assert settings.admin_token_path == home / "admin-token"
    assert settings.api_url == "http://127.0.0.1:8480"
    assert settings.temporal_ui_url == "http://127.0.0.1:8233"
    assert (settings.temporal_address, settings.task_queue) == ("127.0.0.1:7233", "hostler")


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOSTLER_HOME", str(tmp_path))
    monkeypatch.setenv("HOSTLER_API_PORT", "9000")
    monkeypatch.setenv("HOSTLER_API_HOST", "0.0.0.0")  # noqa: S104
    monkeypatch.setenv("HOSTLER_MASTER_KEY_FILE", "")
    monkeypatch.setenv("HOSTLER_TOKEN", "not ours")
    monkeypatch.setenv("HOSTLER_API_URL", "not ours")
    settings = load_settings()
    assert settings.home == tmp_path
    assert settings.api_url == "http://127.0.0.1:9000"
    assert settings.master_key_file is None


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("HOSTLER_API_PRT", "1", "HOSTLER_API_PRT: there is no such setting (is HOSTLER_API_PORT"),
        ("HOSTLER_API_PORT", "http", "HOSTLER_API_PORT: input should be a valid integer"),
        ("HOSTLER_API_PORT", "70000", "HOSTLER_API_PORT: input should be less than or equal to"),
        ("HOSTLER_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error' (it is 'loud')"),
        ("HOSTLER_TEMPORAL_ADDRESS", "here", "HOSTLER_TEMPORAL_ADDRESS: "),
        ("HOSTLER_SSH_KEEPALIVE_COUNT", "0", "HOSTLER_SSH_KEEPALIVE_COUNT: input should be gr"),
        ("HOSTLER_CPU_OVERCOMMIT", "4", "HOSTLER_CPU_OVERCOMMIT: there is no such setting"),
        ("HOSTLER_TEMPORAL_ADDRESS", "here:99999", "its port must be 1 to 65535"),
        ("HOSTLER_TEMPORAL_TLS_CERT_FILE", __file__, "HOSTLER_TEMPORAL_TLS_KEY_FILE: is needed"),
        ("HOSTLER_TEMPORAL_TLS_CA_FILE", "/nowhere", "HOSTLER_TEMPORAL_TLS_CA_FILE: path does not"),
        ("HOSTLER_KEY_SERVICE_URL", "http://bao.example.net", "must be https, except on this mac"),
        ("HOSTLER_KEY_SERVICE_URL", "https://me:pw@bao", "HOSTLER_KEY_SERVICE_URL: string should"),
        ("HOSTLER_KEY_SERVICE_URL", "https://bao", "HOSTLER_KEY_SERVICE_TOKEN_FILE: is needed"),
        ("HOSTLER_TEMPORAL_TLS_KEY_FILE", __file__, "needs HOSTLER_TEMPORAL_TLS_CERT_FILE"),
        ("HOSTLER_API_TLS_CERT_FILE", __file__, "HOSTLER_API_TLS_KEY_FILE: is needed beside"),
        ("HOSTLER_API_TLS_KEY_FILE", __file__, "needs HOSTLER_API_TLS_CERT_FILE"),
        ("HOSTLER_API_TLS_CLIENT_CA_FILE", __file__, "needs HOSTLER_API_TLS_CERT_FILE"),
    ],
)
def test_a_wrong_variable_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(WrongSettings) as caught:
        load_settings()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("Correct or unset them and start again.")


def test_all_wrong_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTLER_API_PORT", "x")
    monkeypatch.setenv("HOSTLER_NONSENSE", "x")
    with pytest.raises(WrongSettings, match=r"HOSTLER_NONSENSE.*HOSTLER_API_PORT"):
        load_settings()


def test_the_database_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTLER_DATABASE_URL", "postgresql://hostler:canary@db/hostler")
    settings = load_settings()
    assert "canary" in settings.inventory_url
    assert "canary" not in f"{settings!r} {settings} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("::1", "http://[::1]:8480"),
        ("::", "http://[::1]:8480"),
        ("0.0.0.0", "http://127.0.0.1:8480"),  # noqa: S104 - not listened on here
    ],
)
def test_where_a_client_finds_the_api(monkeypatch: pytest.MonkeyPatch, host: str, url: str) -> None:
    monkeypatch.setenv("HOSTLER_API_HOST", host)
    assert load_settings().api_url == url
