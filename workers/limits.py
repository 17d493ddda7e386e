"""What the system allows a process: open files for connections to every host, and no core dump."""

import ctypes
import logging
import resource

logger = logging.getLogger(__name__)

# The SSH connection, and a second one where sudo is needed; the tunnel to libvirt with its listener
# and both its ends, libvirt's own pipe, and some to spare.
_PER_HOST = 8
# Temporal, the database, logs, and what `hostler up` has besides.
_BESIDES = 256


_PR_SET_DUMPABLE = 4  # linux/prctl.h


def keep_memory_private() -> None:
    """No core dump of this process, which would have master keys and passwords in it, and no look
    into its memory or its environment by others of the same account: root alone may (prctl(2)).
    Programs that it starts leave no core either."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


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
