"""How many files a worker may have open: it keeps connections to every host."""

import logging
import resource

logger = logging.getLogger(__name__)

# The SSH connection, and a second one where sudo is needed; the tunnel to libvirt with its listener
# and both its ends, libvirt's own pipe, and some to spare.
_PER_HOST = 8
# Temporal, the database, logs, and what `hostler up` has besides.
_BESIDES = 256


def allow_open_files(hosts: int) -> None:
    """Take all that the system allows this process; log a warning if that is too little for so many
    hosts. The soft limit, often 1024, is there for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = _PER_HOST * hosts + _BESIDES
    if hard < needed:
        logger.warning(
            "%d open files are allowed, %d hosts may need %d: raise the hard limit (LimitNOFILE= "
            "of the systemd unit, or ulimit -Hn), then start the worker again",
            hard,
            hosts,
            needed,
        )
