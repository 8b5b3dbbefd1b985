"""The CNI specification as tables: versions, verbs, environment, error codes, result shapes.

Source: CNI specification 1.1.0 (containernetworking/cni, SPEC.md). Where the reference's library sets a de facto rule
(order of checks, code 8) it is named.
"""

from __future__ import annotations

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]

# "If the cniVersion key is absent" is not in the text; the reference takes it as the oldest, and runtimes rely on it.
ABSENT_VERSION = VERSIONS[0]

# Section 2: the variables each verb requires. CNI_PATH is "optional" but for GC. The order is the order of the checks,
# which is observable: a malformed CNI_CONTAINERID is reported even when CNI_NETNS is missing too.
VARIABLES = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH")
REQUIRED: dict[str, tuple[str, ...]] = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
    "STATUS": (),
    "VERSION": (),
}

# The version a verb came with. An older configuration must not be given it.
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

# Section 5, "Error". 8 is the reference library's; 100 and up are "plugin specific": ours are below.
INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
INVALID_NETNS = 8
TRY_AGAIN = 11
UNAVAILABLE = 50
UNAVAILABLE_LIMITED = 51
KERNEL_REFUSED = 100
CHECK_FAILED = 101
DELEGATE_FAILED = 102
CLEANUP_INCOMPLETE = 103
INTERNAL = 999

# Section 2: "A network name ... must start with an alphanumeric character, optionally followed by any combination of
# one or more alphanumeric characters, underscore (_), dot (.) or hyphen (-)". Container ids: the same.
ALPHANUMERIC = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
NAME_CHARACTERS = ALPHANUMERIC | frozenset("_.-")

# What nobody who reads a list of rules or a command line takes for anything but a part of a name.
PLAIN_CHARACTERS = NAME_CHARACTERS | frozenset("@+=,")

# linux/if.h: IFNAMSIZ, with its closing NUL.
IFNAME_BYTES = 15


def is_name(text: str) -> bool:
    """Tell whether text may be a network name or a container id."""
    return bool(text) and text[0] in ALPHANUMERIC and NAME_CHARACTERS.issuperset(text)


def is_plain(text: str) -> bool:
    """Tell whether a name can stand in rules and command lines as it is: nft's strings have no way to write a quote."""
    return PLAIN_CHARACTERS.issuperset(text)


def word(text: str) -> str:
    """Return a name or path as a shell takes it for one word."""
    return text if (PLAIN_CHARACTERS | {"/", ":"}).issuperset(text) else "'" + text.replace("'", "'\\''") + "'"


def ifname_fault(name: str) -> str:
    """Say why name cannot be an interface's name (the kernel's dev_valid_name), or return ""."""
    if not name:
        return "interface name is empty"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        # The kernel would take it, but no result, which is JSON, could say it.
        return "interface name is not UTF-8"
    if len(encoded) > IFNAME_BYTES:
        return "interface name is too long: it should be less than 16 bytes"
    if name in (".", ".."):
        return "interface name is . or .."
    # To the kernel % begins a template (eth%d becomes eth0), and the byte A0, inside any letter, is white space.
    if any(c in "/:%\0" or c.isspace() for c in name) or b"\xa0" in encoded:
        return "interface name contains / or : or % or whitespace characters (the byte A0 is one)"
    return ""


def at_least(version: str, since: str) -> bool:
    """Tell whether a supported version is since or newer."""
    return VERSIONS.index(version) >= VERSIONS.index(since)
