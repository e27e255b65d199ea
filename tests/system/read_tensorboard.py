#!/usr/bin/env python3
"""Reads TensorBoard event files by the formats' definitions and compares them with metrics.jsonl. Usage: read_tensorboard.py DIR METRICS

Standard library only: TFRecord framing with masked CRC-32C, protobuf Event and Summary.
"""
import glob
import json
import struct
import sys


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(data):
    at = 0
    while at < len(data):
        head = data[at:at + 8]
        (length,), (head_crc,) = struct.unpack("<Q", head), struct.unpack("<I", data[at + 8:at + 12])
        assert masked(head) == head_crc, "checksum of a length"
        body = data[at + 12:at + 12 + length]
        (body_crc,) = struct.unpack("<I", data[at + 12 + length:at + 16 + length])
        assert masked(body) == body_crc, "checksum of a record"
        yield body
        at += 16 + length


def fields(data):
    """(number, value) of a protobuf message: int, 8 or 4 raw bytes, or bytes."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    while at < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            yield number, data[at:at + size]
            at += size
        elif wire == 2:
            size = varint()
            yield number, data[at:at + size]
            at += size
        else:
            raise AssertionError(f"wire type {wire}")


def main():
    directory, metrics = sys.argv[1:]
    assert crc32c(b"123456789") == 0xE3069283, "this script's CRC-32C"
    files = glob.glob(f"{directory}/events.out.tfevents.*")
    assert len(files) == 1, files
    events = list(records(open(files[0], "rb").read()))
    assert dict(fields(events[0]))[3] == b"brain.Event:2"
    found, last_time = {}, 0.0
    for event in events[1:]:
        event = list(fields(event))
        step = dict(event).get(2, 0)
        time = struct.unpack("<d", dict(event)[1])[0]
        assert time >= last_time, "times go back"
        last_time = time
        for number, value in fields(dict(event)[5]):
            scalar = dict(fields(value))
            assert number == 1
            found[scalar[1].decode(), step] = struct.unpack("<f", scalar[2])[0]
    wanted = {}
    for line in open(metrics, encoding="utf-8"):
        record = json.loads(line)
        for key, value in record.items():
            if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                wanted[record["kind"] + "/" + key, record["step"]] = struct.unpack("<f", struct.pack("<f", value))[0]
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    assert found == wanted
    assert len(found) > 500
    print(f"{len(found)} scalars")


if __name__ == "__main__":
    main()
