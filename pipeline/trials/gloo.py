"""Gloo, which averages over processes without GPUs, is shown the network interface that its node has in the cluster.

Left alone it takes the address that the machine's own name leads to. Where that is 127.0.1.1, as Debian has it, or none
at all, processes on different machines do not find each other. NCCL looks for itself.
To be imported inside a session, as all that is Ray's.
"""

import fcntl
import os
import socket
import struct
import sys
from typing import Any

import ray
from ray.train.torch import TorchConfig

VARIABLE = "GLOO_SOCKET_IFNAME"
"""What a person has set stands."""
_ASK_ADDRESS = 0x8915  # SIOCGIFADDR of Linux


class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's own, which looks at the interfaces before processes join."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Tie the processes of a training together."""
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


class Config(TorchConfig):  # type: ignore[misc]
    """How Ray Train ties the processes of a training together."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What does it."""
        return Backend


def choose_interface() -> None:
    """Name the interface in this process of a worker, before it joins the others."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(VARIABLE, name)


def interface_of(address: str) -> str | None:
    """The interface that has an IPv4 address; None where none has, or where this is not Linux."""
    if sys.platform != "linux":
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                told = fcntl.ioctl(asked, _ASK_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(told[20:24]) == address:
                return name
    return None
