"""Capture files: every format that is read is written here byte by byte, so that the drafts are the measure."""

import errno
import gzip
import os
import random
import subprocess
import sys
from pathlib import Path
from struct import pack

import pytest

from actornet.errors import CaptureError
from actornet.limits import CAPTURE_RECORD_BYTES_MAX, FRAME_BYTES_MAX
from actornet.ports.pcap import Capture, CaptureWriter, read_capture

CAPTURES = sorted((Path(__file__).parent / "captures").glob("*.pcap*"))
SECOND = 1_700_000_000
FRAMES = [bytes([n]) * size for n, size in enumerate((14, 60, 61, 1514, 9000))]


def pcap(frames, order="<", magic=0xA1B2C3D4, link_type=1, unit_ns=1000):
    data = pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, link_type)
    for n, frame in enumerate(frames):
        data += pack(order + "IIII", SECOND + n, (n + 1) * 1000 // unit_ns, len(frame), len(frame)) + frame
    return data


def block(order, kind, body):
    body += bytes(-len(body) % 4)
    return pack(order + "II", kind, len(body) + 12) + body + pack(order + "I", len(body) + 12)


def section(order="<"):
    return block(order, 0x0A0D0D0A, pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def option(order, code, value):
    return pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def interface(order="<", link_type=1, snap_bytes=0, options=b""):
    return block(order, 1, pack(order + "HHI", link_type, 0, snap_bytes) + options)


def enhanced(order, number, ticks, frame, original=None):
    header = pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), original or len(frame))
    return block(order, 6, header + frame)


def written(tmp_path, data, name="a.pcap"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def packets(tmp_path, data, name="a.pcap"):
    with read_capture(written(tmp_path, data, name)) as capture:
        return list(capture), capture


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit_ns"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap_in_both_resolutions_and_byte_orders(tmp_path, order, magic, unit_ns):
    found, capture = packets(tmp_path, pcap(FRAMES, order, magic, unit_ns=unit_ns))
    assert found == [((SECOND + n) * 10**9 + (n + 1) * 1000, f, len(f)) for n, f in enumerate(FRAMES)]
    assert capture.damage is None
    assert capture.position_bytes == capture.total_bytes == (tmp_path / "a.pcap").stat().st_size


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("options", "ticks", "time_ns"),
    [
        (b"", 1_500_000, 1_500_000_000),
        (("<", 9, b"\x09"), 1_500_000_123, 1_500_000_123),
        (("<", 9, b"\x03"), 1_500, 1_500_000_000),
        (("<", 9, b"\x0c"), 1_500_000_123_456, 1_500_000_123),
        (("<", 9, b"\x8a"), 1536, 1_500_000_000),  # 2^-10 s
        (("<", 14, 100), 1_500_000, 101_500_000_000),
        (("<", 14, -1), 1_500_000, 500_000_000),
        (("<", 14, -9), 1_500_000, 0),  # before 1970: clamped
        (("<", 14, 1 << 62), 1_500_000, (1 << 63) - 1),
    ],
)
def test_pcapng_time_resolution_and_offset(tmp_path, order, options, ticks, time_ns):
    if options:
        _, code, value = options
        encoded = option(order, 2, b"eth0") + option(order, code, value if code == 9 else pack(order + "q", value))
        options = encoded + option(order, 0, b"")
    data = section(order) + interface(order, options=options) + enhanced(order, 0, ticks, FRAMES[1])
    assert packets(tmp_path, data)[0] == [(time_ns, FRAMES[1], 60)]


