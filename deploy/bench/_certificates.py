"""Certificates by Hostler, and by what people use otherwise, side by side in one run.

    issuing        certificates from signing requests that were made beforehand, EC P-256, each for
                   a host of its own: by `openssl ca`, one call per request, which keeps its
                   database; by Hostler's own CA, its inventory on SQLite and on PostgreSQL; by an
                   external CA (OpenBao), through Hostler
    provisioning   all hosts of the lab: by `hostler cert provision`, all at once, and by a playbook
                   of ansible (community.crypto) with as many forks as there are hosts

What is said of Hostler in `issuing` is the activity as workers run it: names from the inventory,
all checks, the record with its event, committed durably. openssl takes the names from the request
and checks nothing; its database is never forced to the disk.

In `provisioning` both make two keys on each host, have them certified, put files and revocation
list where libvirt and QEMU look for them, allow the cluster's names alone, and restart libvirtd.
Hostler proves each host by handshakes from outside, too, and puts back what fails. It is the first
provisioning and then a renewal of each. It needs the lab, which must be used by nobody else
meanwhile: it removes every trace of Hostler on its hosts, and puts Debian's python3 with
cryptography there, which ansible's modules need, and takes that off again.

Takes root. PostgreSQL comes by apt and OpenBao by pip, if they are missing, ansible by pip into a
temporary environment. Exit code 1 if a certificate is missing, is not good by the word
of `openssl verify`, or is not in the issuer's record, or if a host does not show the last one.
"""

import argparse

import _certificate_issuing as issuing
import _certificate_provisioning as provisioning
from _report import Report

_PARTS = ("issuing", "provisioning")


async def main(arguments: argparse.Namespace) -> int:
    """Run it and print what was measured."""
    report = Report()
    if "issuing" in arguments.parts:
        await issuing.measure(report, arguments.certificates, arguments.at_a_time)
    if "provisioning" in arguments.parts:
        await provisioning.measure(report, arguments.forks)
    return report.close()


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="certificates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{' or '.join(_PARTS)} alone; both without it"
    )
    parser.add_argument(
        "--certificates", type=int, default=1000, help="how many are issued by each (1000)"
    )
    parser.add_argument(
        "--at-a-time",
        type=int,
        default=10,
        help="in a second round of Hostler, as a worker does several (10)",
    )
    parser.add_argument(
        "--forks", type=int, default=None, help="of ansible (as many as there are hosts)"
    )
    arguments = parser.parse_args(words)
    arguments.parts = arguments.parts or list(_PARTS)
    unknown = sorted({*arguments.parts} - {*_PARTS})
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {' and '.join(_PARTS)}")
    return arguments
