"""The lab of Hostler, in the standard library alone: it runs before anything is installed.

`paths` names every place, `shell` runs commands, `processes` and `cgroups` know which process is
ours, `image` builds and caches what hosts and guests boot from, `host` is one lab host,
`supervisor` boots it again when it reboots, `bmc` switches its power through IPMI, `guests` are the
machines on it, `machine` is what exists once per computer (lock, owner, bridge), `cli` is the `lab`
command.
"""
