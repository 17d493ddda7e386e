"""hooks/tls on a directory that plays a host: what it does to firewalls, and when it restarts
libvirtd. Programs of the host's are played, openssl is real; libvirtd itself is looked at on the
lab (tests/drivers/test_tls.py)."""

import dataclasses
from pathlib import Path

import pytest

from drivers.errors import CommandFailed, EpochRefused, HostBusy, RestartNeeded
from drivers.tls import ScriptCertificates
from tests.drivers.test_tls import ALLOWED, issued
from tests.hooks.local_host import ACCESS, LocalHost

_PROGRAMS = {
    "systemctl": """
case $1 in
is-active) [ -e "$root/active/$3" ] ;;
show) cat "$root/pid" 2>/dev/null || : ;;
start)
    service=$root/active/libvirtd.service
    status=0
    for unit; do case $unit in
        libvirtd.service)
            echo restart >>"$root/log"
            if [ -e "$root/no-start-by-tls" ] &&
                [ -e "$root/active/libvirtd-tls.socket" ]; then exit 1; fi
            if [ -e "$root/no-start-by-force" ] &&
                grep -q migrate_tls_force "$root/etc/libvirt/qemu.conf"; then exit 1; fi
            touch "$service" ;;
        *.socket) # none starts beside its service
            if [ -e "$service" ] && [ ! -e "$root/active/$unit" ]; then status=1
            else touch "$root/active/$unit"; fi
            # Somebody connects.
            if [ -e "$root/clients" ]; then touch "$service"; rm "$root/clients"; fi ;;
    esac; done
    exit $status ;;
stop)
    for unit; do rm -f "$root/active/$unit"; done
    if [ -e "$root/busy" ] && [ -e "$root/active/libvirtd.socket" ]; then
        touch "$root/active/libvirtd.service"
    fi ;;
esac
""",
    "virsh": """
if [ -e "$root/hangs" ]; then exec sleep 600; fi
if [ -e "$root/silent" ] || [ ! -e "$root/active/libvirtd.service" ]; then exit 1; fi
case "$*" in
*'list --uuid'*) [ ! -e "$root/no-list" ] || exit 1
    if [ -e "$root/job" ] || [ -e "$root/state" ]; then echo vm-1; fi
    if [ -e "$root/ends" ]; then rm "$root/job" "$root/state" "$root/ends"; fi ;;
*capabilities*) cat "$root/capabilities" ;;
*domjobinfo*) cat "$root/job" ;;
*domstate*) cat "$root/state" ;;
esac
""",
    "virt-admin": """
case $1 in
server-clients-info)
    if [ -e "$root/greets" ]; then rm "$root/greets"; echo 'nclients_unauth     : 1'; exit; fi
    echo 'nclients_unauth     : 0'
    exit ;;
esac
[ ! -e "$root/greets" ] || echo 'too early' >>"$root/log"
echo reload >>"$root/log"
if [ -e "$root/dies" ]; then echo 2 >"$root/pid"; echo 'End of file' >&2; exit 1; fi
if [ -e "$root/refuses" ]; then echo 'no good' >&2; exit 1; fi
""",
    "journalctl": "",
}
# As much of them as the script uses: `rules` in force, and `permanent` ones.
_UFW = """
case "$1 $2" in
'status ') if [ -e "$root/ufw-off" ]; then echo 'Status: inactive'; else
        printf 'Status: active\\n\\nTo                         Action      From\\n'
        cat "$root/rules" 2>/dev/null
    fi ;;
'allow 16514/tcp') [ ! -e "$root/ufw-broken" ] || exit 1
    echo '16514/tcp                  ALLOW       Anywhere                   # hostler' \\
        >>"$root/rules" ;;
'delete allow') sed -i '/ALLOW       Anywhere  /d' "$root/rules" ;;
*) exit 2 ;;
esac
"""
_FIREWALLD = """
permanent=rules zone=
for word; do
    case $word in
    --state) [ ! -e "$root/firewalld-off" ]; exit ;;
    --permanent) permanent=permanent ;;
    --zone=*) zone=${word#--zone=} ;;
    --get-default-zone) echo public; exit ;;
    --get-active-zones)
        printf 'libvirt\\n  interfaces: virbr0\\ninternal\\n  interfaces: eth1\\n'
        exit ;;
    --query-*) grep -qsx "$zone ${word#--query-}" "$root/$permanent"; exit ;;
    --add-*) echo "$zone ${word#--add-}" >>"$root/$permanent" ;;
    --remove-*) sed -i "\\|^$zone ${word#--remove-}$|d" "$root/$permanent" ;;
    --quiet) ;;
    *) exit 2 ;;
    esac
done
"""
_ALLOWED_IN_UFW = "16514/tcp                  ALLOW       Anywhere                   # hostler\n"
_TCP = "libvirtd-tcp.socket"
_QEMU_CONF = "# theirs\nmigrate_tls_x509_verify = 0\n"


