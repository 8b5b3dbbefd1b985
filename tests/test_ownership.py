"""Tags and names made of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnikit import ownership, spec
from cnikit.request import Attachment

names = st.text(alphabet=sorted(spec.NAME_CHARACTERS), max_size=300).map(lambda text: "n" + text)
ifnames = st.text(alphabet="abcdefgh0123", min_size=1, max_size=15)
attachments = st.builds(Attachment, names, names, ifnames)


def test_a_tag_says_whose_it_is() -> None:
    attachment = Attachment("web", "0" * 64, "eth0")
    assert ownership.tag(attachment) == f"cni:web/{'0' * 64}/eth0"


@given(attachments)
def test_a_tag_fits_and_begins_with_its_network(attachment: Attachment) -> None:
    tag = ownership.tag(attachment)
    assert len(tag) <= ownership.LONGEST_TAG
    assert tag.startswith(ownership.network_tags(attachment.network))
    assert tag.endswith(f"/{attachment.ifname}")


@given(attachments, attachments)
def test_two_attachments_have_two_tags(one: Attachment, other: Attachment) -> None:
    assert (ownership.tag(one) == ownership.tag(other)) == (one == other)


@given(names, names)
def test_no_network_is_taken_for_another(one: str, other: str) -> None:
    tag = ownership.tag(Attachment(one, "c", "e"))
    assert tag.startswith(ownership.network_tags(other)) == (one == other)


@pytest.mark.parametrize("text", ["", "veth"])
def test_host_ends_are_two_interface_names(text: str) -> None:
    ends = ownership.host_ends(Attachment("n" + text, "c", "eth0"))
    assert len(set(ends)) == 2
    assert [end[:4] for end in ends] == ["veth", "veth"]
    assert [len(end) for end in ends] == [12, 12]
