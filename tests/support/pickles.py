"""What Python 2 wrote for a dictionary of strings, numbers, lists and arrays, as the official archives of CIFAR have it."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np


def python2(value: Any) -> bytes:
    """Protocol 2 by Python 2's cPickle: byte strings for keys and for the type of an array, every object numbered."""
    return b"\x80\x02" + _Writer().write(value) + b"."


class _Writer:
    """Numbers objects from 1 on."""

    def __init__(self) -> None:
        self.known: dict[bytes, int] = {}
        self.objects = 0

    def put(self) -> bytes:
        self.objects += 1
        n = self.objects
        return b"q" + bytes([n]) if n < 256 else b"r" + struct.pack("<i", n)

    def name(self, module: bytes, name: bytes) -> bytes:
        return b"c" + module + b"\n" + name + b"\n" + self.put()

    def string(self, raw: bytes) -> bytes:
        return (b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))) + raw + self.put()

    def write(self, value: Any) -> bytes:
        if isinstance(value, bytes):
            return self.string(value)
        if isinstance(value, int):
            codes = ((256, b"K", "<B"), (65536, b"M", "<H"), (2**31, b"J", "<i"))
            code, size = next((code, size) for most, code, size in codes if 0 <= value < most)
            return code + struct.pack(size, value)
        if isinstance(value, list):
            start = b"]" + self.put()
            groups = (value[k : k + 1000] for k in range(0, len(value), 1000))
            return start + b"".join(b"(" + b"".join(map(self.write, group)) + b"e" for group in groups)
        if isinstance(value, dict):
            start = b"}" + self.put() + b"("
            return start + b"".join(self.write(k) + self.write(v) for k, v in value.items()) + b"u"
        assert isinstance(value, np.ndarray)
        made = self.name(b"numpy.core.multiarray", b"_reconstruct") + self.name(b"numpy", b"ndarray")
        made += b"K\x00\x85" + self.put() + self.string(b"b") + b"\x87" + self.put() + b"R" + self.put()
        made += b"(K\x01" + b"".join(map(self.write, value.shape)) + b"\x86" + self.put() + self.name(b"numpy", b"dtype")
        made += self.string(value.dtype.str[1:].encode()) + b"K\x00K\x01\x87" + self.put() + b"R" + self.put()
        order = value.dtype.str[:1].encode()
        made += b"(K\x03" + self.string(order) + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00t" + self.put() + b"b"
        return made + b"\x89" + self.string(value.tobytes()) + b"t" + self.put() + b"b"
