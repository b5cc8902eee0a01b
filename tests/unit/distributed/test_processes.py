import socket
from dataclasses import dataclass

import psutil
import pytest

from mtil.distributed.training.process_group import find_interface


@dataclass(frozen=True)
class _Address:
    address: str


HERE = {
    "lo": [_Address("127.0.0.1"), _Address("::1")],
    "docker0": [_Address("172.17.0.1")],
    "eth0": [_Address("02:42:ac:11:00:02"), _Address("10.0.0.5")],
}


@pytest.mark.parametrize(
    ("address", "expected"),
    [("10.0.0.5", "eth0"), ("127.0.0.1", "lo"), ("::1", "lo"), ("10.0.0.55", None)],
)
def test_the_network_that_has_an_address(address: str, expected: str | None) -> None:
    assert find_interface(address, HERE) == expected


def test_this_machine_s_loopback_is_found() -> None:
    name = find_interface("127.0.0.1", psutil.net_if_addrs())
    assert name in [name for _, name in socket.if_nameindex()]
