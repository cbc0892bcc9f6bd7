"""The Gloo link between the sending learner and one rollout rank, and where its sockets bind."""

import socket
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

SENDER = 0
RECEIVER = 1
SHORTEST_S = 0.001
"""torch takes a timeout of 0 for no timeout at all."""


def open_store(address: str, timeout_s: float) -> TCPStore:
    """Opens the sender's rendezvous store, on a port that the system picks (`store.port`)."""
    return TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))


def join_store(address: str, port: int, timeout_s: float) -> TCPStore:
    """Connects a rollout rank to the sender's store."""
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))


class GlooLink:
    """Connects the sender and the rollout rank `peer`.

    Each pair has its own process group: in one common group, a rank that hangs or dies would block the transfers to
    the others and hide which rank it was.
    """

    def __init__(self, store: TCPStore, peer: int, end: int, timeout_s: float) -> None:
        """Blocks until the other end has connected. Raises RuntimeError after `timeout_s`."""
        gloo: Any = ProcessGroupGloo  # torch's stubs leave out most of it
        options = gloo._Options()
        options._timeout = timedelta(seconds=timeout_s)
        options._devices = [gloo.create_device(hostname=_route_to(store.host, store.port))]
        self._group: Any = gloo(PrefixStore(f"peer{peer}", store), end, 2, options)
        self._other = RECEIVER if end == SENDER else SENDER

    def send(self, payload: torch.Tensor, tag: int) -> "torch.distributed.Work":
        """Starts sending a contiguous host tensor, which must not change until the work is done."""
        return self._open_group().send([payload], self._other, tag)

    def receive(self, into: torch.Tensor, tag: int) -> "torch.distributed.Work":
        """Starts receiving into a contiguous host tensor."""
        return self._open_group().recv([into], self._other, tag)

    def close(self) -> None:
        """Closes the sockets; the other end's pending transfers fail at once."""
        self._group = None

    def _open_group(self) -> Any:
        if self._group is None:
            raise RuntimeError("the Gloo link is closed: connect again")
        return self._group


def _route_to(host: str, port: int) -> str:
    """Finds this machine's address on the route to `host`. By default Gloo binds what the host name resolves to, which
    another node may not be able to reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing: for UDP it only picks the route
        return str(probe.getsockname()[0])
