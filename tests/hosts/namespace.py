"""Anonymous network namespaces of this process: each one ends with its last process and file descriptor.

Their network devices are TUN devices: the packets that a host sends come out of a descriptor (tests/hosts/router.py).
`ip netns`, veth and `tc netem` would do the same where the kernel has sch_netem; some test machines lack it.
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
    """The requirement of network namespaces that this machine lacks; None if it lacks none."""
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
    """Create a namespace with loopback and a TUN device of this address; return the descriptors of namespace and device."""
    home = os.open(OWN, os.O_RDONLY)
    try:
        device = _new(DEVICE, address)
        return os.open(OWN, os.O_RDONLY), device
    finally:
        _set(home)
        os.close(home)


def move_into_new(address: str) -> int:
    """Move this thread, with all its later threads and children, into a new namespace for good; return the device's descriptor."""
    return _new(DEVICE, address)


@contextmanager
def entered(namespace: int) -> Iterator[None]:
    """This thread starts processes and opens sockets in that namespace."""
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
            ifreq = struct.pack("16sHH4s16x", name.encode(), socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control, request, ifreq)
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