def test_pcapng_sections_interfaces_and_block_kinds(tmp_path):
    raw_ip = b"\x45" + bytes(39)
    data = (
        section("<")
        + interface("<")
        + interface("<", link_type=101, options=option("<", 9, b"\x09"))
        + block("<", 4, b"names that nobody asked for")
        + enhanced("<", 0, 5, FRAMES[0])
        + enhanced("<", 1, 6000, raw_ip)
        + block("<", 3, pack("<I", 61) + FRAMES[2])
        + section(">")
        + interface(">", snap_bytes=20)
        + block(">", 2, pack(">HHIIII", 0, 0, 0, 7, 60, 60) + FRAMES[1])
        + block(">", 3, pack(">I", 60) + FRAMES[1][:20])
        + enhanced(">", 0, 8, FRAMES[1][:50], original=60)
    )
    found, capture = packets(tmp_path, data, "a.pcapng")
    assert found == [
        (5000, FRAMES[0], 14),
        (6000, bytes(12) + b"\x08\x00" + raw_ip, 54),
        (6000, FRAMES[2], 61),
        (7000, FRAMES[1], 60),
        (7000, FRAMES[1][:20], 60),
        (8000, FRAMES[1][:50], 60),
    ]
    assert capture.snapped == 2
    assert capture.damage is None


@pytest.mark.parametrize(
    ("link_type", "captured", "frame"),
    [
        (113, bytes(14) + b"\x08\x00" + b"\x45payload", bytes(12) + b"\x08\x00" + b"\x45payload"),
        (276, b"\x86\xdd" + bytes(18) + b"\x60payload", bytes(12) + b"\x86\xdd" + b"\x60payload"),
        (101, b"\x45payload", bytes(12) + b"\x08\x00" + b"\x45payload"),
        (12, b"\x60payload", bytes(12) + b"\x86\xdd" + b"\x60payload"),
        (14, b"\x45payload", bytes(12) + b"\x08\x00" + b"\x45payload"),
        (228, b"\x45payload", bytes(12) + b"\x08\x00" + b"\x45payload"),
        (101, b"", bytes(14)),
        (0, b"\x02\0\0\0" + b"\x45payload", bytes(12) + b"\x08\x00" + b"\x45payload"),
        (0, b"\0\0\0\x1e" + b"\x60payload", bytes(12) + b"\x86\xdd" + b"\x60payload"),
        (108, b"\0\0\0\x02" + b"\x45payload", bytes(12) + b"\x08\x00" + b"\x45payload"),
        (0, b"\x07\0\0\0" + b"osi", bytes(14) + b"osi"),
        (113, b"short", bytes(14)),
    ],
)
def test_other_link_types_become_ethernet(tmp_path, link_type, captured, frame):
    found, capture = packets(tmp_path, pcap([captured], link_type=link_type))
    assert [f for _, f, _ in found] == [frame]
    assert capture.snapped == 0 or captured == b"short"


@pytest.mark.parametrize("data", [pcap(FRAMES), section() + interface() + enhanced("<", 0, 1, FRAMES[1])])
@pytest.mark.parametrize("name", ["a.pcap.gz", "named_wrongly"])
def test_gzip_is_recognised_by_content(tmp_path, data, name):
    plain, _ = packets(tmp_path, data)
    half = len(data) // 2
    members = gzip.compress(data[:half]) + gzip.compress(data[half:])
    assert packets(tmp_path, gzip.compress(data), name)[0] == plain
    assert packets(tmp_path, members, name)[0] == plain


def test_standard_input():
    code = "from actornet.ports.pcap import read_capture as r; c = r('-'); print(len(list(c)), c.total_bytes, c.damage)"
    for data in (pcap(FRAMES), gzip.compress(pcap(FRAMES))):
        done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
        assert done.stdout.split() == [b"5", b"None", b"None"]


def test_every_truncation_delivers_what_is_whole(tmp_path):
    for data in (
        pcap(FRAMES[:3]),
        section() + interface() + b"".join(enhanced("<", 0, n, f) for n, f in enumerate(FRAMES[:3])),
    ):
        whole, _ = packets(tmp_path, data)
        for size in range(40, len(data)):
            found, capture = packets(tmp_path, data[:size])
            assert found == whole[: len(found)]
            assert len(found) < 3
            if capture.damage:
                assert "the file ends inside a" in capture.damage
                assert "at byte" in capture.damage


