"""What an interface was like before it was changed: a file per attachment, in the reference's own format.

    /run/cni/tuning/c1_eth0.json    0600, `dataDir`/containerID_ifname

    {
     "mac": "02:00:00:00:00:01",    these five the reference's, each there if it was changed
     "promisc": false,
     "mtu": 1500,
     "allmulti": false,
     "txQLen": 1000,
     "sysctl": {"net/ipv4/conf/eth0/arp_filter": "0"},
     "network": "net1",             whose it is: GC asks for that, and a_b_c.json can be that of two attachments
     "containerID": "c1",
     "ifname": "eth0",
     "netns": "4fb5fe2a-367f-4b24-bd99-4514d75238bb/16329",    which interface it was read from
     "index": 2,
     "failed": true                 a DEL could not put all back
    }

The reference passes over what it does not know, so a node switches over, and back, in place. A file is there whole or
not at all; one that is no backup, such as the reference leaves when it is killed, is none.
"""

from __future__ import annotations

import posix
from posix import strerror

from cnikit import jsontext, spec
from cnikit.effects import files, notes
from cnikit.effects.sysctl import is_net
from cnikit.errors import CniError
from cnikit.fields import Fields, type_name
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ENOENT, ENXIO, EACCES, ENOTDIR, EISDIR, EFBIG, ENAMETOOLONG, ELOOP = 2, 6, 13, 20, 21, 27, 36, 40
# What is no file of ours: a socket, a folder, a link, and what is too long.
_NO_FILE = (ENXIO, ENOTDIR, EISDIR, EFBIG, ENAMETOOLONG, ELOOP)


class Backup(Value):
    """Former values: of the link by configuration key, of sysctls by name (with slashes).

    The reference's has no network, container, ifname and netns, all "", and the index 0.
    """

    network: str
    container: str
    ifname: str
    netns: str  # Kernel.identity()
    index: int
    link: dict[str, Any]
    sysctl: dict[str, str]
    failed: bool = False


def path_of(folder: str, container: str, ifname: str) -> str:
    """Return where an attachment's file is."""
    return f"{folder}/{container}_{ifname}.json"


def paths(folder: str) -> list[str]:
    """Return the paths of all files that may be backups. Raises CniError (5)."""
    try:
        return [f"{folder}/{name}" for name in sorted(files.listing(folder)) if name.endswith(".json")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as e:
        raise _fault(folder, e) from None


def load(path: str) -> Backup | None:
    """Return what a file holds, None when there is none or it is no backup. Raises CniError (5).

    What another user may have put there is none: it would be set in the container by root.
    """
    try:
        posix.lstat(path)
        why = files.distrusted(path)
        if why:
            notes.say(f"{why}, so {path} is not followed")
            return None
        content = files.read(path, files.OWN)
    except OSError as e:
        if e.errno in (ENOENT, *_NO_FILE):
            return None
        raise _fault(path, e) from None
    try:
        return _decoded(content)
    except (ValueError, CniError):
        return None


def save(path: str, backup: Backup) -> None:
    """Write the file, in place of one that is there. Raises CniError (5), and then that one is as it was."""
    try:
        _write(_new(path), _encoded(backup))
        if why := files.distrusted(_new(path)):
            raise OSError(EACCES, why)
        posix.rename(_new(path), path)
    except OSError as e:
        try:
            _remove(_new(path))
        except CniError:
            pass  # The first fault is the one to tell.
        raise _fault(path, e) from None


def forget(path: str) -> None:
    """Remove the file, and what a killed save() left beside it; neither there is fine. Raises CniError (5)."""
    _remove(_new(path))
    _remove(path)


def _new(path: str) -> str:
    return f"{path}.new"


def _fault(path: str, e: OSError) -> CniError:
    why = e.strerror or strerror(e.errno or 0)
    return CniError(spec.IO_FAILURE, f"{path}: {why}", "dataDir says where an interface's former values are kept")


def _mac(text: str) -> str:
    return bytes.fromhex(text.replace(":", "")).hex(":")


LINK: dict[str, Callable[[Fields, str], Any]] = {
    "mac": lambda f, key: f.parsed(key, _mac),
    "promisc": Fields.boolean,
    "mtu": Fields.integer,
    "allmulti": Fields.boolean,
    "txQLen": Fields.integer,
}


def _decoded(content: bytes) -> Backup:
    raw = jsontext.decode(content)
    if not isinstance(raw, dict):
        raise ValueError(f"expected object, got {type_name(raw)}")
    f = Fields(raw)
    link = {key: read(f, key) for key, read in LINK.items() if f.raw(key) not in (None, "")}
    # Not by Fields, to which names in upper and lower case are the same.
    sysctl = f.raw("sysctl") or {}
    if not isinstance(sysctl, dict) or not all(is_net(k) and isinstance(v, str) for k, v in sysctl.items()):
        raise f.invalid("sysctl", "expected strings by names of net's sysctls")
    return Backup(
        network=f.string("network"),
        container=f.string("containerID"),
        ifname=f.string("ifname"),
        netns=f.string("netns"),
        index=f.integer("index"),
        link=link,
        sysctl=sysctl,
        failed=f.boolean("failed"),
    )


def _encoded(backup: Backup) -> bytes:
    whole = {
        **backup.link,
        "sysctl": backup.sysctl,
        "network": backup.network,
        "containerID": backup.container,
        "ifname": backup.ifname,
        "netns": backup.netns,
        "index": backup.index,
        **({"failed": True} if backup.failed else {}),
    }
    return jsontext.encode(whole, indent=1).encode()


def _write(path: str, content: bytes) -> None:
    flags = posix.O_WRONLY | posix.O_TRUNC
    try:
        fd = files.make(path, flags)
    except FileNotFoundError:
        files.make_folder(path.rpartition("/")[0])
        fd = files.make(path, flags)
    try:
        files.write(fd, content)
    finally:
        posix.close(fd)


def _remove(path: str) -> None:
    try:
        posix.unlink(path)
    except IsADirectoryError:
        return  # It is no file of ours.
    except OSError as e:
        # On a read-only file system even what is not there cannot be removed.
        if _is_there(path):
            raise _fault(path, e) from None


def _is_there(path: str) -> bool:
    try:
        posix.lstat(path)
    except OSError:
        return False
    return True
