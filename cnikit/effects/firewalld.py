"""firewalld's zones: addresses as sources of a zone, whose rules are then theirs. Run-time configuration only.

What is bound this way is gone when firewalld reloads or restarts; CHECK tells. Addresses are compared as texts, so they
are to be written in one way, that of cnikit.address.format_cidr. Source: firewalld.dbus(5), interface
org.fedoraproject.FirewallD1.zone.
"""

from __future__ import annotations

from cnikit import spec
from cnikit.effects import systembus
from cnikit.effects.systembus import NO_OWNER, NO_REPLY, NO_SERVER, BusError
from cnikit.errors import CniError, invalid_config
from cnikit.objects import HOST, Refusal, Remove
from cnikit.zones import ZoneSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cnikit.objects import Change

NAME = "org.fedoraproject.FirewallD1"
PATH = "/org/fedoraproject/FirewallD1"

EPERM, ESRCH, EEXIST, EINVAL, ETIMEDOUT = 1, 3, 17, 22, 110


class FirewalldError(CniError):
    """What firewalld did not do, and the errno that comes nearest to why."""

    def __init__(self, errno: int, error: CniError) -> None:
        super().__init__(error.code, error.msg, error.details)
        self.errno = errno


def is_running() -> bool:
    """Tell whether firewalld runs. Raises FirewalldError (11) when there is a bus that does not answer."""
    try:
        return systembus.has_owner(NAME)
    except BusError as e:
        raise _error(e) from None


def change(changes: Sequence[Change]) -> list[Refusal | None]:
    """Make addresses sources of zones, or no longer so. See objects.Namespace."""
    outcomes: list[Refusal | None] = []
    for one in changes:
        what = one.what
        if not isinstance(what, ZoneSource):
            raise TypeError(f"{what} is nothing of firewalld's")
        try:
            (remove_source if isinstance(one, Remove) else add_source)(what.name, what.cidr)
        except FirewalldError as e:
            return [*outcomes, Refusal(e.errno, e.msg)]
        outcomes.append(None)
    return outcomes


def add_source(zone: str, cidr: str) -> None:
    """Make an address a source of a zone, which it may be already.

    Raises FirewalldError: 7 with EEXIST when it is another zone's, 7 with EINVAL when there is no such zone, 11 with
    ESRCH when firewalld does not run, 11 with ETIMEDOUT when it does not answer, 100 with EPERM for all else.
    """
    try:
        _call("addSource", zone, cidr)
    except BusError as e:
        if _word(e) == "ZONE_CONFLICT":
            raise FirewalldError(EEXIST, ZoneSource(HOST, zone, cidr).taken(zone_of(cidr))) from None
        if _word(e) != "ZONE_ALREADY_SET":
            raise _error(e, zone) from None


def remove_source(zone: str, cidr: str) -> None:
    """Make an address no source of a zone. Raises FirewalldError (11, 100) as add_source does.

    It is fine when it is none, or another zone's, when there is no such zone, and when firewalld does not run: what it
    does not know it will not make again.
    """
    try:
        _call("removeSource", zone, cidr)
    except BusError as e:
        gone = _word(e) in ("UNKNOWN_SOURCE", "ZONE_CONFLICT", "INVALID_ZONE")
        if not gone and e.name not in (NO_SERVER, *NO_OWNER):
            raise _error(e, zone) from None


def has_source(zone: str, cidr: str) -> bool:
    """Tell whether an address is a source of a zone. Raises FirewalldError as add_source does."""
    try:
        return bool(_call("querySource", zone, cidr))
    except BusError as e:
        raise _error(e, zone) from None


def zone_of(cidr: str) -> str:
    """Return the zone an address is a source of, "" when it is none's. Raises FirewalldError as add_source does."""
    try:
        return str(_call("getZoneOfSource", cidr))
    except BusError as e:
        raise _error(e) from None


def _call(member: str, *texts: str) -> Any:
    return systembus.call(NAME, PATH, f"{NAME}.zone", member, *texts)


def _word(e: BusError) -> str:
    """Return the word which firewalld's errors begin with, their code; "" when it is an error of somebody else's."""
    return e.text.partition(":")[0] if e.name == f"{NAME}.Exception" else ""


def _error(e: BusError, zone: str = "") -> FirewalldError:
    if _word(e) == "INVALID_ZONE":
        why = f"firewalld has no zone {zone!r}"
        return FirewalldError(EINVAL, invalid_config("firewalldZone", why, "firewall-cmd --get-zones lists them"))
    if e.name in (NO_SERVER, *NO_OWNER):
        do = "start it (systemctl start firewalld), or choose another backend"
        return FirewalldError(ESRCH, CniError(spec.TRY_AGAIN, "backend: firewalld is not running", do))
    if e.name == NO_REPLY:
        return FirewalldError(ETIMEDOUT, CniError(spec.TRY_AGAIN, f"firewalld: {e.text}"))
    return FirewalldError(EPERM, CniError(spec.KERNEL_REFUSED, f"firewalld: {e.text}"))
