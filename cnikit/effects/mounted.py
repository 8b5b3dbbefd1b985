"""proc and sysfs as the network namespace one is in has them, mounted for this process alone.

To open a file of /proc/sys/net the kernel walks through those of the same name in all namespaces looked into before. A
proc of one's own has been looked into by nobody. And /sys shows the network of whoever mounted it, which may be
another. What is mounted here has no place in any tree of files, and is gone when its descriptor is closed.

Where that is refused (before Linux 5.2, without CAP_SYS_ADMIN, by a container's filter) /proc and /sys serve.
"""

from __future__ import annotations

import posix

USUAL = {"proc": "/proc", "sysfs": "/sys"}


def mounted(kind: str) -> tuple[int, bool]:
    """Return the descriptor of the root of a new file system, or of the usual one, and which it is. Raises OSError."""
    try:
        from _bootloader import mount  # type: ignore[import-not-found]
    except ImportError:
        from cnikit.effects.syscalls import mount
    try:
        return mount(kind), True
    except OSError:
        return posix.open(USUAL[kind], posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC), False
