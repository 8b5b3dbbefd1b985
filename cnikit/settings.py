"""Settings of a link, as objects of a plan: what tuning sets, and a little of what others do."""

from __future__ import annotations

from cnikit.netlink import rtnetlink
from cnikit.netlink.rtnetlink import IFF_ALLMULTI, IFF_PROMISC
from cnikit.objects import Make, Object, is_grouped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cnikit.netlink.codec import Message
    from cnikit.netlink.rtnetlink import Link
    from cnikit.objects import Change, World


class Setting(Object):
    """A setting of a link: the value it is to have, and the one it had before, which its removal puts back."""

    value: Any
    before: Any = None

    @staticmethod
    def words(value: Any) -> str:
        """Return a value as `ip link set` takes it."""
        raise NotImplementedError

    @staticmethod
    def read(link: Link) -> Any:
        """Return the value a link has."""
        raise NotImplementedError

    @staticmethod
    def written(name: str, value: Any) -> Message:
        """Return the message that gives a link a value."""
        raise NotImplementedError

    def message(self, removing: bool) -> Message:
        """Return the message that sets the value, or puts the former one back."""
        return self.written(self.name, self.before if removing else self.value)

    def changes(self, world: World) -> Sequence[Change]:
        # Some devices refuse what they have, too.
        return (Make(self),) if self.fault(world) else ()

    def command(self) -> str:
        return f"ip link set {self.word} {self.words(self.value)}"

    def removal(self) -> str:
        return f"ip link set {self.word} {self.words(self.before)}"

    def fault(self, world: World) -> str:
        link = world[self.where].link(self.name)
        if link is None:
            return f"{self.name} is gone"
        value = self.read(link)
        return "" if value == self.value else f"{self.name} has {self.words(value)}, not {self.words(self.value)}"


class Mac(Setting):
    """The MAC address, in the kernel's spelling."""

    value: str

    @staticmethod
    def words(value: str) -> str:
        return f"address {value}"

    @staticmethod
    def read(link: Link) -> str:
        return link.mac

    @staticmethod
    def written(name: str, value: str) -> Message:
        return rtnetlink.set_mac(name, bytes.fromhex(value.replace(":", "")))  # a former one may be no unicast address


class Announced(Mac):
    """The MAC address a link has, set again: the kernel tells neighbours. CHECK compares it where it was asked for."""

    asked_for: bool = False

    def changes(self, world: World) -> Sequence[Change]:
        return (Make(self),)

    def fault(self, world: World) -> str:
        return super().fault(world) if self.asked_for else ""


class Mtu(Setting):
    """The MTU, in bytes."""

    value: int

    @staticmethod
    def words(value: int) -> str:
        return f"mtu {value}"

    @staticmethod
    def read(link: Link) -> int:
        return link.mtu

    @staticmethod
    def written(name: str, value: int) -> Message:
        return rtnetlink.set_mtu(name, value)


class QueueLength(Setting):
    """The length of the transmit queue, in packets."""

    value: int

    @staticmethod
    def words(value: int) -> str:
        return f"txqueuelen {value}"

    @staticmethod
    def read(link: Link) -> int:
        return link.txqlen

    @staticmethod
    def written(name: str, value: int) -> Message:
        return rtnetlink.set_txqlen(name, value)


class Promiscuous(Setting):
    """Whether a link takes every frame."""

    value: bool = True

    @staticmethod
    def words(value: bool) -> str:
        return f"promisc {'on' if value else 'off'}"

    @staticmethod
    def read(link: Link) -> bool:
        return bool(link.flags & IFF_PROMISC)

    @staticmethod
    def written(name: str, value: bool) -> Message:
        return rtnetlink.set_flags(name, value * IFF_PROMISC, IFF_PROMISC)


class Isolated(Setting):
    """Whether a bridge's port is kept from the other ports that are."""

    value: bool = True

    @staticmethod
    def words(value: bool) -> str:
        return f"type bridge_slave isolated {'on' if value else 'off'}"

    @staticmethod
    def read(link: Link) -> bool:
        return link.isolated

    @staticmethod
    def written(name: str, value: bool) -> Message:
        return rtnetlink.set_isolated(name, value)


class Learning(Setting):
    """Whether a bridge's port learns the source addresses of the frames that come from it."""

    value: bool
    mendable = True

    @staticmethod
    def words(value: bool) -> str:
        return f"type bridge_slave learning {'on' if value else 'off'}"

    @staticmethod
    def read(link: Link) -> bool:
        return link.learning

    @staticmethod
    def written(name: str, value: bool) -> Message:
        return rtnetlink.set_learning(name, value)

    def is_checked(self, world: World) -> bool:
        return is_grouped(self.where, self.name, world)


class Group(Setting):
    """The device group a link is in, which rules of nftables can match."""

    value: int
    mendable = True

    @staticmethod
    def words(value: int) -> str:
        return f"group {value}"

    @staticmethod
    def read(link: Link) -> int:
        return link.group

    @staticmethod
    def written(name: str, value: int) -> Message:
        return rtnetlink.set_group(name, value)

    def is_checked(self, world: World) -> bool:
        return is_grouped(self.where, self.name, world)


class AllMulticast(Setting):
    """Whether a link takes every multicast frame."""

    value: bool

    @staticmethod
    def words(value: bool) -> str:
        return f"allmulticast {'on' if value else 'off'}"

    @staticmethod
    def read(link: Link) -> bool:
        return bool(link.flags & IFF_ALLMULTI)

    @staticmethod
    def written(name: str, value: bool) -> Message:
        return rtnetlink.set_flags(name, value * IFF_ALLMULTI, IFF_ALLMULTI)
