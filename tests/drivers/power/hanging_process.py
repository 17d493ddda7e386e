"""drivers.power.ipmi_process with the defect that it keeps clear of: user and password as texts.

For BMCs whose user is `hang`, pyghmi gets them so, twice. The first login stays among those that
begin for ever, since pyghmi looks for it by the bytes; the second waits for the first.
"""

from typing import Any

from pyghmi.ipmi.private import session as pyghmi

from drivers.power import ipmi_process


class Hanging(ipmi_process.Session):
    def __new__(cls, bmc: ipmi_process.Bmc, on_login: Any) -> Any:
        if bmc.key.user == "hang":
            where, port = bmc.key.address, bmc.key.port
            pyghmi.Session(where, bmc.key.user, bmc.key.password, port=port, onlogon=print)
            pyghmi.Session(where, bmc.key.user, bmc.key.password, port=port)
        return super().__new__(cls, bmc, on_login)


if __name__ == "__main__":
    ipmi_process.Session = Hanging  # type: ignore[misc]
    ipmi_process.main()
