"""What a plugin is: its answer to each verb."""

from __future__ import annotations

from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cnikit.request import Request
    from cnikit.result import IP, Result


class Plugin(Value):
    """A plugin's verbs. Each raises CniError when it fails; DEL and GC finish what they can first.

    repair is none of the protocol's: with the request a CHECK would be, it puts back what is gone and no interface,
    and returns the command lines of that. expected is an ipam plugin's: what its next ADD may give, as far as it can be
    told before; each is the addresses of one ADD. tags_links: each attachment has a link on the host that carries its
    tag.
    """

    name: str
    add: Callable[[Request], Result]
    delete: Callable[[Request], None]
    check: Callable[[Request], None]
    gc: Callable[[Request], None]
    status: Callable[[Request], None]
    repair: Callable[[Request], tuple[str, ...]] = lambda _: ()
    expected: Callable[[Request], Iterable[tuple[IP, ...]]] = lambda _: ((),)
    tags_links: bool = False

    def serve(self, request: Request) -> Result | None:
        """Run the verb the request asks for; only ADD has a result."""
        verbs = {"DEL": self.delete, "CHECK": self.check, "GC": self.gc, "STATUS": self.status}
        if request.verb == "ADD":
            return self.add(request)
        verbs[request.verb](request)
        return None
