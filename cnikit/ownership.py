"""Whose a kernel object is: tags that name network, container and interface, and link names made from them.

The kernel is the database: the host end of a veth carries the tag as its ifalias. So DEL finds it without netns,
prevResult or a matching configuration, and GC finds what belongs to nobody any more.

A tag is of plain characters only: nft, ip and shells have to read it. Linux takes quotes, backslashes and control
characters in the name of an interface; a tag has a hash of such a name. Tags were once made with the name itself, and
what has such a tag is still its owner's: tags() gives both.
"""

from __future__ import annotations

import sys
from _blake2 import blake2s

from cnikit import spec
from cnikit.request import Attachment, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Behind the tag of an attachment whose interface another suite made: no link of ours proves it alive.
UNLINKED = " (unlinked)"

# nft's comments hold 127 bytes and a NUL (libnftnl's NFTNL_UDATA_COMMENT_MAXLEN), ifalias 255; one tag for both.
LONGEST_TAG = 127 - len(UNLINKED)
LONGEST_PART = 40

# A key of GC's configuration, this suite's own: what shows signs of life is kept as well, though it is not listed. Its
# runtime cannot list what is attached after it has looked.
KEEPS_LIVING = "cnikit/keepsLiving"
# Bytes of the hash of an interface's name: no longer than a name may be.
_HASHED = 7

# Two host ends would share a name once in 2**32; then the second name is taken.
_TRIES = 2


def tag(attachment: Attachment) -> str:
    """Return "cni:NETWORK/CONTAINER/IFNAME"; parts too long for a tag, or not plain, are replaced by a hash."""
    return _tag(attachment.network, attachment.container, _plain(attachment.ifname))


def tags(attachment: Attachment) -> tuple[str, ...]:
    """Return the tag, and the one of former days where that is another."""
    now, ifname = tag(attachment), attachment.ifname
    return (now,) if spec.is_plain(ifname) else (now, _tag(attachment.network, attachment.container, ifname))


def _tag(network: str, container: str, ifname: str) -> str:
    whole = f"cni:{network}/{container}/{ifname}"
    if len(whole.encode("utf-8", "surrogateescape")) <= LONGEST_TAG:
        return whole
    return f"cni:{_short(network)}/{_short(container)}/{ifname}"


def attachment(owner: str) -> Attachment | None:
    """Return whose tag it is, None where a part is a hash."""
    parts = owner.removeprefix("cni:").removesuffix(UNLINKED).split("/")
    return Attachment(*parts) if len(parts) == 3 and "~" not in (parts[0][:1], parts[1][:1]) else None


def network_tags(network: str) -> tuple[str, str]:
    """Return what the tags of a network's attachments begin with, in full and shortened."""
    return f"cni:{network}/", f"cni:{_short(network)}/"


def same_container(one: str, other: str) -> bool:
    """Tell whether two tags are about one container, on whatever networks."""

    def container(owner: str) -> str:
        part = owner.rsplit("/", 2)[-2] if owner.count("/") >= 2 else owner
        return part if part.startswith("~") else _short(part)

    return container(one) == container(other)


def same_network(one: str, other: str) -> bool:
    """Tell whether two tags are of one network."""

    def network(owner: str) -> str:
        part = owner.removeprefix("cni:").partition("/")[0]
        return part if part.startswith("~") else _short(part)

    return network(one) == network(other)


def kept(request: Request) -> frozenset[str]:
    """Return the tags of the attachments that GC shall keep."""
    valid = request.valid_attachments()
    alive = (request.attachment.replace(container=container, ifname=ifname) for container, ifname in valid)
    return frozenset(owner for attachment in alive for owner in tags(attachment))


def outdated(request: Request) -> Callable[[str], bool]:
    """Return what tells of a tag whether its owner's things are to go.

    On DEL they are the attachment's own, on GC all of the network's but those to keep.
    """
    if request.verb != "GC":
        ours = tags(request.attachment)
        return lambda owner: owner.removesuffix(UNLINKED) in ours
    keep, network = kept(request), network_tags(request.attachment.network)
    return lambda owner: owner.startswith(network) and owner.removesuffix(UNLINKED) not in keep


def keeps_living(request: Request) -> bool:
    """Tell whether GC shall keep what shows signs of life, too: a link with its tag, a lease just taken."""
    return request.verb == "GC" and request.config.raw(KEEPS_LIVING) is True


def host_ends(attachment: Attachment) -> tuple[str, ...]:
    """Return the names the host end of an attachment's veth may have, the usual one first, those of former days last.

    "veth" and eight hex digits, as the reference's, which tools on the host recognise; made from the tag, so that it
    need not be searched for.
    """
    return tuple(name for owner in tags(attachment) for name in names_of(owner))


def tag_of(attachment: Attachment, host_end: str) -> str:
    """Return the tag of an attachment that its host end is named after, and what else it has is marked with."""
    now, *before = tags(attachment)
    return next((owner for owner in before if host_end in names_of(owner)), now)


def names_of(owner: str) -> tuple[str, ...]:
    """Return the same for a tag."""
    return tuple("veth" + blake2s(bytes((n,)) + owner.encode(), digest_size=4).hexdigest() for n in range(_TRIES))


def _plain(ifname: str) -> str:
    if spec.is_plain(ifname):
        return ifname
    return "~" + blake2s(ifname.encode("utf-8", "surrogateescape"), digest_size=_HASHED).hexdigest()


def _short(part: str) -> str:
    # "~" is in no name, so a hash is never taken for one.
    return part if len(part) <= LONGEST_PART else "~" + blake2s(part.encode(), digest_size=16).hexdigest()


def digest(text: str) -> str:
    """Return the hex digits by which the reference names what it makes."""
    # hashlib takes 5 ms to import.
    if sys.version_info >= (3, 12):
        from _sha2 import sha512
    else:
        from _sha512 import sha512  # type: ignore[import-not-found]
    digits: str = sha512(text.encode()).hexdigest()
    return digits


def reference_chain(prefix: str, attachment: Attachment) -> str:
    """Return the name of the reference's iptables chain for a container on a network, of 28 characters at most."""
    return f"{prefix}{digest(attachment.network + attachment.container)}"[:28]
