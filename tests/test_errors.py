"""Errors: the object a runtime is told, and the one line a person is."""

from __future__ import annotations

import pytest

from cnikit import errors, spec
from cnikit.errors import CniError

# Specification section 5, "Error", and the reference library's 8; from 100 on they are ours.
CODES = {
    1: "INCOMPATIBLE_VERSION",
    2: "UNSUPPORTED_FIELD",
    3: "UNKNOWN_CONTAINER",
    4: "INVALID_ENVIRONMENT",
    5: "IO_FAILURE",
    6: "DECODING_FAILURE",
    7: "INVALID_CONFIG",
    8: "INVALID_NETNS",
    11: "TRY_AGAIN",
    50: "UNAVAILABLE",
    51: "UNAVAILABLE_LIMITED",
    100: "KERNEL_REFUSED",
    101: "CHECK_FAILED",
    102: "DELEGATE_FAILED",
    103: "CLEANUP_INCOMPLETE",
    999: "INTERNAL",
}


@pytest.mark.parametrize(("code", "name"), CODES.items())
def test_codes_are_those_of_the_specification(code: int, name: str) -> None:
    assert getattr(spec, name) == code


def test_the_object_has_details_only_when_there_are_any() -> None:
    assert CniError(7, "mtu: too small").document("0.4.0") == {
        "cniVersion": "0.4.0",
        "code": 7,
        "msg": "mtu: too small",
    }
    assert CniError(11, "busy", "try later").document("1.1.0") == {
        "cniVersion": "1.1.0",
        "code": 11,
        "msg": "busy",
        "details": "try later",
    }


def test_a_person_reads_one_line() -> None:
    assert str(CniError(7, "mtu: too small")) == "mtu: too small"
    assert str(CniError(11, "busy", "try later")) == "busy (try later)"


@pytest.mark.parametrize(
    ("error", "code", "msg"),
    [
        (errors.invalid_config("ipam.type", "is missing"), 7, "ipam.type: is missing"),
        (errors.invalid_environment("CNI_ARGS", "is odd"), 4, "CNI_ARGS: is odd"),
        (errors.unsupported("vlan.mode", "bridge"), 2, "vlan.mode: 'bridge' is not supported"),
        (errors.unsupported("mtu", 1), 2, "mtu: 1 is not supported"),
    ],
)
def test_an_error_names_the_culprit(error: CniError, code: int, msg: str) -> None:
    assert (error.code, error.msg, error.details) == (code, msg, "")


def test_a_single_fault_of_a_clean_up_stays_what_it_is() -> None:
    fault = CniError(11, "busy", "try later")
    assert errors.collected([fault], "DEL") is fault


def test_several_faults_of_a_clean_up_become_one() -> None:
    error = errors.collected([CniError(11, "busy", "try later"), CniError(5, "disk full")], "DEL")
    assert (error.code, error.msg, error.details) == (103, "DEL: 2 faults", "busy (try later); disk full")