def test_truncated_gzip_delivers_what_is_whole(tmp_path):
    data = gzip.compress(pcap([os.urandom(1000)] * 200))
    found, capture = packets(tmp_path, data[: len(data) // 2])
    assert 0 < len(found) < 200
    assert "gzip data ends early" in capture.damage


def test_records_larger_than_frames(tmp_path):
    big = bytes(FRAME_BYTES_MAX + 1)
    found, capture = packets(tmp_path, pcap([FRAMES[0], big, FRAMES[1]]))
    assert [f for _, f, _ in found] == FRAMES[:2]
    assert (capture.oversized, capture.damage) == (1, None)
    insane = pcap([FRAMES[0]]) + pack("<IIII", 1, 1, CAPTURE_RECORD_BYTES_MAX + 1, 60) + bytes(1 << 19)
    found, capture = packets(tmp_path, insane)
    assert len(found) == 1
    assert capture.damage == "a packet of 262145 bytes is larger than any capture holds (at byte 54)"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (gzip.compress(b"", mtime=0), "the file is empty"),
        (b"GET / HTTP/1.1\r\n\r\n    ", "not a capture file"),
        (pcap([])[:20], "header ends at byte 20"),
        (pack("<IHHiIII", 0xA1B2C3D4, 543, 4, 0, 0, 1, 1), "version 543"),
        (pcap([], link_type=105), r"link type 105 \(IEEE 802.11\)"),
        (pcap([], link_type=999), r"link type 999 \(unknown\)"),
        (b"\x0a\x0d\x0d\x0a" + bytes(20), "section header is damaged"),
    ],
)
def test_what_is_no_capture_is_refused_in_one_line(tmp_path, data, message):
    with pytest.raises(CaptureError, match=message) as caught:
        read_capture(written(tmp_path, data))
    assert str(tmp_path / "a.pcap") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unusable_paths_are_refused(tmp_path):
    with pytest.raises(CaptureError, match="no such file"):
        read_capture(tmp_path / "missing.pcap")
    with pytest.raises(CaptureError, match=r"cannot be (opened|read)"):
        read_capture(tmp_path)


def test_pcapng_interface_of_unknown_link_type_matters_only_if_it_has_packets(tmp_path):
    described = section() + interface(link_type=189) + interface() + enhanced("<", 1, 1, FRAMES[0])
    assert len(packets(tmp_path, described)[0]) == 1
    with pytest.raises(CaptureError, match="link type 189"):
        packets(tmp_path, described + enhanced("<", 0, 1, FRAMES[0]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pack("<II", 6, 13) + bytes(20), "cannot be 13 bytes"),
        (pack("<II", 6, 1 << 25) + bytes(20), "cannot be 33554432 bytes"),
        (pack("<II", 6, 12) + pack("<I", 16), "lengths of the block differ"),
        (enhanced("<", 7, 1, FRAMES[0]), "interface that is not described"),
        (block("<", 6, pack("<IIIII", 0, 0, 0, 400, 400) + bytes(8)), "400 bytes does not fit its block"),
        (block("<", 1, b"\0\0"), "contradicts itself"),
        (pack("<III", 0x0A0D0D0A, 28, 5) + bytes(16), "no byte order"),
    ],
)
def test_damaged_pcapng_blocks_end_the_capture(tmp_path, damage, message):
    data = section() + interface() + enhanced("<", 0, 1, FRAMES[0])
    found, capture = packets(tmp_path, data + damage + enhanced("<", 0, 2, FRAMES[1]))
    assert len(found) == 1
    assert message in capture.damage
    assert f"at byte {len(data)}" in capture.damage


