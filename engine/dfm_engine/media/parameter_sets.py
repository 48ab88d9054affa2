"""The picture size that an H.264 or HEVC sequence parameter set declares, read without a decoder.

A raw stream has no container that states its size, and FFmpeg tries to decode a picture while it
opens one. So the first sequence parameter sets are read here before. H.264 section 7.3.2.1.1,
HEVC section 7.3.2.2.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["declared_sizes"]

_H264_HIGH = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))


def declared_sizes(head: bytes, codec: Literal["h264", "hevc"]) -> list[tuple[int, int]]:
    """(width, height) in whole coding blocks of each parameter set in an Annex B stream's start.

    A parameter set that does not parse is passed over: the decoder will judge it.
    """
    sizes: list[tuple[int, int]] = []
    at = head.find(b"\x00\x00\x01")
    while 0 <= at < len(head) - 4:
        following = head.find(b"\x00\x00\x01", at + 3)
        unit = head[at + 3 : following if following > 0 else at + 1024]
        try:
            if codec == "h264" and unit[0] & 0x9F == 7:
                sizes.append(_h264_size(_Bits(unit[1:])))
            elif codec == "hevc" and (unit[0] >> 1) & 0x3F == 33:
                sizes.append(_hevc_size(_Bits(unit[2:])))
        except IndexError:
            pass
        at = following
    return sizes


class _Bits:
    """A reader of bits and Exp-Golomb codes; IndexError at the end."""

    def __init__(self, unit: bytes) -> None:
        payload = unit.replace(b"\x00\x00\x03", b"\x00\x00")  # emulation prevention
        self._value = int.from_bytes(payload)
        self._left = 8 * len(payload)

    def read(self, count: int) -> int:
        if count > self._left:
            raise IndexError("parameter set ends early")
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def unsigned(self) -> int:
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def signed(self) -> int:
        code = self.unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def _h264_size(bits: _Bits) -> tuple[int, int]:
    profile = bits.read(8)
    bits.read(16)  # constraints, level
    bits.unsigned()
    if profile in _H264_HIGH:
        chroma = bits.unsigned()
        if chroma == 3:
            bits.read(1)
        for _ in range(2):  # bit depths
            bits.unsigned()
        bits.read(1)  # transform bypass
        if bits.read(1):
            for index in range(8 if chroma != 3 else 12):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    bits.unsigned()  # log2 of the largest frame number
    order = bits.unsigned()
    if order == 0:
        bits.unsigned()
    elif order == 1:
        bits.read(1)
        for _ in range(2):
            bits.signed()
        for _ in range(min(bits.unsigned(), 255)):
            bits.signed()
    bits.unsigned()  # reference frames
    bits.read(1)  # gaps in their numbers
    width, height = bits.unsigned() + 1, bits.unsigned() + 1
    return 16 * width, 16 * height * (2 - bits.read(1))


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _hevc_size(bits: _Bits) -> tuple[int, int]:
    bits.read(4)
    layers = bits.read(3)
    bits.read(1 + 96)  # nesting; general profile, tier and level
    flags = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    if layers:
        bits.read(2 * (8 - layers))
    for has_profile, has_level in flags:
        bits.read(88 * has_profile + 8 * has_level)
    bits.unsigned()
    if bits.unsigned() == 3:
        bits.read(1)
    return bits.unsigned(), bits.unsigned()
