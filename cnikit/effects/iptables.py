"""The iptables rules of one network namespace: read with iptables-save, changed with iptables-restore.

A family's changes are one iptables-restore. Between reading and changing it nobody of ours may change the same, so a
lock is held; who else changes it meanwhile makes the restore fail, whole, and then all is read again. Whether the
programs are those of nftables or the legacy ones makes no difference here.
"""

from __future__ import annotations

import posix

from cnikit import spec
from cnikit.effects import limit, locks, netns, process
from cnikit.errors import CniError
from cnikit.iptables import PROGRAMS, Rules, saved, written
from cnikit.objects import Make, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnikit.iptables import Chains
    from cnikit.objects import Change

ECANCELED = 125
LOCK = "/run/cnikit-iptables.lock"
_FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
_TRIES = 5
# Bytes that iptables-save says of a table: 50,000 rules, say, which take 64 MiB of memory when they are read.
MOST = 8 << 20


class Iptables:
    """The rules of the namespace open as fd, with None of the process's own; variant "-legacy" is the old kind's."""

    def __init__(self, fd: int | None, variant: str = "") -> None:
        self._fd = fd
        # A host may have the old kind under its usual name only.
        self._variant = variant if _found(f"{PROGRAMS[4]}{variant}-save") else ""
        self._read: dict[tuple[int, str], Chains] = {}

    def chains(self, version: int, table: str) -> Chains:
        """Return the rules of each chain of a table; none of a family this host does not have. Raises CniError."""
        key = (version, table)
        if key not in self._read:
            self._read[key] = {} if _is_absent(version) else self._save(version, table)
        return self._read[key]

    def _save(self, version: int, table: str) -> Chains:
        program = f"{PROGRAMS[version]}{self._variant}-save"
        status, out, err = self._run(program, ("-t", table), "")
        tables = {} if status else saved(out)
        # Where nft has made rules that iptables has no words for, it ends well with a comment for an answer.
        if status or (out and table not in tables):
            raise CniError(spec.KERNEL_REFUSED, f"{program} -t {table}: {_ending(status, err or out)}")
        return tables.get(table, {})

    def change(self, changes: Sequence[Change]) -> list[Refusal | None]:
        """Do these, those of a family with one iptables-restore. See objects.Namespace.

        When it fails, nothing of that family is done, nor of those after it. Before anything is touched CniError is
        raised: 7 when something is to be made and there is no program to do it with, 11 when the lock is not to be had.
        """
        families: dict[int, list[Change]] = {}
        for change in changes:
            families.setdefault(_version(change), []).append(change)
        if any(isinstance(change, Make) for change in changes):
            for version in families:
                find(f"{PROGRAMS[version]}{self._variant}-restore")
        faults: dict[int, str] = {}
        with locks.Locked(LOCK):
            for version, together in families.items():
                faults[version] = self._settle(version, together)
                if faults[version]:
                    break
        return _outcomes(changes, faults)

    def _settle(self, version: int, changes: Sequence[Change]) -> str:
        """Do a family's changes; say why they cannot be done, "" when they are."""
        try:
            return self._try(version, changes)
        except CniError as e:
            return str(e)
        finally:
            self._read.clear()

    def _try(self, version: int, changes: Sequence[Change]) -> str:
        """Read and change, again and again where what was read is no longer so."""
        fault, before = "", None
        for _ in range(_TRIES):
            self._read.clear()
            tables = {change.what.name: self.chains(version, change.what.name) for change in changes}
            text = written(changes, tables)
            if not text:
                return ""
            if tables == before:
                break
            fault, before = self._restore(version, text), tables
            if not fault:
                break
        return fault

    def _restore(self, version: int, text: str) -> str:
        program = f"{PROGRAMS[version]}{self._variant}-restore"
        # xtables has a lock of its own, which kube-proxy may hold for several seconds.
        patience = max(1, int(limit.share() * 0.9))
        status, _, err = self._run(program, ("--noflush", "-w", str(patience)), text)
        return _ending(status, err) if status else ""

    def _run(self, program: str, arguments: Sequence[str], stdin: str) -> tuple[int, str, str]:
        path, environ = find(program), {"PATH": ":".join(_folders())}
        given = stdin.encode("utf-8", "backslashreplace")
        try:
            with netns.Inside(self._fd):
                status, *said = process.run(path, [program, *arguments], environ, given, limit.share(), MOST)
        except OSError as e:
            raise CniError(spec.KERNEL_REFUSED, f"{path}: {e.strerror}") from None
        out, err = (text.decode("utf-8", "backslashreplace") for text in said)
        return status, out, err


def _version(change: Change) -> int:
    if not isinstance(change.what, Rules):
        raise TypeError(f"{change.what} is nothing of iptables'")
    return change.what.version


def _outcomes(changes: Sequence[Change], faults: dict[int, str]) -> list[Refusal | None]:
    """Answer for each change, given the faults of the families that were tried: at most the last one has one."""
    told = False
    outcomes: list[Refusal | None] = []
    for change in changes:
        fault = faults.get(_version(change))
        if fault == "":
            outcomes.append(None)
        elif fault and not told:
            outcomes.append(Refusal(0, fault))
            told = True
        else:
            outcomes.append(Refusal(ECANCELED, ""))
    return outcomes


def _ending(status: int, said: str) -> str:
    """Put what a program said in one line."""
    lines = [line.strip() for line in said.split("\n")]
    how = f"exit status {status}" if status >= 0 else f"signal {-status}"
    return "; ".join(line for line in (*lines, how) if line)


def has_legacy() -> bool:
    """Tell whether there is a program for the legacy tables, under whatever name."""
    if _found("iptables-legacy-save"):
        return True
    path = _found("iptables")
    return bool(path) and b"(legacy)" in process.run(path, ["iptables", "-V"], {}, b"", limit.share())[1]


def fault(version: int, variant: str) -> CniError | None:
    """Return why a family's rules cannot be made, None when there is a program that can, or no such family here."""
    try:
        if not _is_absent(version):
            find(f"{PROGRAMS[version]}{variant}-restore")
    except CniError as e:
        return e
    return None


def find(program: str) -> str:
    """Return the file of a program. Raises CniError (7)."""
    path = _found(program)
    if not path:
        raise CniError(
            spec.INVALID_CONFIG,
            f'the backend "iptables" needs {program}, which is not in {":".join(_folders())}',
            'install the package iptables, or choose "nftables", which needs no program',
        )
    return path


def _found(program: str) -> str:
    paths = (f"{folder}/{program}" for folder in _folders())
    return next((path for path in paths if posix.access(path, posix.X_OK)), "")


def _folders() -> list[str]:
    """Return where to look for programs: runtimes may call with any PATH, or none."""
    given = posix.environ.get(b"PATH", b"").decode("utf-8", "surrogateescape").split(":")
    return list(dict.fromkeys((*(folder for folder in given if folder.startswith("/")), *_FOLDERS)))


def _is_absent(version: int) -> bool:
    """Tell whether this host has no such family: its kernel no IPv6, or only the other one's programs are there."""
    if version == 6 and not posix.access("/proc/net/if_inet6", posix.F_OK):
        return True
    here, other = (_found(f"{program}-save") for program in (PROGRAMS[version], PROGRAMS[4 if version == 6 else 6]))
    return bool(other and not here)
