"""Sources of firewalld's zones, as objects of a plan."""

from __future__ import annotations

from cnikit import spec
from cnikit.errors import CniError
from cnikit.objects import Object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnikit.objects import World


class ZoneSource(Object):
    """An address ("10.88.0.5/32") that is a source of firewalld's zone name, and so has the zone's rules."""

    transaction = "firewalld"
    mendable = True

    cidr: str

    def command(self) -> str:
        return f"firewall-cmd --zone={self.name} --add-source={self.cidr}"

    def removal(self) -> str:
        return f"firewall-cmd --zone={self.name} --remove-source={self.cidr}"

    def fault(self, world: World) -> str:
        has = world[self.where].has_source(self.name, self.cidr)
        return "" if has else f"firewalld: {self.cidr} is no source of zone {self.name}"

    def conflict(self, world: World) -> CniError | None:
        if not self.fault(world):
            return None
        holder = world[self.where].zone_of(self.cidr)
        return self.taken(holder) if holder else None

    def taken(self, holder: str) -> CniError:
        """Return the error when it is another zone's source."""
        return CniError(
            spec.INVALID_CONFIG,
            f"firewalldZone: {self.cidr} is a source of zone {holder} and cannot be one of {self.name} too",
            f"if nobody needs it there: {self.replace(name=holder).removal()}",
        )
