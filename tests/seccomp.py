"""Run a command to which the kernel refuses netlink sockets of one protocol, as a container's seccomp profile may.

python -m tests.seccomp PROTOCOL ERRNO COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from socket import AF_NETLINK

NUMBERS = {"x86_64": 41, "aarch64": 198}  # of socket(2)

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW = 0x00050000, 0x7FFF0000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h, of 32 bits


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse(protocol: int, errno: int) -> None:
    """Have the kernel refuse such sockets to this process, and to all it executes."""
    # seccomp_data: number, architecture, instruction pointer, six arguments of eight bytes.
    wanted = ((0, NUMBERS[os.uname().machine]), (16, AF_NETLINK), (32, protocol))
    code = []
    for left, (offset, value) in zip((5, 3, 1), wanted, strict=True):
        # Where a value is another, the last instruction is jumped to.
        code += [(LOAD, 0, 0, offset), (JUMP_IF_EQUAL, 0, left, value)]
    code += [(RETURN, 0, 0, SECCOMP_RET_ERRNO | errno), (RETURN, 0, 0, SECCOMP_RET_ALLOW)]
    encoded = b"".join(struct.pack("=HBBI", *one) for one in code)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    program = ctypes.byref(_Program(len(code), encoded))
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    refuse(int(sys.argv[1]), int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
