"""An nftables ruleset in memory: tables with their rules' comments, and elements by their keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cnikit.netlink.nftables import Element, Table, encoded
from cnikit.objects import Change, Refusal, Remove
from cnikit.ruleset import Appended, Foreign, Member, Ruleset

ENOENT, EEXIST, ECANCELED = 2, 17, 125


def _find(elements: Iterable[Element], kinds: Sequence[str], key: Sequence[bytes]) -> Element | None:
    """Return the element that a key lies in."""
    for element in elements:
        ends = [encoded(kind, word) for kind, word in zip(kinds, element.key, strict=True)]
        if all(low <= value <= high for value, (low, high) in zip(key, ends, strict=True)):
            return element
    return None


class FakeNftables:
    """What cnikit.effects.nftables does with a kernel."""

    def __init__(self) -> None:
        self.comments: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self.held: dict[tuple[str, str, str], dict[tuple[str, ...], Element]] = {}
        self.dropping: dict[str, list[tuple[str, str, str]]] = {}

    def tables(self) -> set[tuple[str, str]]:
        return set(self.comments)

    def rules(self, table: Table) -> list[tuple[str, str]]:
        return list(self.comments.get((table.family, table.name), []))

    def element(self, table: Table, wanted: Element) -> Element | None:
        kinds = table.set(wanted.set).key
        starts = [encoded(kind, word)[0] for kind, word in zip(kinds, wanted.key, strict=True)]
        return _find(self.held.get((table.family, table.name, wanted.set), {}).values(), kinds, starts)

    def elements(self, table: Table, prefix: str) -> list[Element]:
        return [
            element
            for found in table.sets
            for element in self.held.get((table.family, table.name, found.name), {}).values()
            if element.comment.startswith(prefix) or (prefix and element.also.startswith(prefix))
        ]

    def change(self, changes: Sequence[Change]) -> list[Refusal | None]:
        before = {place: dict(elements) for place, elements in self.held.items()}
        rules = {place: list(comments) for place, comments in self.comments.items()}
        errnos = [self._change(change) for change in changes]
        if not any(errnos):
            return [None for _ in changes]
        self.held, self.comments = before, rules
        return [Refusal(errno or ECANCELED, "") for errno in errnos]

    def _change(self, change: Change) -> int:
        what = change.what
        if isinstance(what, Ruleset):
            self._make(what.table)
        elif isinstance(what, Appended):
            if what.table.chains and (what.table.family, what.table.name) not in self.comments:
                self._make(what.table)
            # Where it has no chains it is others': the fake takes it to be there.
            there = self.comments.setdefault((what.table.family, what.table.name), [])
            if (what.name, what.rule.comment) not in there:
                return self.append(what.table, what.name, [what.rule.comment])
        elif isinstance(what, Foreign):
            self._delete(what)
        else:
            assert isinstance(what, Member)
            return self._member(what, isinstance(change, Remove))
        return 0

    def _delete(self, what: Foreign) -> None:
        place = (what.table.family, what.table.name)
        if place in self.comments:
            kept = [one for one in self.comments[place] if one[0] != what.name or not what.matches(one[1])]
            self.comments[place] = kept

    def append(self, table: Table, chain: str, comments: list[str]) -> int:
        """Put rules at the end of a chain of a table."""
        rules = self.comments.get((table.family, table.name))
        if rules is None:
            return ENOENT
        rules += [(chain, comment) for comment in comments]
        return 0

    def _make(self, table: Table) -> None:
        place = (table.family, table.name)
        kept = {chain.name for chain in table.chains if chain.open}
        static = [(chain.name, rule.comment) for chain in table.chains for rule in chain.rules]
        self.comments[place] = [one for one in self.comments.get(place, []) if one[0] in kept] + static
        for found in table.sets:
            self.held.setdefault((*place, found.name), {})

    def _member(self, what: Member, remove: bool) -> int:
        held = self.held.get((what.table.family, what.table.name, what.name))
        if remove:
            if held:
                held.pop(what.element.key, None)
            return 0
        if held is None:
            self._make(what.table)
            held = self.held[what.table.family, what.table.name, what.name]
        kinds = what.table.set(what.name).key
        ends = zip(*(encoded(kind, word) for kind, word in zip(kinds, what.element.key, strict=True)), strict=True)
        if any(_find(held.values(), kinds, end) for end in ends):
            return EEXIST
        held[what.element.key] = what.element
        return 0