def test_chunks_never_show(tmp_path):
    """More than one chunk, records across every chunk's end."""
    frames = [bytes([n % 251]) * (60 + n % 1400) for n in range(1500)]
    found, capture = packets(tmp_path, pcap(frames))
    assert [f for _, f, _ in found] == frames
    assert capture.damage is None
    blocks = section() + interface() + b"".join(enhanced("<", 0, n, f) for n, f in enumerate(frames))
    assert [f for _, f, _ in packets(tmp_path, blocks)[0]] == frames


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name)
def test_real_captures_are_read_whole(path):
    with read_capture(path) as capture:
        found = list(capture)
    assert capture.damage is None
    assert len(found) > 0
    assert all(0 < len(frame) <= original for _, frame, original in found)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_captures_never_raise_anything_but_capture_error(tmp_path, seed):
    rng = random.Random(seed)
    sources = [
        pcap(FRAMES[:3]),
        pcap(FRAMES[:3], ">", link_type=113),
        section(">") + interface(">", options=option(">", 9, b"\x09")) + enhanced(">", 0, 1, FRAMES[2]) * 3,
        section() + interface() + section(">") + interface(">", link_type=0) + enhanced(">", 0, 1, FRAMES[1]) * 2,
        gzip.compress(pcap(FRAMES[:3])),
    ]
    for attempt in range(250 * int(os.environ.get("FUZZ_TIMES", "1"))):
        data = bytearray(rng.choice(sources))
        for _ in range(rng.randint(1, 6)):
            kind, at = rng.random(), rng.randrange(len(data))
            if kind < 0.6:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            elif kind < 0.8:
                del data[at : at + rng.randint(1, 9)]
            else:
                data[at:at] = rng.randbytes(rng.randint(1, 9))
            if not data:
                data = bytearray(1)
        path = written(tmp_path, bytes(data), f"{seed}-{attempt}")
        try:
            with read_capture(path) as capture:
                for time_ns, frame, original in capture:
                    assert 0 <= time_ns < 1 << 63
                    assert len(frame) <= FRAME_BYTES_MAX
                    assert original >= len(frame)
        except CaptureError as error:
            assert "\n" not in str(error)
        path.unlink()


@pytest.mark.parametrize("name", ["out.pcap", "out.pcap.gz"])
@pytest.mark.parametrize("nanoseconds", [True, False])
def test_written_captures_are_read_back(tmp_path, name, nanoseconds):
    path = tmp_path / name
    with CaptureWriter(path, nanoseconds) as writer:
        for n, frame in enumerate(FRAMES):
            writer.write(SECOND * 10**9 + n * 1_000_001, frame, 9000)
        assert not path.exists()
    assert os.listdir(tmp_path) == [name]
    unit = 1 if nanoseconds else 1000
    found = list(Capture(str(path)))
    assert found == [((SECOND * 10**9 + n * 1_000_001) // unit * unit, f, 9000) for n, f in enumerate(FRAMES)]
    assert writer.packets == 5
    assert path.read_bytes()[:2] == b"\x1f\x8b" or name == "out.pcap"
    writer.close()


def test_same_packets_give_the_same_compressed_file(tmp_path):
    for name in ("a.pcap.gz", "b.pcap.gz"):
        with CaptureWriter(tmp_path / name) as writer:
            writer.write(1, FRAMES[1])
    assert (tmp_path / "a.pcap.gz").read_bytes() == (tmp_path / "b.pcap.gz").read_bytes()


def test_an_exception_leaves_no_file_and_the_old_one_alone(tmp_path):
    old = written(tmp_path, pcap(FRAMES), "out.pcap")
    with pytest.raises(KeyError), CaptureWriter(old) as writer:
        writer.write(1, FRAMES[0])
        raise KeyError
    assert os.listdir(tmp_path) == ["out.pcap"]
    assert old.read_bytes() == pcap(FRAMES)


def test_full_disk_is_one_line(tmp_path):
    with pytest.raises(CaptureError, match=f"/dev/full: cannot be written: {os.strerror(errno.ENOSPC)}"):
        with CaptureWriter("/dev/full") as writer:
            for _ in range(1000):
                writer.write(1, bytes(1500))
    writer.close()


def test_unwritable_places_are_one_line(tmp_path):
    with pytest.raises(CaptureError, match="cannot be written: No such file or directory"):
        CaptureWriter(tmp_path / "missing" / "out.pcap")
    with pytest.raises(CaptureError, match="cannot be written"):
        CaptureWriter(tmp_path)


def test_writer_on_standard_output():
    code = (
        "from actornet.ports.pcap import CaptureWriter\n"
        "with CaptureWriter('-') as writer: writer.write(1_000_000_002, bytes(60))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout[:4] == pack("<I", 0xA1B23C4D)
    assert done.stdout[24:40] == pack("<IIII", 1, 2, 60, 60)
