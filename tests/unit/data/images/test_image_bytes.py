"""Bounds on the bytes and pixels held at once by a process."""

import os
import socket
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtil.data.images import image_bytes
from mtil.data.images.budget import MemoryBudget
from mtil.data.images.image_bytes import read_image_bytes, reserve_file_bytes
from mtil.data.layouts.record import Record
from mtil.data.prepare.samples import RefusedImage, read_samples
from mtil.errors import DataError, NotFoundError
from mtil.storage import LocalStore


def test_a_budget_never_lends_more_than_it_has_and_serves_in_order() -> None:
    budget = MemoryBudget(10)
    held, most, order = 0, 0, []
    lock = threading.Lock()
    first_is_in, may_leave = threading.Event(), threading.Event()

    def first() -> None:
        with budget.hold(4):
            first_is_in.set()
            assert may_leave.wait(60)

    def take(amount: int) -> None:
        nonlocal held, most
        with budget.hold(amount):
            with lock:
                held += min(amount, 10)
                most = max(most, held)
                order.append(amount)
            with lock:
                held -= min(amount, 10)

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert first_is_in.wait(60)
    threads += [threading.Thread(target=take, args=(amount,)) for amount in (10**9, 3, 5, 7)]
    for thread in threads[1:]:
        thread.start()
    assert not order or order[0] != 10**9  # the whole budget is lent only without other holders
    may_leave.set()
    for thread in threads:
        thread.join(60)
    assert sorted(order) == [3, 5, 7, 10**9]
    assert most <= 10


def test_a_budget_is_given_back_where_the_block_fails() -> None:
    budget = MemoryBudget(5)
    with pytest.raises(ZeroDivisionError), budget.hold(5):
        _ = 1 / 0
    with budget.hold(5):
        pass


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device", "a folder"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    store = LocalStore(str(tmp_path))
    with (
        reserve_file_bytes(store, ["x.png"]),
        pytest.raises(DataError, match=f"but x.png is {kind}; "),
    ):
        read_image_bytes(store, "x.png", "x.png")
    record = Record(sample_id="x", label=0, image="x.png", masks=("x.png",))
    (found,) = read_samples({"": store}, [record], 64)
    assert isinstance(found, RefusedImage)
    assert "regular file" in found.why


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_image_bytes(LocalStore(str(tmp_path)), "x.png", "x.png")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(DataError, match=r"at most 536,870,912 bytes, but x\.png has more"):
        read_image_bytes(LocalStore(str(tmp_path)), "x.png", "x.png")
    assert image_bytes.MAX_FILE_BYTES == 2**29


def _png(path: Path, side: int) -> None:
    """Write a gray PNG of zeros without holding the pixels."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    head = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.slow
def test_large_images_are_decoded_one_after_the_other(tmp_path: Path) -> None:
    side = 3000  # 9 megapixels, more than the budget below
    _png(tmp_path / "large.png", side)
    code = (
        "import sys\nfrom mtil.data.layouts.record import Record\n"
        "from mtil.data.images.budget import PIXEL_BUDGET\n"
        "from mtil.data.prepare.samples import read_samples\n"
        "from mtil.storage import LocalStore\nPIXEL_BUDGET.__init__(2**22)\n"
        "def peak():\n"
        "    text = open('/proc/self/status').read()\n"
        "    return int(text.partition('VmHWM:')[2].split()[0]) * 1024\n"
        "start = peak()\n"
        "names = ['large.png'] * int(sys.argv[2])\n"
        "records = [Record(sample_id=str(i), label=2, image=n, masks=()) "
        "for i, n in enumerate(names)]\n"
        "found = list(read_samples({'': LocalStore(sys.argv[1])}, records, 64))\n"
        "assert [sample.height for sample in found] == [3000] * len(names), found\n"
        "print(peak() - start)\n"
    )
    peaks = [
        int(subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(number)],
            check=True, capture_output=True, text=True,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # freed memory is returned
        ).stdout)
        for number in (1, 6)
    ]  # fmt: skip
    assert peaks[0] > side * side  # an image has a byte per pixel
    assert peaks[1] < 2 * peaks[0]


def test_a_small_image_gives_the_pixels_that_it_has(tmp_path: Path) -> None:
    _png(tmp_path / "x.png", 8)
    with Image.open(tmp_path / "x.png") as image:
        assert np.asarray(image).tolist() == [[0] * 8] * 8
