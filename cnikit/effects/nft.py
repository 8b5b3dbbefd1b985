"""nft(8), for the one thing that is given to us in its own language: the conditions of published ports."""

from __future__ import annotations

import posix

from cnikit import spec
from cnikit.conditions import Conditional
from cnikit.effects import limit, netns, process
from cnikit.errors import CniError
from cnikit.objects import Refusal, Remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnikit.effects.nftables import Nftables, NoNftables
    from cnikit.objects import Change

_PLACES = ("/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft")


def change(changes: Sequence[Change], fd: int | None, ruleset: Nftables | NoNftables) -> list[Refusal | None]:
    """Make rules with nft, each change by itself, or delete them by their comment. See objects.Namespace."""
    outcomes: list[Refusal | None] = []
    for one in changes:
        what = one.what
        if not isinstance(what, Conditional):
            raise TypeError(f"{what} is nothing of nft's")
        if isinstance(one, Remove):
            outcomes += ruleset.change([Remove(what.foreign())])
        else:
            fault = _run(("-f", "-"), what.text(), fd)
            outcomes.append(Refusal(0, fault) if fault else None)
    return outcomes


def unreadable(rules: Sequence[str], fd: int | None) -> str:
    """Return why nft does not understand rules, "" when it does. Changes nothing."""
    lines = "".join(f"add rule inet cnikit_check check {rule}\n" for rule in rules)
    text = f"add table inet cnikit_check\nadd chain inet cnikit_check check\n{lines}"
    return _run(("-c", "-f", "-"), text, fd)


def _run(arguments: tuple[str, ...], text: str, fd: int | None) -> str:
    path = next((path for path in _PLACES if posix.access(path, posix.X_OK)), "")
    if not path:
        raise CniError(spec.INVALID_CONFIG, "conditions for published ports need nft", "install the package nftables")
    try:
        with netns.Inside(fd):
            status, _, err = process.run(path, ["nft", *arguments], {}, text.encode(), limit.share())
    except OSError as e:
        raise CniError(spec.KERNEL_REFUSED, f"{path}: {e.strerror}") from None
    said = err.decode("utf-8", "backslashreplace").split("\n")[0].removeprefix("/dev/stdin:")
    return (said or f"exit status {status}") if status else ""
