"""Published ports that further conditions are set for, in nft's own words: rules that nft(8) is given to read.

Everything else portmap has in nftables is an element of a map; these are rules of the chains conditional4 and
conditional6, which come first. They are found by their comment, the owner's tag.
"""

from __future__ import annotations

from cnikit.address import format_ip
from cnikit.errors import invalid_config
from cnikit.objects import HOST, Object
from cnikit.ruleset import Foreign

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnikit.errors import CniError
    from cnikit.hostports import Mapping
    from cnikit.netlink.nftables import Table
    from cnikit.objects import World


class Conditional(Object):
    """Rules of one attachment and family; name is their chain, key the configuration's that has the conditions."""

    table: Table
    rules: tuple[str, ...]
    comment: str
    key: str
    transaction = "nft"
    mendable = True

    def command(self) -> str:
        return "".join(f"nft '{line}'\n" for line in self.text().splitlines()).rstrip()

    def text(self) -> str:
        """Return what nft is given."""
        place = f"{self.table.family} {self.table.name} {self.name}"
        return "".join(f'add rule {place} {rule} comment "{self.comment}"\n' for rule in self.rules)

    def foreign(self) -> Foreign:
        """Return the rules as what is deleted by its comment."""
        return Foreign(HOST, self.name, self.table, self.comment, whole=True)

    def removal(self) -> str:
        return self.foreign().removal()

    def fault(self, world: World) -> str:
        there = list(world[self.where].rules(self.table)).count((self.name, self.comment))
        if there >= len(self.rules):
            return ""
        return f"nftables: {self.table.name} {self.name} has {there} of the {len(self.rules)} rules of {self.comment}"

    def conflict(self, world: World) -> CniError | None:
        fault = world[self.where].unreadable(self.rules)
        return invalid_config(self.key, "nft does not understand the conditions", fault) if fault else None


def rules(conditions: Iterable[str], mappings: Iterable[Mapping], packed: bytes) -> tuple[str, ...]:
    """Return the rules that lead ports to a container's address, under conditions. Raises CniError."""
    family, inside = ("ip", format_ip(packed)) if len(packed) == 4 else ("ip6", f"[{format_ip(packed)}]")
    words = " ".join(conditions)
    if any(character in words for character in "\n\r;#"):
        raise invalid_config("conditionsV4" if family == "ip" else "conditionsV6", "more than one rule's conditions")
    made = []
    for mapping in mappings:
        address = f"{family} daddr {mapping.one_address()} " if mapping.one_address() else ""
        port = f"meta l4proto {mapping.protocol} th dport {mapping.host_port}"
        made.append(f"{words} {address}{port} dnat {family} to {inside}:{mapping.container_port}")
    return tuple(made)
