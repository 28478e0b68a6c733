"""I/O commands against a model of the disk, in every way data can travel."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from initiator import COMPARE, DNR, FLUSH, READ, WRITE, Host, Options, span
from target_process import HOST, NQN, TargetProcess, file_backend, namespace

KIB = 1 << 10
MIB = 1 << 20

WAYS = {
    "plain": Options(),
    "header digest": Options(header_digest=True),
    "data digest": Options(data_digest=True),
    "both digests": Options(header_digest=True, data_digest=True),
    "both digests, HPDA 31": Options(header_digest=True, data_digest=True, hpda=31),
    "HPDA 15": Options(hpda=15),
    "no SQ flow control": Options(sq_flow_control=False),
    "no SQ flow control, both digests": Options(sq_flow_control=False, header_digest=True, data_digest=True),
    "R2T only, small pieces": Options(in_capsule=0, piece=4 * KIB),
    "R2T only, odd pieces, digests": Options(in_capsule=0, piece=12345 & ~3, data_digest=True),
    "large capsules": Options(in_capsule=64 * KIB),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_is_read_and_is_in_the_file(
    standing: TargetProcess, standing_disk: Path, way: str
) -> None:
    model = bytearray(standing_disk.read_bytes())
    choice = random.Random(way)
    with Host(standing.port, NQN, HOST, WAYS[way], queues=2) as host:
        for length in (512, 4 * KIB, 8 * KIB, 64 * KIB, 68 * KIB, 256 * KIB, MIB):
            offset = choice.randrange(0, len(model) - length, 512)
            data = choice.randbytes(length)
            done = host.write(offset, data, queue=0)
            assert done.status == 0, f"write of {length}"
            model[offset : offset + length] = data
            around = max(0, offset - 512)
            count = min(length, MIB - 1024) + 1024
            found = host.read(around, count, queue=1)
            assert found.status == 0 and found.data == model[around : around + count], f"{length} bytes"
        assert host.flush().status == 0
    assert standing_disk.read_bytes() == model


def test_many_commands_in_flight_on_several_queues(standing: TargetProcess, standing_disk: Path) -> None:
    model = bytearray(standing_disk.read_bytes())
    choice = random.Random(7)
    with Host(standing.port, NQN, HOST, Options(in_capsule=4 * KIB), queues=4) as host:
        for _ in range(4):
            slots = choice.sample(range(len(model) // (16 * KIB)), 127)
            queue = host.io[choice.randrange(4)]
            waiting = {}
            for number, slot in enumerate(slots):
                offset = slot * 16 * KIB
                if number % 2:
                    data = choice.randbytes(choice.choice((512, 4 * KIB, 16 * KIB)))
                    waiting[queue.submit(WRITE, nsid=1, cdw=span(offset, len(data)), data=data)] = None
                    model[offset : offset + len(data)] = data
                else:
                    cid = queue.submit(READ, nsid=1, cdw=span(offset, 16 * KIB), want=16 * KIB)
                    waiting[cid] = bytes(model[offset : offset + 16 * KIB])
            for cid, expected in waiting.items():
                done = queue.complete(cid)
                assert done.status == 0
                assert expected is None or done.data == expected
        assert host.flush(nsid=0xFFFFFFFF).status == 0
    assert standing_disk.read_bytes() == model


def test_sqhd_follows_the_submission_queue_only_under_flow_control(standing: TargetProcess) -> None:
    with Host(standing.port, NQN, HOST, queues=0) as host:
        queue = host.open_queue(1, entries=4)
        heads = [queue.command(FLUSH, nsid=1).sqhd for _ in range(5)]
        assert heads == [2, 3, 0, 1, 2], "the Connect command was the queue's first"
    with Host(standing.port, NQN, HOST, Options(sq_flow_control=False)) as host:
        assert host.flush().sqhd == 0xFFFF


def test_zeroes_and_deallocation(standing: TargetProcess, standing_disk: Path) -> None:
    model = bytearray(standing_disk.read_bytes())
    with Host(standing.port, NQN, HOST) as host:
        for offset, length, unmap in ((4096, 8192, False), (MIB, MIB, True), (2 * MIB + 512, 1536, True)):
            assert host.write_zeroes(offset, length, unmap=unmap).status == 0
            model[offset : offset + length] = bytes(length)
        assert host.read(0, MIB).data == model[:MIB]
        before = standing_disk.stat().st_blocks
        assert host.deallocate((4 * MIB, MIB), (6 * MIB, 64 * KIB)).status == 0
        assert standing_disk.stat().st_blocks < before, "deallocated space must go back to the file system"
        assert host.read(4 * MIB, MIB).data == bytes(MIB), (
            "DLFEAT says that deallocated blocks read as zeroes"
        )
        model[4 * MIB : 5 * MIB] = bytes(MIB)
        model[6 * MIB : 6 * MIB + 64 * KIB] = bytes(64 * KIB)
        assert host.io[0].command(0x09, nsid=1, cdw=(0, 0), data=bytes(16)).status == 0, "a mere hint"
    assert standing_disk.read_bytes() == model


def test_fua_and_flush_are_counted_and_succeed(target: TargetProcess) -> None:
    with Host(target.port, NQN, HOST) as host:
        assert target.status()["subsystems"][0]["namespaces"][0]["first_read_time"] == 0
        assert host.write(0, b"f" * 4096, fua=True).status == 0
        assert host.flush().status == 0
        assert host.read(0, 4096).data == b"f" * 4096
        counters = target.status()["subsystems"][0]["namespaces"][0]
    assert (counters["read_ops"], counters["read_bytes"]) == (1, 4096)
    assert (counters["write_ops"], counters["write_bytes"], counters["flush_ops"]) == (1, 4096, 1)
    assert counters["first_read_time"] > 1.6e9


def test_what_a_command_may_not_do(standing: TargetProcess, standing_disk: Path) -> None:
    before = standing_disk.read_bytes()
    size = len(before)
    with Host(standing.port, NQN, HOST) as host:
        queue = host.io[0]
        assert host.read(size - 512, 1024).status == 0x80 | DNR, "LBA Out of Range"
        assert host.write(size, b"x" * 512).status == 0x80 | DNR
        assert host.write(size, b"x" * 4096, in_capsule=False).status == 0x80 | DNR, "after its R2T"
        far = queue.command(READ, nsid=1, cdw=(0xFFFFFFFF, 0xFFFFFFFF, 7), want=4096)
        assert far.status == 0x80 | DNR, "SLBA + NLB beyond 64 bits"
        assert host.read(0, 512, nsid=2).status == 0x0B | DNR, "no such namespace"
        assert host.read(0, 512, nsid=0).status == 0x0B | DNR
        assert queue.command(COMPARE, nsid=1, cdw=(0, 0, 0), data=b"x" * 512).status == 0x01 | DNR
        assert queue.command(0x04, nsid=1, cdw=(0, 0, 0)).status == 0x01 | DNR, "Write Uncorrectable"
        assert queue.command(0x7E, nsid=1).status == 0x01 | DNR, "unknown opcode"
        assert queue.command(READ, nsid=1, cdw=(0, 0, 7), want=512).status == 0x0F | DNR, "SGL too short"
        assert queue.command(WRITE, nsid=1, cdw=(0, 0, 7), data=b"x" * 512).status == 0x0F | DNR
        assert queue.command(READ, nsid=1, cdw=(0, 0, 4095), want=2 * MIB).status == 0x02 | DNR, "over MDTS"
        assert queue.command(WRITE, nsid=1, cdw=(0, 0, 4095), data=bytes(2 * MIB)).status == 0x02 | DNR
        assert queue.command(0x09, nsid=1, cdw=(1, 4), data=bytes(16)).status == 0x0F | DNR, (
            "two ranges, one given"
        )
        beyond = struct.pack("<IIQ", 0, 8, size >> 9)
        assert queue.command(0x09, nsid=1, cdw=(0, 4), data=beyond).status == 0x80 | DNR
        assert queue.command(FLUSH, nsid=7).status == 0x0B | DNR
        assert host.read(0, 512).data == before[:512], "the queue goes on"
    assert standing_disk.read_bytes() == before


def test_a_read_only_namespace_is_read_only(tmp_path: Path, disk: Path) -> None:
    running = TargetProcess(tmp_path, [namespace(1, file_backend(disk), readonly=True)]).start()
    before = disk.read_bytes()
    with Host(running.port, NQN, HOST) as host:
        assert host.identify(0, 1).data[99] & 1, "NSATTR: write protected"
        assert host.read(0, 4096).data == before[:4096]
        for done in (
            host.write(0, b"x" * 512),
            host.write(0, b"x" * 4096, in_capsule=False),
            host.write_zeroes(0, 512),
            host.deallocate((0, 4096)),
        ):
            assert done.status == 0x20 | DNR, "Namespace is Write Protected"
        assert host.flush().status == 0
    assert running.stop() == 0
    assert disk.read_bytes() == before


def test_4096_byte_blocks(tmp_path: Path, disk: Path) -> None:
    running = TargetProcess(tmp_path, [namespace(1, file_backend(disk), block_size=4096)]).start()
    with Host(running.port, NQN, HOST) as host:
        page = host.identify(0, 1).data
        assert struct.unpack_from("<Q", page)[0] == disk.stat().st_size // 4096 and page[130] == 12
        assert host.write(8192, b"4" * 8192, shift=12).status == 0
        assert host.read(8192, 8192, shift=12).data == b"4" * 8192
    assert running.stop() == 0


def test_a_slow_host_does_not_make_the_target_hoard(target: TargetProcess) -> None:
    with Host(target.port, NQN, HOST) as host:
        queue = host.io[0]
        for _ in range(100):
            queue.submit(READ, nsid=1, cdw=span(0, MIB), want=MIB)
        with Host(target.port, NQN, HOST) as other:
            assert other.read(0, 4096).status == 0, "another host is served meanwhile"
        assert target.process is not None
        resident = int(Path(f"/proc/{target.process.pid}/statm").read_text().split()[1]) * 4096
        assert resident < 100 * MIB, f"{resident >> 20} MiB resident while 100 MiB wait to be read"
        for cid in range(2, 102):
            assert len(queue.complete(cid).data) == MIB


def test_a_short_file_is_a_read_error_not_a_crash(target: TargetProcess, disk: Path) -> None:
    with Host(target.port, NQN, HOST) as host:
        with disk.open("r+b") as file:
            file.truncate(MIB)
        assert host.read(4 * MIB, 4096).status == 0x281, "Unrecovered Read Error"
        assert host.read(0, 4096).status == 0
        assert target.status()["subsystems"][0]["namespaces"][0]["errors"] == 1
