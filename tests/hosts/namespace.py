"""Network namespaces of this process, without names and without programs: each is gone with its last process and descriptor.

The network devices in them are TUN: what a host sends comes out of a descriptor (tests/hosts/router.py). `ip netns`, veth and `tc netem`
would do the same where the kernel has sch_netem; the one of our test machines has not.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
TUN = Path("/dev/net/tun")
DEVICE = "tun0"
TUNSETIFF, IFF_TUN_NO_PI = 0x400454CA, 0x1001
SIOCSIFADDR, SIOCSIFNETMASK, SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8916, 0x891C, 0x8913, 0x8914, 0x1
OWN = "/proc/thread-self/ns/net"
MASK = "255.255.255.0"
_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str | None:
    """What this machine lacks for network namespaces; None: nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    if not TUN.exists():
        return f"there is no {TUN}: load the kernel's module tun, or pass the device into the container"
    if (child := os.fork()) == 0:
        try:
            _new(DEVICE, "10.77.0.1")
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    failed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"the kernel refuses a network namespace or a TUN device in it: {os.strerror(failed)}" if failed else None


def new_for_host(address: str) -> tuple[int, int]:
    """A namespace with loopback and a device of this address: descriptors of the namespace, and of what the device sends and gets."""
    home = os.open(OWN, os.O_RDONLY)
    try:
        device = _new(DEVICE, address)
        return os.open(OWN, os.O_RDONLY), device
    finally:
        _set(home)
        os.close(home)


def move_into_new(address: str) -> int:
    """This thread, and all that it starts from now on, is in a namespace of this address, for good. The device's descriptor."""
    return _new(DEVICE, address)


@contextmanager
def entered(namespace: int) -> Iterator[None]:
    """What this thread starts and opens meanwhile is in that namespace."""
    home = os.open(OWN, os.O_RDONLY)
    _set(namespace)
    try:
        yield
    finally:
        _set(home)
        os.close(home)


def _new(name: str, address: str) -> int:
    _check(_libc.unshare(CLONE_NEWNET))
    device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as control:
        _up(control, "lo")
        for request, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, MASK)):
            told = struct.pack("16sHH4s16x", name.encode(), socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control, request, told)
        _up(control, name)
    return device


def _up(control: socket.socket, name: str) -> None:
    flags = struct.unpack("16sH22x", fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0)))[1]
    fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | IFF_UP))


def _set(namespace: int) -> None:
    _check(_libc.setns(namespace, CLONE_NEWNET))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
