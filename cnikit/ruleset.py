"""nftables as objects of a plan: a table that is there from the first use on, and the elements that are attachments.

An element's comment is its attachment's tag (cnikit.ownership), so that DEL and GC find it by itself and whoever lists
the ruleset sees whose it is. A tag with UNLINKED behind it belongs to an attachment whose interface another suite made.
"""

from __future__ import annotations

from cnikit import ownership
from cnikit.netlink import nftables
from cnikit.objects import HOST, Make, Object, Remove, is_grouped
from cnikit.ownership import UNLINKED
from cnikit.plan import Del

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cnikit.netlink.codec import Message
    from cnikit.netlink.nftables import Element, Rule, Table
    from cnikit.objects import Change, World
    from cnikit.request import Request


class Ruleset(Object):
    """A table with its sets, chains and rules; name is the table's."""

    table: Table
    transaction = "nftables"
    mendable = True

    def command(self) -> str:
        return f"nft -f - <<'END'\n{nftables.written(self.table)}END"

    def fault(self, world: World) -> str:
        found = world[self.where].rules(self.table)
        for chain in self.table.chains:
            wanted = [rule.comment for rule in chain.rules]
            if not chain.open and [comment for name, comment in found if name == chain.name] != wanted:
                lacking = f"has not the rules it should in chain {chain.name}" if found else "is gone, or empty"
                return f"nftables: table {self.table.family} {self.table.name} {lacking}"
        return ""


class Appended(Object):
    """A rule at the end of a chain that is others'; name is the chain's. A chain the rule jumps to is made as well."""

    table: Table
    rule: Rule
    transaction = "nftables"
    mendable = True

    def command(self) -> str:
        verb, _, chain = self.rule.text.partition(" ")
        place = f"{self.table.family} {self.table.name}"
        made = f"add chain {place} {chain}; " if verb == "jump" else ""
        return f"nft '{made}add rule {place} {self.name} {self.rule.text} comment \"{self.rule.comment}\"'"

    def fault(self, world: World) -> str:
        if (self.name, self.rule.comment) in world[self.where].rules(self.table):
            return ""
        return f"nftables: {self.table.family} {self.table.name} {self.name} has not the rule: {self.rule.text}"

    def messages(self) -> list[Message]:
        """Return what makes it."""
        from cnikit.netlink import nftrules

        verb, _, chain = self.rule.text.partition(" ")
        made = [nftrules.new_chain(self.table, nftables.Chain(chain))] if verb == "jump" else []
        return [*made, nftrules.new_rule(self.table, self.name, self.rule)]


class Foreign(Object):
    """Rules of another suite's, to be deleted; name is their chain. Their comments begin so, or are so as a whole."""

    table: Table
    comment: str
    whole: bool = False
    transaction = "nftables"

    def removal(self) -> str:
        place = f"{self.table.family} {self.table.name} {self.name}"
        return f"# delete the rules of {place} with the comment {self.comment}: nft -a list chain {place}"

    def matches(self, comment: str) -> bool:
        """Tell whether a rule with that comment is one."""
        return comment == self.comment if self.whole else comment.startswith(self.comment)


class Member(Object):
    """An element of a set; name is the set's."""

    table: Table
    element: Element
    transaction = "nftables"
    mendable = True

    def _text(self, data: str = "") -> str:
        kinds = self.table.set(self.name).key
        words = (f'"{word}"' if kind == "ifname" else word for kind, word in zip(kinds, self.element.key, strict=True))
        return f"element {self.table.family} {self.table.name} {self.name} {{ {' . '.join(words)}{data} }}"

    def command(self) -> str:
        data = f" : {' . '.join(self.element.data)}" if self.element.data else ""
        comment = f' comment "{self.element.comment}"'
        return f"nft add '{self._text(comment + data)}'"

    def removal(self) -> str:
        return f"nft delete '{self._text()}'"

    def fault(self, world: World) -> str:
        found = world[self.where].element(self.table, self.element)
        if found is None:
            return f"nftables: there is no {self._text()}"
        if found.data != self.element.data:
            return f"nftables: {self._text()} leads to {' . '.join(found.data)}, not {' . '.join(self.element.data)}"
        return "" if owner(found) == owner(self.element) else f"nftables: {self._text()} belongs to {found.comment}"

    def changes(self, world: World) -> Sequence[Change]:
        # Whoever had the key before, mostly a container's address, has it no more: IPAM says who does.
        found = world[self.where].element(self.table, self.element)
        return (Make(self),) if found is None else (Remove(self.replace(element=found)), Make(self))


class Recent(Member):
    """An element that attachments of earlier builds do not have: CHECK does not ask for it, and repair makes it.

    port: a guarded one, of which CHECK asks for it all the same; "" without.
    """

    port: str = ""

    def is_checked(self, world: World) -> bool:
        return bool(self.port) and is_grouped(self.where, self.port, world)


def member(table: Table, name: str, key: tuple[str, ...], data: tuple[str, ...], comment: str) -> Member:
    """Return an element as an object."""
    return Member(HOST, name, table, nftables.Element(name, key, data, comment))


def owner(element: Element) -> str:
    """Return the tag of the attachment an element belongs to."""
    return element.comment.removesuffix(UNLINKED)


def outdated(tables: Iterable[Table], request: Request, world: World) -> list[Del]:
    """Return the steps that take away the elements DEL, or GC, is to."""
    whose, network = ownership.outdated(request), request.attachment.network
    prefixes = ownership.network_tags(network) if request.verb == "GC" else ownership.tags(request.attachment)
    return [
        Del(Member(HOST, element.set, table, element))
        for table in tables
        for prefix in dict.fromkeys(prefixes)
        for element in world[HOST].elements(table, prefix)
        if whose(element.comment)
    ]
