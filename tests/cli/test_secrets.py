from datetime import UTC, datetime
from typing import Any

import pytest

from contracts.secrets import DisclosedSecret, SecretState, StoredSecret
from tests.cli.conftest import NOT_FOUND, FakeApi, hostler, items, ok, problem

WHEN = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
CANARY = "canary-77aa '\"\\$: пароль\x1b[31m"


def stored(secret: str | None, **more: Any) -> StoredSecret:
    values = {
        "kind": "password",
        "state": SecretState.CURRENT,
        "key_id": "0123456789abcdef",
        "created_at": WHEN,
        **more,
    }
    return StoredSecret(id=secret, **values)


KEY = stored("s-1", kind="own_key")
PASSWORD = stored("s-2")
SHOWN = ok(DisclosedSecret(id="s-2", kind="password", plaintext=CANARY))


def test_secrets_are_listed(api: FakeApi) -> None:
    api.on("GET /v1/hosts/kvm-1/secrets", items(KEY, PASSWORD))
    done = hostler("secret", "list", "--host", "kvm-1")
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1][:3] == ["s-1", "own_key", "current"]
    assert rows[2][:3] == ["s-2", "password", "current"]
    version = stored("s-9", account="root", version=4, hosts=("kvm-1", "kvm-2"))
    retired = stored(None, state=SecretState.RETIRED, key_id=None, account="root", version=3)
    api.on("GET /v1/clusters/cluster-1/secrets", items(version, retired))
    done = hostler("secret", "list", "--cluster", "cluster-1")
    assert "kvm-1, kvm-2" in done.stdout
    assert "retired" in done.stdout


def test_what_is_kept_of_a_removed_host_is_listed(api: FakeApi) -> None:
    api.on("GET /v1/removed-hosts/7/secrets", items(PASSWORD))
    done = hostler("secret", "list", "--removed", "7")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1].split()[0] == "s-2"


def test_of_several_accounts_one_is_chosen(api: FakeApi) -> None:
    theirs = stored("s-5", account="admin")
    api.on("GET /v1/hosts/kvm-1/secrets", items(stored("s-2", account="root"), theirs))
    done = hostler("secret", "show", "--host", "kvm-1", "--reason", "console")
    assert done.exit_code == 1
    assert "More than one current password is stored there (of admin, root). Give --acc" in (
        done.stderr
    )
    api.on("POST /v1/secrets/s-5/disclosure", SHOWN)
    done = hostler("secret", "show", "--host", "kvm-1", "--account", "admin", "--reason", "x")
    assert done.stdout == CANARY + "\n"


def test_in_the_middle_of_a_change_none_is_taken_for_certain(api: FakeApi) -> None:
    attempted = stored("s-5", state=SecretState.STAGED, account="root", attempted_on=("kvm-1",))
    api.on("GET /v1/hosts/kvm-1/secrets", items(stored("s-2", account="root"), attempted))
    done = hostler("secret", "show", "--host", "kvm-1", "--reason", "console")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "may be one of several" in done.stderr
    assert "hostler secret list --host kvm-1" in done.stderr
    assert [request.method for request in api.requests] == ["GET"]


def test_one_is_shown_as_it_is_and_alone_on_stdout(api: FakeApi) -> None:
    api.on("POST /v1/secrets/s-2/disclosure", SHOWN)
    done = hostler("secret", "show", "s-2", "--reason", "console")
    assert done.exit_code == 0, done.output
    assert done.stdout == CANARY + "\n"
    assert "audit trail" in done.stderr
    assert CANARY not in done.stderr
    assert api.bodies("POST /v1/secrets/s-2/disclosure") == [{"reason": "console"}]


@pytest.mark.parametrize("place", ["host", "cluster"])
def test_the_password_of_a_host_or_cluster_is_found(api: FakeApi, place: str) -> None:
    others = (KEY, stored("s-3", state=SecretState.STAGED), stored("s-4", state=None))
    api.on(f"GET /v1/{place}s/name-1/secrets", items(*others, PASSWORD))
    api.on("POST /v1/secrets/s-2/disclosure", SHOWN)
    done = hostler("secret", "show", f"--{place}", "name-1", "--reason", "console")
    assert done.stdout == CANARY + "\n"


@pytest.mark.parametrize(
    ("found", "says"),
    [((KEY,), "No current password"), ((PASSWORD, stored("s-5")), "More than one current")],
)
def test_what_is_not_clear_is_left_to_the_caller(
    api: FakeApi, found: tuple[StoredSecret, ...], says: str
) -> None:
    api.on("GET /v1/hosts/kvm-1/secrets", items(*found))
    done = hostler("secret", "show", "--host", "kvm-1", "--reason", "console")
    assert done.exit_code == 1
    assert says in done.stderr
    assert "hostler secret list --host kvm-1" in done.stderr
    assert [request.method for request in api.requests] == ["GET"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "s-1"),
        ("show", "--reason", "x"),
        ("show", "s-1", "--host", "kvm-1", "--reason", "x"),
        ("show", "--cluster", "c", "--host", "kvm-1", "--reason", "x"),
        ("list",),
        ("list", "--host", "kvm-1", "--cluster", "c"),
        ("list", "--host", "kvm-1", "--removed", "7"),
        ("show", "s-1", "--account", "root", "--reason", "x"),
    ],
)
def test_wrong_usage_asks_nothing(api: FakeApi, arguments: tuple[str, ...]) -> None:
    done = hostler("secret", *arguments)
    assert done.exit_code == 2
    assert api.requests == []


def test_a_refusal_is_told(api: FakeApi) -> None:
    refusal = "The token 'olga' has the role operator; this needs the role admin."
    api.on("POST /v1/secrets/s-2/disclosure", problem(403, "Refused", refusal))
    done = hostler("secret", "show", "s-2", "--reason", "console")
    assert (done.exit_code, done.stdout) == (1, "")
    assert refusal in done.stderr
    api.on("GET /v1/hosts/kvm-1/secrets", NOT_FOUND)
    assert hostler("secret", "list", "--host", "kvm-1").exit_code == 1
