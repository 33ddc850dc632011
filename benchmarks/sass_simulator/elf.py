"""What a cubin says of its kernels outside of their code: a cubin is an ELF file."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PARAM_CBANK, FRAME_SIZE, REGISTERS = 0x0A, 0x11, 0x2F  # attributes in .nv.info (EIATTR_...)
NO_BITS = 8  # a section without data in the file


@dataclass(frozen=True)
class Section:
    name: str
    kind: int
    size: int
    data: bytes  # empty if NO_BITS
    symbols: int  # which section holds its symbols, or its strings


class Elf:
    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        if content[:4] != b"\x7fELF":
            raise ValueError(f"{path} is no cubin")
        (offset,) = struct.unpack_from("<Q", content, 40)
        size, count, names_at = struct.unpack_from("<HHH", content, 58)
        headers = [struct.unpack_from("<IIQQQQII", content, offset + n * size) for n in range(count)]
        names = content[headers[names_at][4] :]
        self.list = [
            Section(
                _text(names, h[0]), h[1], h[5], b"" if h[1] == NO_BITS else content[h[4] : h[4] + h[5]], h[6]
            )
            for h in headers
        ]
        self.sections = {section.name: section for section in self.list}

    @cached_property
    def symbols(self) -> list[str]:
        """Names, at their index."""
        table = self.sections[".symtab"]
        strings = self.list[table.symbols].data
        return [_text(strings, *struct.unpack_from("<I", table.data, at)) for at in range(0, table.size, 24)]

    def kernels(self) -> list[str]:
        return [name.removeprefix(".text.") for name in self.sections if name.startswith(".text.")]

    def attribute(self, kernel: str, wanted: int) -> bytes:
        """An attribute of a kernel, without the index of its symbol."""
        for name in (f".nv.info.{kernel}", ".nv.info"):
            for code, value in _attributes(self.sections[name].data):
                of_kernel = name != ".nv.info" or self.symbols[int.from_bytes(value[:4], "little")] == kernel
                if code == wanted and of_kernel:
                    return value[4:]
        raise ValueError(f"{kernel} has no attribute {wanted:#x} in its .nv.info")

    def size(self, name: str) -> int:
        return self.sections[name].size if name in self.sections else 0

    def data(self, name: str) -> bytes:
        return self.sections[name].data if name in self.sections else b""


def _text(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()


def _attributes(data: bytes) -> list[tuple[int, bytes]]:
    """(code, value): a format byte, a code byte, then two bytes of value, or of its length."""
    found, at = [], 0
    while at < len(data):
        form, code, length = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == 4:
            found.append((code, data[at : at + length]))
            at += length
    return found
