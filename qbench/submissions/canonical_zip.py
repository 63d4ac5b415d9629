"""A zip archive that can be spelled in one way only.

    a local header and the bytes of each member, one after another · the central directory · the end record

Every member is stored as it is, dated 1980, named in ASCII, with no comment, extra field, descriptor or 64-bit part. A reader makes each
header again from the member's name, size and checksum and compares bytes. So whatever else a zip can hide is no question here: data before,
between or after the members, overlaps, duplicates, links, encryption, compression, two directories that disagree. Any unzip can open it, and
the same members are the same bytes under every version of Python and zlib.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from qbench.submissions.strict_json import Refused

MOST_MEMBERS = 65_000
MOST_BYTES = 2**31
LONGEST_NAME = 100
_LOCAL, _CENTRAL, _END = (
    struct.Struct("<4s5H3L2H"),
    struct.Struct("<4s6H3L5H2L"),
    struct.Struct("<4s4H2LH"),
)
_STORED_SINCE, _MADE_BY_UNIX, _JANUARY_1980, _PLAIN_FILE = 10, 3 << 8 | 20, 0x21, 0o100644 << 16


@dataclass(frozen=True)
class Member:
    name: str
    size: int
    crc: int
    offset: int
    """Of the local header."""

    @property
    def data(self) -> int:
        return self.offset + _LOCAL.size + len(self.name)

    def local(self) -> bytes:
        fixed = (
            _STORED_SINCE,
            0,
            0,
            0,
            _JANUARY_1980,
            self.crc,
            self.size,
            self.size,
            len(self.name),
            0,
        )
        return _LOCAL.pack(b"PK\3\4", *fixed) + self.name.encode("ascii")

    def central(self) -> bytes:
        fixed = (
            _MADE_BY_UNIX,
            _STORED_SINCE,
            0,
            0,
            0,
            _JANUARY_1980,
            self.crc,
            self.size,
            self.size,
            len(self.name),
            0,
            0,
            0,
            0,
        )
        return _CENTRAL.pack(b"PK\1\2", *fixed, _PLAIN_FILE, self.offset) + self.name.encode(
            "ascii"
        )


def write(file: BinaryIO, members: Iterable[tuple[str, bytes]]) -> None:
    """Names and contents, in the order in which they are to stand."""
    written, offset = [], 0
    for name, data in members:
        member = Member(name, len(data), zlib.crc32(data), offset)
        offset = member.data + member.size
        written.append(member)
        if len(written) > MOST_MEMBERS or offset > MOST_BYTES:
            raise Refused(
                f"a bundle holds at most {MOST_MEMBERS} files and {MOST_BYTES >> 30} GiB: submit fewer runs at a time"
            )
        file.write(member.local())
        file.write(data)
    directory = b"".join(member.central() for member in written)
    file.write(directory + _end(len(written), len(directory), offset))


def _end(count: int, size: int, offset: int) -> bytes:
    return _END.pack(b"PK\5\6", 0, 0, count, count, size, offset, 0)


class Archive:
    """An archive that is open for reading, its headers compared."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size = file, file.seek(0, 2)
        if self.size > MOST_BYTES + MOST_MEMBERS * (_CENTRAL.size + LONGEST_NAME):
            raise Refused(f"larger than {MOST_BYTES >> 30} GiB")
        self.members = {member.name: member for member in self._directory()}

    def read(self, name: str, most: int) -> bytes:
        """A member's bytes, if they are at most so many and those of its checksum."""
        member = self.members[name]
        if member.size > most:
            raise Refused(f"{name} has {member.size} bytes, at most {most} are read")
        data = self._at(member.data, member.size)
        if zlib.crc32(data) != member.crc:
            raise Refused(f"{name} is not what its checksum says")
        return data

    def _directory(self) -> list[Member]:
        tail = self._at(max(0, self.size - _END.size), _END.size)
        if len(tail) < _END.size or not tail.startswith(b"PK\5\6"):
            start = self._at(0, 4)
            raise Refused(
                "a zip archive that is cut short or has data behind it"
                if start == b"PK\3\4"
                else "not a zip archive"
            )
        *_, count, size, offset, _ = _END.unpack(tail)
        if tail != _end(count, size, offset) or offset + size + _END.size != self.size:
            raise Refused("the end of the archive is not as qbench submit writes it")
        if not count:
            raise Refused("an empty archive")
        if count > MOST_MEMBERS or size > count * (_CENTRAL.size + LONGEST_NAME):
            raise Refused(f"more than {MOST_MEMBERS} members, or longer names than a bundle's")
        return list(self._members(self._at(offset, size), count, offset))

    def _members(self, directory: bytes, count: int, end: int) -> Iterable[Member]:
        place, offset, seen = 0, 0, set[str]()
        for _ in range(count):
            member = _read_central(directory, place, offset)
            if (
                member is None
                or directory[place : place + len(member.central())] != member.central()
            ):
                raise Refused(
                    f"the directory of the archive is not as qbench submit writes it (entry {len(seen) + 1})"
                )
            if self._at(offset, member.data - offset) != member.local():
                raise Refused(f"{member.name} has a header that is not as qbench submit writes it")
            if member.name in seen:
                raise Refused(f"{member.name} is there twice")
            seen.add(member.name)
            place, offset = place + len(member.central()), member.data + member.size
            yield member
        if place != len(directory) or offset != end:
            raise Refused("the archive has data between its members and its directory")

    def _at(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(size)


def _read_central(directory: bytes, place: int, offset: int) -> Member | None:
    """The member that an entry speaks of, if it were written by `write` at that offset."""
    if len(directory) < place + _CENTRAL.size:
        return None
    fields = _CENTRAL.unpack_from(directory, place)
    crc, size, length = fields[7], fields[9], fields[10]
    name = directory[place + _CENTRAL.size : place + _CENTRAL.size + length]
    return (
        Member(name.decode("ascii"), size, crc, offset)
        if len(name) == length and name.isascii()
        else None
    )
