"""drivers.power.ipmi_process with keepalives each second, and sessions that are kept for six."""

from drivers.power import ipmi_process

if __name__ == "__main__":
    ipmi_process.KEEPALIVE_S = 0.5
    ipmi_process.KEEP_S = 6.0
    ipmi_process.main()
