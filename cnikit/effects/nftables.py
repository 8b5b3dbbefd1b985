"""The nftables ruleset of one network namespace: read, and changed in transactions, over nfnetlink."""

from __future__ import annotations

from cnikit.effects import locks
from cnikit.effects.netlink import NETLINK_NETFILTER, NetlinkError, Socket
from cnikit.netlink import nftables
from cnikit.objects import HOST, Make, Refusal, Remove
from cnikit.ruleset import Appended, Foreign, Member, Ruleset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cnikit.netlink.codec import Message
    from cnikit.netlink.nftables import Element, Table
    from cnikit.objects import Change

LOCK = "/run/cnikit-nftables.lock"

ENOENT, ECANCELED = 2, 125
_IPTABLES = ("ip", "ip6")  # the families of its tables
_FEW = 4  # chains that are asked for by name; of more, all are listed
BEGIN, END = (nftables.boundary(kind) for kind in (nftables.NFNL_MSG_BATCH_BEGIN, nftables.NFNL_MSG_BATCH_END))


class Nftables:
    """The ruleset of the namespace it is opened in."""

    def __init__(self) -> None:
        self._socket = Socket(NETLINK_NETFILTER)
        self._tables: frozenset[tuple[str, str]] | None = None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def tables(self) -> frozenset[tuple[str, str]]:
        """Return family and name of all tables there are, as of the first time it is asked, or of the last change."""
        if self._tables is None:
            self._tables = frozenset(nftables.table_name(body) for body in self._dump(nftables.dump_tables()))
        return self._tables

    def rules(self, table: Table) -> list[tuple[str, str]]:
        """Return chain and comment of the rules of a table, none when there is no such table."""
        return [nftables.rule(body) for body in self._dump(nftables.dump_rules(table))]

    def chains_there(self, table: str, names: Collection[str]) -> set[str]:
        """Return those of these chains that an iptables table of either family has, as far as nftables keeps them."""
        families = [family for family in _IPTABLES if (family, table) in self.tables()]
        if len(names) > _FEW and families:
            listed = (nftables.chain(body) for body in self._dump(nftables.dump_chains()))
            return {one.name for one in listed if one.family in _IPTABLES and one.table == table and one.name in names}
        asked = [(family, name) for name in names for family in families]
        answers = self._socket.exchange([nftables.get_chain(family, table, name) for family, name in asked])
        return {name for (_, name), answer in zip(asked, answers, strict=True) if answer.errno == 0}

    def dropping(self, hook: str) -> list[tuple[str, str, str]]:
        """Return family, table and name of the chains on a hook that drop what they do not accept."""
        chains = [nftables.chain(body) for body in self._dump(nftables.dump_chains())]
        return [
            (one.family, one.table, one.name)
            for one in chains
            if one.family and (one.hook, one.policy) == (hook, nftables.NF_DROP)
        ]

    def elements(self, table: Table, prefix: str) -> list[Element]:
        """Return the elements of a table's sets of which an owner's tag begins so."""
        found: list[Element] = []
        for held in table.sets:
            for body in self._dump(nftables.dump_elements(table, held.name)):
                found += nftables.elements(table, held.name, body, prefix)
        return found

    def _dump(self, message: Message) -> list[bytes]:
        try:
            return self._socket.dump(message)
        except NetlinkError as e:
            if e.errno != ENOENT:
                raise
            return []

    def element(self, table: Table, wanted: Element) -> Element | None:
        """Return the element that is there under a key."""
        return next(iter(self.held([(table, wanted)])), None)

    def held(self, asked: Sequence[tuple[Table, Element]]) -> list[Element]:
        """Return what is there under these keys."""
        messages = [nftables.get_element(table, wanted.set, wanted.key) for table, wanted in asked]
        found: list[Element] = []
        for (table, wanted), answer in zip(asked, self._socket.exchange(messages), strict=True):
            if answer.errno not in (0, ENOENT):
                raise NetlinkError(answer.errno, answer.why)
            found += nftables.elements(table, wanted.set, answer.body) if answer.errno == 0 else []
        return found

    def change(self, changes: Sequence[Change]) -> list[Refusal | None]:
        """Do these as one transaction. See objects.Namespace; when one is refused, none is done.

        What is to be removed and is gone already is left out, and so is a rule to append that is there already. A
        table of ours that is gone is made with what is to be in it: the ruleset may be flushed at any time, also since
        the table was seen to be there.
        """
        if any(isinstance(change.what, Appended) for change in changes):
            # No message adds a rule only where it is not: nobody else of us may, from the look to the adding.
            with locks.Locked(LOCK):
                return self._change(changes)
        return self._change(changes)

    def _change(self, changes: Sequence[Change]) -> list[Refusal | None]:
        left = list(range(len(changes)))
        flushed: list[Table] = []
        while left:
            failed = self._commit([changes[i] for i in left], flushed)
            missing = {i for i, errno in failed.items() if errno == ENOENT and i >= 0}
            gone = {i for i in missing if _is_removal(changes[left[i]])}
            lacking = [changes[left[i]].what for i in missing - gone]
            # A table without chains is another suite's.
            ours = [what.table for what in lacking if isinstance(what, Member | Appended) and what.table.chains]
            if ours and not flushed:
                flushed = list({table.name: table for table in ours}.values())
                continue
            if failed.keys() - gone:
                errnos = {left[place] if place >= 0 else -1: errno for place, errno in failed.items()}
                return [Refusal(errnos.get(i, errnos.get(-1, ECANCELED)), "") for i in range(len(changes))]
            if not gone:
                break
            left = [i for place, i in enumerate(left) if place not in gone]
        return [None for _ in changes]

    def _commit(self, changes: Sequence[Change], flushed: Iterable[Table]) -> dict[int, int]:
        """Send a transaction that begins with the tables; return the errnos of changes that failed by place, or -1."""
        self._tables = None
        messages = [message for table in flushed for message in self._messages(Make(Ruleset(HOST, table.name, table)))]
        places = [-1] * len(messages)
        for i, change in enumerate(changes):
            made = self._messages(change)
            messages += made
            places += [i] * len(made)
        failed = self._socket.batch(BEGIN, messages, END) if messages else {}
        return {places[i] if i >= 0 else -1: errno for i, errno in failed.items()}

    def _messages(self, change: Change) -> list[Message]:
        what = change.what
        if isinstance(what, Member):
            return [(nftables.del_element if _is_removal(change) else nftables.new_element)(what.table, what.element)]
        if isinstance(what, Foreign):
            bodies = [(body, *nftables.rule(body)) for body in self._dump(nftables.dump_rules(what.table))]
            found = [body for body, chain, comment in bodies if chain == what.name and what.matches(comment)]
            return [nftables.del_rule(what.table, body) for body in found]
        if isinstance(what, Ruleset):
            from cnikit.netlink import nftrules

            return nftrules.new_table(what.table)
        if isinstance(what, Appended):
            is_there = (what.name, what.rule.comment) in self.rules(what.table)
            return [] if is_there else what.messages()
        raise TypeError(f"{what} is nothing of nftables'")


def _is_removal(change: Change) -> bool:
    return isinstance(change, Remove)