class Host(LocalHost):
    """`log`: what was done to libvirtd."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        (root / "active").mkdir()
        for unit in ("libvirtd.service", "libvirtd.socket"):
            (root / "active" / unit).touch()
        (root / "etc/libvirt").mkdir()
        (root / "etc/libvirt/libvirtd.conf").write_text("# theirs\n")
        (root / "etc/libvirt/qemu.conf").write_text(_QEMU_CONF)
        self.qemu_is(0)
        for name, script in _PROGRAMS.items():
            self.program(name, script)
        self.certificates = ScriptCertificates(self)
        driver = root / "usr/lib/libvirt/connection-driver/libvirt_driver_qemu.so"
        driver.parent.mkdir(parents=True)
        driver.write_text("migrate_tls_force")

    def _here(self, text: str) -> str:
        """It is not waited for, as on a host."""
        return (
            super()
            ._here(text)
            .replace(" /usr/lib/libvirt/", f" {self.root}/usr/lib/libvirt/")
            .replace("patience=30", "patience=5")
            .replace("timeout 10 ", "timeout 5 ")
        )

    def program(self, name: str, script: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\nroot={self.root}\n{script}")
        path.chmod(0o755)

    def text(self, name: str) -> str:
        path = self.root / name
        return path.read_text() if path.exists() else ""

    def qemu_is(self, account: int) -> None:
        (self.root / "capabilities").write_text(
            "<secmodel>\n<model>dac</model>\n"
            f"<baselabel type='qemu'>+{account}:+{account}</baselabel>\n</secmodel>\n"
        )

    def runs_vm(self, job: str = "None", state: str = "running (booted)") -> None:
        """As virsh tells of it; nothing: it does not."""
        (self.root / "job").write_text(f"Job type:         {job}\n" if job else "")
        (self.root / "state").write_text(f"{state}\n" if state else "")

    def runs_none(self) -> None:
        for name in ("job", "state"):
            (self.root / name).unlink()

    def did(self) -> list[str]:
        """To libvirtd, since this was asked last."""
        said = self.text("log").split()
        (self.root / "log").unlink(missing_ok=True)
        return said

    async def place(self, name: str, epoch: int) -> None:
        requests = await self.certificates.prepare(ACCESS, name, epoch, key_bits=256)
        libvirt, qemu = issued(requests, ACCESS)
        await self.certificates.place(ACCESS, name, epoch, libvirt=libvirt, qemu=qemu)

    async def switch(self, name: str, epoch: int, *, restart: bool = True) -> None:
        await self.certificates.switch(ACCESS, name, epoch, allowed=ALLOWED, restart=restart)

    async def provision(self, name: str, epoch: int) -> None:
        await self.place(name, epoch)
        await self.switch(name, epoch)
        await self.certificates.finish(ACCESS, name, epoch)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


# --- restarts ---------------------------------------------------------------------------------


async def test_it_is_restarted_only_where_that_is_allowed(host: Host) -> None:
    await host.place("set-1", 2)
    before = host.text("etc/libvirt/libvirtd.conf")
    with pytest.raises(RestartNeeded):
        await host.switch("set-1", 2, restart=False)
    assert host.text("etc/libvirt/libvirtd.conf") == before
    assert host.did() == []
    await host.switch("set-1", 2)
    assert host.did() == ["restart"]
    await host.certificates.finish(ACCESS, "set-1", 2)
    with pytest.raises(RestartNeeded):
        await host.certificates.secure(ACCESS, 2, restart=False)
    assert host.text("etc/libvirt/qemu.conf") == _QEMU_CONF
    await host.certificates.secure(ACCESS, 2)
    in_force = [
        line for line in host.text("etc/libvirt/qemu.conf").splitlines() if not line.startswith("#")
    ]
    assert in_force == [
        "migrate_tls_force = 1",
        f'migrate_tls_x509_cert_dir = "{host.root}/etc/pki/qemu"',
        "migrate_tls_x509_verify = 1",
    ]
    assert host.did() == ["reload", "restart"]
    await host.certificates.secure(ACCESS, 2, restart=False)
    assert host.did() == []


async def test_a_renewal_needs_none_and_neither_does_its_way_back(host: Host) -> None:
    await host.provision("set-1", 2)
    since = (host.root / "etc/hostler/tls/current").lstat().st_mtime
    host.did()
    host.runs_vm("Unbounded")
    await host.place("set-2", 4)
    await host.switch("set-2", 4, restart=False)
    assert host.did() == ["reload"]
    assert await host.certificates.restore(ACCESS, "set-2", 4, restart=False)
    assert host.did() == ["reload"]
    current = host.root / "etc/hostler/tls/current"
    assert current.readlink() == Path("sets/set-1")
    assert current.lstat().st_mtime == since, "VMs that were started before hold an older one"
    assert not (host.root / "etc/hostler/tls/sets/set-2").exists()
    assert (host.root / "active/libvirtd-tls.socket").exists()


async def test_what_was_restored_is_to_be_proven_until_that_is_confirmed(host: Host) -> None:
    await host.provision("set-1", 2)
    await host.place("set-2", 4)
    await host.switch("set-2", 4)
    for _ in range(2):
        assert await host.certificates.restore(ACCESS, "set-2", 4)
    await host.certificates.confirm(ACCESS, 4)
    assert not await host.certificates.restore(ACCESS, "set-2", 4)
    # Or until something else counts.
    await host.place("set-3", 6)
    await host.switch("set-3", 6)
    assert await host.certificates.restore(ACCESS, "set-3", 6)
    await host.provision("set-4", 8)
    assert not await host.certificates.restore(ACCESS, "set-4", 8)


async def test_not_while_vms_migrate_by_somebody_elses_hand(host: Host) -> None:
    await host.place("set-1", 2)
    host.runs_vm("Unbounded")
    with pytest.raises(HostBusy, match="is migrating or being saved"):
        await host.switch("set-1", 2)
    assert host.did() == []
    host.runs_vm()
    await host.switch("set-1", 2)
    assert host.did() == ["restart"]


@pytest.mark.parametrize(
    ("job", "state", "said"),
    [
        ("Unbounded", "paused (migrating)", "on its way in"),
        ("None", "running (post-copy)", "on its way in"),
        ("", "running (booted)", "does not tell what vm-1 does"),
        ("", "", "does not tell what vm-1 does"),
        ("Unbegrenzt", "", "is migrating or being saved"),
    ],
)
async def test_nor_where_it_is_not_known_that_none_does(
    host: Host, job: str, state: str, said: str
) -> None:
    await host.place("set-1", 2)
    host.runs_vm(job, state)
    with pytest.raises(HostBusy, match=said):
        await host.switch("set-1", 2)
    assert host.did() == []


async def test_a_vm_that_ends_while_it_is_looked_at_does_not_migrate(host: Host) -> None:
    await host.place("set-1", 2)
    host.runs_vm()
    (host.root / "ends").touch()
    await host.switch("set-1", 2)
    assert host.did() == ["restart"]


@pytest.mark.parametrize("what", ["no-list", "silent"])
async def test_a_libvirtd_that_runs_and_does_not_tell_its_vms_is_not_restarted(
    host: Host, what: str
) -> None:
    await host.place("set-1", 2)
    (host.root / what).touch()
    with pytest.raises(HostBusy, match="does not tell its VMs"):
        await host.switch("set-1", 2)
    assert host.did() == []


async def test_programs_are_asked_not_to_translate_what_they_say(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    await host.place("set-1", 2)
    host.runs_vm()
    host.program("virsh", f'[ "$LC_ALL" = C ] || exit 1{_PROGRAMS["virsh"]}')
    await host.switch("set-1", 2)
    assert host.did() == ["restart"]


async def test_the_way_back_waits_too_unless_libvirtd_is_broken_anyway(host: Host) -> None:
    await host.place("set-1", 2)
    await host.switch("set-1", 2)
    host.did()
    with pytest.raises(RestartNeeded):
        await host.certificates.restore(ACCESS, "set-1", 2, restart=False)
    host.runs_vm("Unbounded")
    with pytest.raises(HostBusy):
        await host.certificates.restore(ACCESS, "set-1", 2)
    assert host.did() == []
    assert "tls_allowed_dn_list" in host.text("etc/libvirt/libvirtd.conf")
    (host.root / "silent").touch()
    (host.root / "active/libvirtd.service").unlink()
    # It is restarted, and still does not answer.
    with pytest.raises(CommandFailed, match="does not answer"):
        await host.certificates.restore(ACCESS, "set-1", 2, restart=False)
    assert host.did() == ["restart"]
    (host.root / "silent").unlink()
    host.runs_none()
    # What was put back by then does not make the restart look needless.
    with pytest.raises(RestartNeeded):
        await host.certificates.restore(ACCESS, "set-1", 2, restart=False)
    await host.certificates.restore(ACCESS, "set-1", 2)
    assert host.did() == ["restart"]
    assert host.text("etc/libvirt/libvirtd.conf") == "# theirs\n"
    assert not (host.root / "etc/hostler/tls/undo").exists()


async def test_what_the_reload_of_the_way_back_refuses_is_restarted(host: Host) -> None:
    await host.provision("set-1", 2)
    await host.place("set-2", 4)
    await host.switch("set-2", 4, restart=False)
    host.did()
    (host.root / "refuses").touch()
    with pytest.raises(RestartNeeded):
        await host.certificates.restore(ACCESS, "set-2", 4, restart=False)
    await host.certificates.restore(ACCESS, "set-2", 4)
    assert host.did() == ["reload", "restart"]


async def test_a_libvirtd_that_dies_of_the_reload_has_what_it_was_started_again_with(
    host: Host,
) -> None:
    """Of a handshake that begins meanwhile; one that is seen is waited for."""
    await host.provision("set-1", 2)
    await host.place("set-2", 4)
    (host.root / "pid").write_text("1\n")
    for name in ("greets", "dies"):
        (host.root / name).touch()
    await host.switch("set-2", 4, restart=False)
    assert host.did()[-1] == "reload"
    assert "too early" not in host.did()


async def test_what_a_predecessor_has_left_is_put_back_only_with_leave(host: Host) -> None:
    await host.place("set-1", 2)
    await host.switch("set-1", 2)
    with pytest.raises(RestartNeeded):
        await host.certificates.prepare(ACCESS, "set-2", 4, key_bits=256, restart=False)
    await host.certificates.prepare(ACCESS, "set-2", 4, key_bits=256)
    assert host.text("etc/libvirt/libvirtd.conf") == "# theirs\n"


async def test_one_that_hangs_is_given_up_in_time(host: Host) -> None:
    await host.place("set-1", 2)
    (host.root / "hangs").touch()
    (host.root / "active/libvirtd.service").unlink()
    bounded = ScriptCertificates(host, command_timeout=60)
    with pytest.raises(CommandFailed, match="does not answer"):
        await bounded.switch(ACCESS, "set-1", 2, allowed=ALLOWED)
    assert host.did() == ["restart"]


async def test_another_change_is_waited_for(host: Host) -> None:
    host.program("flock", "exit 1")
    with pytest.raises(HostBusy, match="another change holds"):
        await host.certificates.prepare(ACCESS, "set-1", 2, key_bits=256)


@pytest.mark.parametrize("when", ["busy", "clients"])
async def test_who_connects_while_it_is_restarted_keeps_no_socket_from_it(
    host: Host, when: str
) -> None:
    """To a socket that was left open, or before the others are open again."""
    await host.place("set-1", 2)
    (host.root / when).touch()
    await host.switch("set-1", 2)
    assert (host.root / "active/libvirtd-tls.socket").exists()


async def test_the_way_back_to_a_damaged_set_ends_without_tls(host: Host) -> None:
    await host.provision("set-1", 2)
    await host.place("set-2", 4)
    await host.switch("set-2", 4)
    sets = host.root / "etc/hostler/tls/sets"
    (sets / "set-1/key.pem").write_text((sets / "set-2/key.pem").read_text())
    for what in ("refuses", "no-start-by-tls"):
        (host.root / what).touch()
    await host.certificates.restore(ACCESS, "set-2", 4)
    assert (host.root / "active/libvirtd.service").exists()
    assert not (host.root / "active/libvirtd-tls.socket").exists()
    assert not (host.root / "etc/hostler/tls/undo").exists()
    for what in ("refuses", "no-start-by-tls"):
        (host.root / what).unlink()
    await host.place("set-3", 6)
    with pytest.raises(RestartNeeded):
        await host.switch("set-3", 6, restart=False)
    await host.switch("set-3", 6)
    assert (host.root / "active/libvirtd-tls.socket").exists()


async def test_what_keeps_it_from_starting_by_tls_only_is_put_back(host: Host) -> None:
    await host.provision("set-1", 2)
    (host.root / "no-start-by-force").touch()
    with pytest.raises(CommandFailed, match="does not answer with migrate_tls_force"):
        await host.certificates.secure(ACCESS, 2)
    assert host.text("etc/libvirt/qemu.conf") == _QEMU_CONF
    assert (host.root / "active/libvirtd.service").exists()
    assert not (host.root / "etc/hostler/tls/forcing").exists()


async def test_what_was_written_by_a_run_that_was_killed_still_takes_a_restart(host: Host) -> None:
    await host.provision("set-1", 2)
    await host.place("set-2", 4)
    allowed = [*ALLOWED, "O=Hostler,OU=another,CN=*"]
    # It ends after libvirtd.conf, and before the restart.
    host.program("ufw", _UFW)
    (host.root / "ufw-broken").touch()
    with pytest.raises(CommandFailed, match="ufw"):
        await host.certificates.switch(ACCESS, "set-2", 4, allowed=allowed)
    (host.root / "ufw-broken").unlink()
    assert "OU=another" in host.text("etc/libvirt/libvirtd.conf")
    host.did()
    with pytest.raises(RestartNeeded):
        await host.certificates.switch(ACCESS, "set-2", 4, allowed=allowed, restart=False)
    await host.certificates.switch(ACCESS, "set-2", 4, allowed=allowed)
    assert host.did() == ["reload", "restart"]
    await host.certificates.switch(ACCESS, "set-2", 4, allowed=allowed, restart=False)
    assert host.did() == ["reload"]


async def test_a_removal_restarts_it_only_for_what_it_may_go_by(host: Host) -> None:
    await host.place("set-1", 2)
    host.runs_vm("Unbounded")
    await host.certificates.remove(ACCESS)
    assert host.did() == []
    assert not (host.root / "etc/hostler").exists()


async def test_a_removal_waits_for_migrations_too(host: Host) -> None:
    await host.provision("set-1", 2)
    host.did()
    host.runs_vm("Unbounded")
    with pytest.raises(HostBusy, match="is migrating"):
        await host.certificates.remove(ACCESS)
    assert host.did() == []
    assert "tls_allowed_dn_list" in host.text("etc/libvirt/libvirtd.conf")
    host.runs_none()
    await host.certificates.remove(ACCESS)
    assert host.did() == ["restart"]
    assert host.text("etc/libvirt/libvirtd.conf") == "# theirs\n"
    assert not (host.root / "active/libvirtd-tls.socket").exists()


@pytest.mark.parametrize("renewed", [False, True])
async def test_a_removal_has_others_sockets_listen_again_with_their_files(
    host: Host, *, renewed: bool
) -> None:
    theirs = host.root / "etc/pki/libvirt/servercert.pem"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    others = {"libvirtd-tls.socket", _TCP}
    for socket in others:
        (host.root / "active" / socket).touch()
    await host.provision("set-1", 2)
    if renewed:
        await host.provision("set-2", 4)
    assert not (host.root / "active" / _TCP).exists()
    # It starts with their own files.
    host.program(
        "systemctl",
        f'if [ "$1" = start ]; then cat {theirs} >"$root/seen"; fi{_PROGRAMS["systemctl"]}',
    )
    await host.certificates.remove(ACCESS)
    assert others <= {path.name for path in (host.root / "active").iterdir()}
    assert host.text("seen") == theirs.read_text() == "theirs"


async def test_a_removal_goes_without_others_sockets_if_it_does_not_start_with_them(
    host: Host,
) -> None:
    (host.root / "active/libvirtd-tls.socket").touch()
    await host.provision("set-1", 2)
    (host.root / "no-start-by-tls").touch()
    await host.certificates.remove(ACCESS)
    active = {path.name for path in (host.root / "active").iterdir()}
    assert "libvirtd.service" in active
    assert "libvirtd-tls.socket" not in active


# --- sets -------------------------------------------------------------------------------------


async def test_qemu_gets_at_its_key_also_if_libvirtd_did_not_run_when_it_came(host: Host) -> None:
    host.qemu_is(64055)
    host.program("chgrp", 'echo "$1 ${2##*/hostler/}" >>"$root/chgrp"')
    (host.root / "active/libvirtd.service").unlink()
    await host.place("set-1", 2)
    assert host.text("chgrp") == ""
    await host.switch("set-1", 2)
    assert host.text("chgrp") == "64055 set-1/key.pem\n"
    assert (host.root / "etc/pki/qemu/hostler/set-1/key.pem").stat().st_mode & 0o777 == 0o640


async def test_who_qemu_is_has_to_be_known(host: Host) -> None:
    await host.place("set-1", 2)
    (host.root / "capabilities").unlink()
    with pytest.raises(CommandFailed, match="which account QEMU has"):
        await host.switch("set-1", 2)


async def test_a_set_that_is_written_anew_is_not_complete_meanwhile(host: Host) -> None:
    await host.place("set-1", 2)
    requests = await host.certificates.prepare(ACCESS, "set-1", 2, key_bits=256)
    libvirt, qemu = issued(requests, ACCESS)
    broken = dataclasses.replace(libvirt, certificate="nonsense")
    with pytest.raises(CommandFailed):
        await host.certificates.place(ACCESS, "set-1", 2, libvirt=broken, qemu=qemu)
    with pytest.raises(CommandFailed, match="is not complete"):
        await host.switch("set-1", 2)


async def test_a_host_that_knows_a_later_operation_says_where_it_keeps_that(host: Host) -> None:
    await host.place("set-1", 4)
    with pytest.raises(EpochRefused, match=r"rm /etc/hostler/tls/epoch on the host") as refused:
        await host.place("set-2", 2)
    assert refused.value.details == {"held": 4, "own": 2}
    assert (host.root / "etc/hostler/tls/epoch").exists()


# --- firewalls --------------------------------------------------------------------------------


async def test_ufw_is_opened_and_closed_again(host: Host) -> None:
    host.program("ufw", _UFW)
    await host.provision("set-1", 2)
    assert host.text("rules") == _ALLOWED_IN_UFW
    # A renewal that is put back has opened nothing, and closes nothing.
    await host.place("set-2", 4)
    await host.switch("set-2", 4)
    await host.certificates.restore(ACCESS, "set-2", 4)
    await host.provision("set-3", 6)
    assert host.text("rules") == _ALLOWED_IN_UFW
    await host.certificates.remove(ACCESS)
    assert host.text("rules") == ""


async def test_a_provisioning_that_is_put_back_closes_what_it_has_opened(host: Host) -> None:
    host.program("ufw", _UFW)
    host.program("firewall-cmd", _FIREWALLD)
    await host.place("set-1", 2)
    await host.switch("set-1", 2)
    assert host.text("rules").splitlines() == [
        *(f"{zone} port=16514/tcp" for zone in ("internal", "libvirt", "public")),
        _ALLOWED_IN_UFW.strip(),
    ]
    assert len(host.text("permanent").splitlines()) == 3
    await host.certificates.restore(ACCESS, "set-1", 2)
    assert (host.text("rules"), host.text("permanent")) == ("", "")


@pytest.mark.parametrize(
    "rule",
    [
        "16514/tcp                  ALLOW       10.1.0.0/16\n",
        "16514                      ALLOW IN    Anywhere\n",
    ],
)
async def test_what_others_have_opened_stays_theirs(host: Host, rule: str) -> None:
    """Also for some addresses alone: it is not opened for more than they want."""
    host.program("ufw", _UFW)
    (host.root / "rules").write_text(rule)
    await host.provision("set-1", 2)
    assert host.text("rules") == rule
    await host.certificates.remove(ACCESS)
    assert host.text("rules") == rule


async def test_firewalld_is_opened_for_good_in_each_zone_that_is_used(host: Host) -> None:
    host.program("firewall-cmd", _FIREWALLD)
    (host.root / "rules").write_text("internal service=libvirt-tls\npublic port=16514/tcp\n")
    (host.root / "permanent").write_text("internal service=libvirt-tls\n")
    await host.provision("set-1", 2)
    assert set(host.text("rules").splitlines()) == {
        "internal service=libvirt-tls",
        "public port=16514/tcp",
        "libvirt port=16514/tcp",
    }
    assert set(host.text("permanent").splitlines()) == {
        "internal service=libvirt-tls",
        "public port=16514/tcp",
        "libvirt port=16514/tcp",
    }
    await host.certificates.remove(ACCESS)
    assert host.text("permanent") == host.text("rules") == "internal service=libvirt-tls\n"


@pytest.mark.parametrize("name", ["ufw", "firewalld"])
async def test_one_that_is_off_is_left_alone(host: Host, name: str) -> None:
    host.program("ufw", _UFW)
    host.program("firewall-cmd", _FIREWALLD)
    for off in ("ufw-off", "firewalld-off"):
        (host.root / off).touch()
    await host.provision("set-1", 2)
    assert (host.text("rules"), host.text("permanent")) == ("", "")
    # It is on by the next renewal.
    (host.root / f"{name}-off").unlink()
    await host.provision("set-2", 4)
    assert "16514/tcp" in host.text("rules")
    await host.certificates.remove(ACCESS)
    assert (host.text("rules"), host.text("permanent")) == ("", "")


async def test_one_that_does_not_open_fails_the_switch(host: Host) -> None:
    host.program("ufw", _UFW)
    (host.root / "ufw-broken").touch()
    await host.place("set-1", 2)
    with pytest.raises(CommandFailed, match="ufw does not open port 16514"):
        await host.switch("set-1", 2)
    await host.certificates.restore(ACCESS, "set-1", 2)
    assert host.text("rules") == ""
