"""sushy-tools' Redfish emulator, with what it lacks: accounts whose passwords are changed, one that
may only read, and a log of what its machines were told.

    python -m tests.drivers.power.redfish_emulator DIRECTORY PORT CERTIFICATE KEY

Its machines, SYSTEMS, do what they are told at once. What they boot from may be changed for once.
Files in DIRECTORY: with `swallow` they do it, and nobody gets an answer; with `overload` the answer
is that it is busy; with `nameless` they have no UUID, or that in the file; with `forgetful` they
keep booting from what they do; with `no_pxe` they have no network; with `picky` no new password is
good enough; with `secretive` nobody sees accounts.
"""

import ssl
import sys
import time
from pathlib import Path
from typing import Any

import bcrypt
import flask
from sushy_tools.emulator import main as emulator
from sushy_tools.emulator.resources.systems import fakedriver

from tests.drivers.power.servers import PASSWORD, READER, SYSTEMS, USER

USERS = (USER, READER)
app: flask.Flask = emulator.app
_SERVICE = "/redfish/v1/AccountService"
# Each machine, before it says that it is done.
fakedriver.random.randint = lambda *_: 0


class Accounts:
    """In the file that the emulator reads its logins from."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "accounts"
        self._passwords = dict.fromkeys(USERS, PASSWORD)
        self._write()

    def change(self, user: str, password: str) -> None:
        self._passwords[user] = password
        self._write()

    def _write(self) -> None:
        lines = [
            f"{user}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}"
            for user, password in self._passwords.items()
        ]
        self.file.write_text("\n".join(lines) + "\n")


def add_accounts(accounts: Accounts) -> None:
    """The resources of DSP0266's account service that its clients need."""

    @app.before_request
    def refuse() -> Any:
        hidden = (accounts.file.parent / "secretive").exists()
        if hidden and flask.request.path.startswith(_SERVICE):
            return {"error": {"message": "Not with that role."}}, 403
        if flask.request.method != "GET" and flask.request.headers.get("X-User") == READER:
            said = {"code": "Base.1.8.InsufficientPrivilege", "message": "Not with that role."}
            return {"error": said}, 403
        return None

    @app.after_request
    def finish_root(response: flask.Response) -> flask.Response:
        if flask.request.path.rstrip("/") == "/redfish/v1" and response.json:
            root = {**response.json, "AccountService": {"@odata.id": _SERVICE}}
            response.data = flask.json.dumps(root)
        return response

    @app.get(_SERVICE)
    def service() -> Any:
        return {"Accounts": {"@odata.id": f"{_SERVICE}/Accounts"}}

    @app.get(f"{_SERVICE}/Accounts")
    def listed() -> Any:
        return {"Members": [{"@odata.id": f"{_SERVICE}/Accounts/{user}"} for user in USERS]}

    @app.route(f"{_SERVICE}/Accounts/<user>", methods=["GET", "PATCH"])
    def account(user: str) -> Any:
        if flask.request.method == "PATCH":
            if flask.request.headers.get("If-Match") != f'W/"{user}"':
                return {"error": {"message": "Another one has changed it."}}, 412
            if (accounts.file.parent / "picky").exists():
                value = f"The value '{flask.request.json['Password']}' for the property Password"
                return {"error": {"message": f"{value} is not acceptable."}}, 400
            accounts.change(user, flask.request.json["Password"])
            return "", 204
        shown = {"UserName": user, "@odata.etag": f'W/"{user}"'}
        return shown | {"RoleId": "ReadOnly" if user == READER else "Administrator"}


def log_commands(directory: Path) -> None:
    """In DIRECTORY/commands."""

    @app.after_request
    def log(response: flask.Response) -> flask.Response:
        if flask.request.path.endswith("ComputerSystem.Reset") and response.status_code == 204:
            with (directory / "commands").open("a") as commands:
                commands.write(f"{flask.request.json['ResetType']}\n")
            if (directory / "swallow").exists():
                time.sleep(3600)
            if (directory / "overload").exists():
                return flask.make_response({}, 503)
        shown = flask.request.path.rpartition("/")[2] in SYSTEMS and flask.request.method == "GET"
        if shown and (directory / "nameless").exists():
            shared = (directory / "nameless").read_text() or None
            response.data = flask.json.dumps({**(response.json or {}), "UUID": shared})
        return response


def boot_once(directory: Path) -> None:
    """The emulator knows no boot that is another one only once."""
    once: set[str] = set()

    def shown(boot: dict[str, Any], path: str) -> dict[str, Any]:
        kinds = "BootSourceOverrideTarget@Redfish.AllowableValues"
        if (directory / "no_pxe").exists():
            boot = {**boot, kinds: [kind for kind in boot[kinds] if kind != "Pxe"]}
        return {**boot, "BootSourceOverrideEnabled": "Once" if path in once else "Disabled"}

    @app.before_request
    def as_ever() -> Any:
        asked = flask.request.get_json(silent=True) or {}
        if asked.get("Boot") != {"BootSourceOverrideEnabled": "Disabled"}:
            return None
        if not (directory / "forgetful").exists():
            once.discard(flask.request.path.rstrip("/"))
        with (directory / "commands").open("a") as commands:
            commands.write("Disabled\n")
        return "", 204

    @app.after_request
    def change(response: flask.Response) -> flask.Response:
        request, path = flask.request, flask.request.path.rstrip("/")
        told = request.method == "PATCH" and response.status_code == 204
        if told and "BootSourceOverrideTarget" in request.json.get("Boot", {}):
            if not (directory / "forgetful").exists():
                once.add(path)
            with (directory / "commands").open("a") as commands:
                boot = request.json["Boot"]
                said = f"{boot['BootSourceOverrideEnabled']}:{boot['BootSourceOverrideTarget']}"
                commands.write(f"{said}\n")
        elif request.method == "POST" and path.endswith("ComputerSystem.Reset"):
            once.discard(path.removesuffix("/Actions/ComputerSystem.Reset"))
        elif request.method == "GET" and response.json and "Boot" in response.json:
            system = {**response.json, "Boot": shown(response.json["Boot"], path)}
            response.data = flask.json.dumps(system)
        return response


def main() -> None:
    directory, port, certificate, key = sys.argv[1:]
    accounts = Accounts(Path(directory))
    systems = [{"uuid": s, "name": s, "power_state": "On", "nics": []} for s in SYSTEMS]
    emulator.app.configure(
        extra_config={
            "SUSHY_EMULATOR_AUTH_FILE": str(accounts.file),
            "SUSHY_EMULATOR_FAKE_DRIVER": True,
            "SUSHY_EMULATOR_FAKE_SYSTEMS": systems,
            "SUSHY_EMULATOR_STATE_DIR": directory,
        }
    )
    add_accounts(accounts)
    log_commands(Path(directory))
    boot_once(Path(directory))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    app.run(host="127.0.0.1", port=int(port), ssl_context=context)


if __name__ == "__main__":
    main()
