"""Who may run beside whom: the exclusion that the specification demands of a runtime, between processes and threads.

"The container runtime must not invoke parallel operations for the same container, but is allowed to invoke parallel
operations for different containers. This includes across multiple attachments. Exception: The runtime must exclusively
execute either gc or add and delete." -- specification section 2, "Lifecycle & Ordering"

Locks are files under flock(2):

    /var/lib/cni/locks/      in the cache's folder, and beside results, where libcni would read them
        network-NAME         shared by what is about one container, held alone by what is about all of a network
        next-NAME            held alone while one of them waits for the former
        container-ID         held alone by what is about that container, on whatever network

next-NAME is what keeps a steady stream of ADDs from shutting out GC: who waits to be alone has it, and those who come
later wait behind him. The network's lock is taken before the container's, and never two of a kind, so nobody waits for
one who waits for him. The plugins that are run hold the locks too: they go on when their runtime is killed. Who held a
lock alone removes its file, so what stays is one for each network, at most.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
from pathlib import Path
from time import monotonic, sleep

from cnikit import spec
from cnikit.effects import files
from cnikit.effects.locks import holder
from cnikit.errors import CniError

# Seconds. Verbs of plugins take milliseconds; one that waits for something gives up after half of that.
PATIENCE = 60.0


class Exclusion:
    """Locks in a folder. Raises CniError: 11 for one that is not to be had in patience seconds, 5 for a bad folder."""

    def __init__(self, folder: str | Path, patience: float = PATIENCE) -> None:
        self._folder = Path(folder)
        self._patience = patience
        self._thread = threading.local()

    @contextmanager
    def beside_others(self, network: str, container: str) -> Iterator[None]:
        """Run what is about one container of a network: beside others' verbs, not beside what is about the network."""
        until = monotonic() + self._patience
        with self._network(network, LOCK_SH, until), self._locked(f"container-{container}", LOCK_EX, until):
            yield

    @contextmanager
    def alone(self, network: str) -> Iterator[None]:
        """Run what is about all of a network: when nothing else is run on it."""
        with self._network(network, LOCK_EX, monotonic() + self._patience):
            yield

    @contextmanager
    def of_container(self, container: str) -> Iterator[None]:
        """Run what is about one container, where one is alone on its network."""
        with self._locked(f"container-{container}", LOCK_EX, monotonic() + self._patience):
            yield

    def held(self) -> tuple[int, ...]:
        """Return the descriptors of this thread's locks, for the plugins it runs to hold them too."""
        return tuple(self._held())

    def _held(self) -> list[int]:
        held: list[int] = self._thread.__dict__.setdefault("held", [])
        return held

    @contextmanager
    def _network(self, name: str, how: int, until: float) -> Iterator[None]:
        with ExitStack() as held:
            with self._locked(f"next-{name}", LOCK_EX, until):
                held.enter_context(self._locked(f"network-{name}", how, until))
            yield

    @contextmanager
    def _locked(self, name: str, how: int, until: float) -> Iterator[None]:
        path = self._folder / name
        try:
            files.make_folder(str(self._folder), 0o700)
            fd = self._wait_for(path, how, until)
        except OSError as e:
            raise CniError(spec.IO_FAILURE, f"{path}: {e.strerror}", "it is a lock") from None
        self._held().append(fd)
        try:
            yield
        finally:
            self._held().remove(fd)
            try:
                if how == LOCK_EX:
                    path.unlink(missing_ok=True)
            except OSError:
                pass  # It stays, and is as good a lock for the next one.
            # Closing would not be enough: what a plugin left running has the descriptor as well.
            flock(fd, LOCK_UN)
            os.close(fd)

    def _wait_for(self, path: Path, how: int, until: float) -> int:
        pause = 0.001
        while True:
            fd = files.make(str(path), os.O_RDWR)
            try:
                if _try(fd, how) and _is_there(path, fd):
                    return fd
                if monotonic() > until:
                    why = f"waited {self._patience:.3g} s for it"
                    raise CniError(spec.TRY_AGAIN, f"{path} is locked by {holder(fd)}", why)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            sleep(pause)
            pause = min(2 * pause, 0.02)


def _try(fd: int, how: int) -> bool:
    try:
        flock(fd, how | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_there(path: Path, fd: int) -> bool:
    """Tell whether a file is still there under its name: who held it before may have removed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
