"""nftables as objects of a plan: a table that is there from the first use on, and the elements that are attachments.

An element's comment is its attachment's tag (cnikit.ownership), so that DEL and GC find it by itself and whoever lists
the ruleset sees whose it is. A tag with UNLINKED behind it belongs to an attachment whose interface another suite made.
"""

from __future__ import annotations

from cnikit import ownership
from cnikit.netlink import nftables
from cnikit.objects import HOST, Make, Object, Remove, is_grouped
from cnikit.ownership import UNLINKED
from cnikit.plan import Add, Del

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cnikit.errors import CniError
    from cnikit.netlink.codec import Message
    from cnikit.netlink.nftables import Element, Rule, Table
    from cnikit.objects import Change, World
    from cnikit.plan import Step
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

    def impossible(self, world: World) -> CniError | None:
        return world[self.where].table_fault(self.table)


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
        if found is None or self._bounds(found) != self._bounds(self.element):
            return f"nftables: there is no {self._text()}"
        if found.data != self.element.data:
            return f"nftables: {self._text()} leads to {' . '.join(found.data)}, not {' . '.join(self.element.data)}"
        is_served = owner(self.element) in owners(found) or not self._in_place_of(found, world)
        return "" if is_served else f"nftables: {self._text()} belongs to {found.comment}"

    def _bounds(self, element: Element) -> list[tuple[bytes, bytes]]:
        """Return first and last value of each word: an interval is found by any key that lies in it."""
        return list(map(nftables.encoded, self.table.set(self.name).key, element.key))

    def changes(self, world: World) -> Sequence[Change]:
        found = world[self.where].element(self.table, self.element)
        return (Make(self),) if found is None else self._in_place_of(found, world)

    def _in_place_of(self, found: Element, world: World) -> Sequence[Change]:
        """Return what makes it where its key is taken."""
        removal, living = Remove(self.replace(element=found)), self._living_owners(found, world)
        if found.data or not living:
            # The key, mostly a container's address, is no longer its former owner's: IPAM says whose it is.
            return (removal, Make(self))
        if len(living) == 2:
            return ()  # A third has the same address: its entry serves as long as one of the two is there.
        return (removal, Make(self.replace(element=found.replace(comment=living[0], also=self.element.comment))))

    def _living_owners(self, found: Element, world: World) -> list[str]:
        """Return the tags of other networks' attachments that an element belongs to and that may be alive."""
        tags = (found.comment, found.also)
        return [tag for tag in tags if tag and is_alive_elsewhere(tag, self.element.comment, world)]

    def removals(self, world: World) -> Sequence[Change]:
        found = world[self.where].element(self.table, self.element)
        ours = owner(self.element)
        if found is None or not found.also or ours not in owners(found):
            return (Remove(self),)
        return [step.change() for step in taken_from(found, self.table, lambda tag: tag.removesuffix(UNLINKED) == ours)]


class Pair(Member):
    """A container's address and a subnet, in a set of intervals that has such a pair with the address's own subnet too.

    The subnets of an address must not overlap. Those of an earlier ADD do where the configuration has changed since.
    """

    def changes(self, world: World) -> Sequence[Change]:
        address = self.element.key[0]
        host = world[self.where]
        if host.element(self.table, self.element.replace(key=(address, address))) is None:
            return (Make(self),)
        listed = [element for element in host.elements(self.table, "") if element.set == self.name]
        found = [element for element in listed if self._overlaps(element)]
        for element in found:
            if self._bounds(element) == self._bounds(self.element):
                return self._in_place_of(element, world)
        if any(self._living_owners(element, world) for element in found):
            return ()  # Another network's container with this address has a subnet that is nearly ours.
        return (*(Remove(self.replace(element=element)) for element in found), Make(self))

    def _overlaps(self, element: Element) -> bool:
        bounds = zip(self._bounds(element), self._bounds(self.element), strict=True)
        return all(first <= end and start <= last for (first, last), (start, end) in bounds)


def pair(table: Table, name: str, address: str, subnet: str, comment: str) -> Pair:
    """Return such a pair as an object."""
    return Pair(HOST, name, table, nftables.Element(name, (address, subnet), (), comment))


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


def whose_to_remove(request: Request, world: World) -> Callable[[str], bool]:
    """Return what tells of a comment whether what has it is to go, by DEL or GC."""
    whose = ownership.outdated(request)
    if not ownership.keeps_living(request):
        return whose
    return lambda comment: whose(comment) and (comment.endswith(UNLINKED) or not is_alive(comment, world))


def owners(element: Element) -> tuple[str, ...]:
    """Return the tags of all attachments an element belongs to."""
    return tuple(tag.removesuffix(UNLINKED) for tag in (element.comment, element.also) if tag)


def is_alive(comment: str, world: World) -> bool:
    """Tell whether an element's owner may be alive, by its comment: a link has its tag, or no link of ours ever had."""
    if comment.endswith(UNLINKED):
        return True
    links = [world[HOST].link(name) for name in ownership.names_of(comment)]
    return any(link and link.alias == comment for link in links)


def is_alive_elsewhere(comment: str, mine: str, world: World) -> bool:
    """Tell whether the owner of an entry under an address may be alive, and have that address still.

    A network that gives an address has it from no other attachment any more, whatever else is left of that one.
    """
    return not ownership.same_network(comment, mine) and is_alive(comment, world)


def taken_from(element: Element, table: Table, whose: Callable[[str], bool]) -> list[Step]:
    """Return the steps that take an element from those owners; a second one keeps it."""
    left = [tag for tag in (element.comment, element.also) if tag and not whose(tag)]
    if element.comment in left and element.also in (*left, ""):
        return []
    kept = [element.replace(comment=tag, also="") for tag in left]
    return [
        Del(Member(HOST, element.set, table, element)),
        *(Add(Member(HOST, one.set, table, one)) for one in kept),
    ]


def has_table(table: Table, world: World) -> bool:
    """Tell whether the host has a table, of ours or another suite's."""
    return (table.family, table.name) in world[HOST].tables()


def outdated(tables: Iterable[Table], request: Request, world: World) -> list[Step]:
    """Return the steps that take away the elements DEL, or GC, is to. Where no such table is, one look says so."""
    network = request.attachment.network
    prefixes = ownership.network_tags(network) if request.verb == "GC" else ownership.tags(request.attachment)
    return tagged(tables, prefixes, whose_to_remove(request, world), world)


def tagged(tables: Iterable[Table], prefixes: Iterable[str], whose: Callable[[str], bool], world: World) -> list[Step]:
    """Return the steps that take the elements of tables from those owners; their tags begin with one of prefixes."""
    found = {
        (table, element): None
        for table in tables
        if has_table(table, world)
        for prefix in dict.fromkeys(prefixes)
        for element in world[HOST].elements(table, prefix)
    }
    return [step for table, element in found for step in taken_from(element, table, whose)]
