"""Connection tracking of one network namespace: what it remembers of flows to ports is made forgotten."""

from __future__ import annotations

from cnikit.address import family, parse_ip
from cnikit.effects import netns, sysctl
from cnikit.effects.netlink import NETLINK_NETFILTER, Socket
from cnikit.errors import CniError
from cnikit.hostports import LEADING_ON, FlowsOf, StaleFlows
from cnikit.netlink import conntrack
from cnikit.netlink.nftables import PROTOCOLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from cnikit.netlink.conntrack import Flow
    from cnikit.objects import Change, Object, Refusal

# Reading this many entries takes as long as the kernel takes to look through its table once more (9 ms at the usual
# 262,144 buckets, whatever is in them).
_ENTRIES_PER_DUMP = 1000
# How often more flows than are listed at a time are listed and deleted.
_PARTS = 16


def change(changes: Sequence[Change], fd: int | None) -> list[Refusal | None]:
    """Make conntrack forget, in the namespace open as fd. That it cannot is no refusal: see StaleFlows."""
    try:
        with netns.Inside(fd):
            # Where nothing is tracked there is not even the sysctl.
            entries = int(sysctl.read("net/netfilter/nf_conntrack_count"))
            if entries:
                _forget([one.what for one in changes], entries)
    except (CniError, OSError):
        pass
    return [None for _ in changes]


def _forget(flows: list[Object], entries: int) -> None:
    # Together, for the kernel looks through its table for each question.
    joined: dict[StaleFlows, list[int]] = {}
    containers: dict[int, set[bytes]] = {}
    for some in flows:
        if isinstance(some, StaleFlows):
            joined.setdefault(some.replace(ports=()), []).extend(some.ports)
        elif isinstance(some, FlowsOf):
            packed = parse_ip(some.name)
            containers.setdefault(family(packed), set()).add(packed)
    tracking = Conntrack()
    try:
        for some, ports in joined.items():
            tracking.forget(some.replace(ports=tuple(ports)), entries)
        for af, addresses in containers.items():
            tracking.forget_containers(af, addresses)
    finally:
        tracking.close()


class Conntrack:
    """The entries of the namespace it is opened in."""

    def __init__(self) -> None:
        self._socket = Socket(NETLINK_NETFILTER, "conntrack")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def forget(self, flows: StaleFlows, entries: int) -> None:
        """Delete the flows' entries; entries is how many there are of all kinds. Raises CniError.

        One that is gone meanwhile, or is the kernel's to keep, is no error.
        """
        apart = len(flows.ports) == 1 or entries > _ENTRIES_PER_DUMP * len(flows.ports)
        ports, address = frozenset(flows.ports), parse_ip(flows.address) if flows.address else b""
        for port in flows.ports if apart else (0,):
            self._delete(
                lambda flow: flow.port in ports and address in (b"", flow.address),
                flows.family,
                PROTOCOLS[flows.name],
                port,
            )

    def forget_containers(self, af: int, addresses: Collection[bytes]) -> None:
        """Delete the entries of flows that are led to one of these addresses, or began there, in the same way."""
        for name in LEADING_ON:
            self._delete(lambda flow: flow.target in addresses or flow.source in addresses, af, PROTOCOLS[name])

    def _delete(self, wanted: Callable[[Flow], bool], af: int, protocol: int, port: int = 0) -> None:
        """Delete entries of a protocol, of those first sent to a port if there is one."""

        def is_wanted(body: bytes) -> bool:
            flow = conntrack.flow(body)
            # Before Linux 5.8 other protocols are listed, too.
            return flow.protocol == protocol and wanted(flow)

        for _ in range(_PARTS):
            listing = self._socket.listed(conntrack.dump(af, protocol, port), is_wanted)
            self._socket.exchange([conntrack.delete(conntrack.flow(body)) for body in listing.bodies])
            if not listing.cut:
                break
