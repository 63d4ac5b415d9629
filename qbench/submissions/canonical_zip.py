"""A zip archive that can be written in exactly one way.

    local header + bytes of each member, one after another | central directory | end record

Every member is stored without compression, is dated 1980 and has an ASCII name. There are no
comments, extra fields, data descriptors or 64-bit parts. A reader builds each header again from
the member's name, size and checksum, and compares bytes. This excludes whatever else a zip can
hide: data before, between or after the members, overlapping or duplicate members, links,
encryption, compression, and two directories that disagree. Any unzip program can open such an
archive, and the same members give the same bytes under every version of Python and zlib.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from qbench.submissions.strict_json import SubmissionError

MAX_MEMBERS = 65_000
# The end record counts members in 16 bits and bytes in 32: both limits stay below what would need
# the 64-bit extension, which this format does not have.
MAX_BYTES = 2**31
MAX_NAME_LENGTH = 100

# The three records of the zip format, little-endian and without padding (APPNOTE.TXT, 4.3).
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCAL_SIGNATURE, _CENTRAL_SIGNATURE, _END_SIGNATURE = b"PK\3\4", b"PK\1\2", b"PK\5\6"

# The fixed values of the fields that do not depend on a member.
_VERSION_NEEDED = 10  # 1.0: stored members need no feature of a later version
_VERSION_MADE_BY = 3 << 8 | 20  # host system Unix, version 2.0
_DATE_1980_01_01 = 0x21
_REGULAR_FILE_0644 = 0o100644 << 16  # the Unix mode is the upper half of the attributes


@dataclass(frozen=True)
class ZipMember:
    """A file in the archive and the headers that belong to it."""

    name: str
    size: int
    crc: int
    header_offset: int

    @property
    def data_offset(self) -> int:
        return self.header_offset + _LOCAL.size + len(self.name)

    def encode_local_header(self) -> bytes:
        """Return the header that precedes the member's bytes."""
        flags, method, time, extra_length = 0, 0, 0, 0
        header = _LOCAL.pack(
            _LOCAL_SIGNATURE, _VERSION_NEEDED, flags, method, time, _DATE_1980_01_01,
            self.crc, self.size, self.size, len(self.name), extra_length,
        )  # fmt: skip
        return header + self.name.encode("ascii")

    def encode_directory_entry(self) -> bytes:
        """Return the member's entry in the central directory."""
        flags, method, time = 0, 0, 0
        extra_length, comment_length, disk, internal_attributes = 0, 0, 0, 0
        entry = _CENTRAL.pack(
            _CENTRAL_SIGNATURE, _VERSION_MADE_BY, _VERSION_NEEDED, flags, method, time,
            _DATE_1980_01_01, self.crc, self.size, self.size, len(self.name), extra_length,
            comment_length, disk, internal_attributes, _REGULAR_FILE_0644, self.header_offset,
        )  # fmt: skip
        return entry + self.name.encode("ascii")


def write_archive(file: BinaryIO, members: Iterable[tuple[str, bytes]]) -> None:
    """Write an archive of (name, content) pairs in the given order."""
    written, offset = [], 0
    for name, data in members:
        member = ZipMember(name, len(data), zlib.crc32(data), offset)
        offset = member.data_offset + member.size
        written.append(member)
        if len(written) > MAX_MEMBERS or offset > MAX_BYTES:
            raise SubmissionError(
                f"a bundle holds at most {MAX_MEMBERS} files and {MAX_BYTES >> 30} GiB: "
                "submit fewer runs at a time"
            )
        file.write(member.encode_local_header())
        file.write(data)
    directory = b"".join(member.encode_directory_entry() for member in written)
    file.write(directory + _encode_end_record(len(written), len(directory), offset))


class CanonicalZip:
    """An archive that is open for reading; its headers were compared when it was opened."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size = file, file.seek(0, 2)
        if self.size > MAX_BYTES + MAX_MEMBERS * (_CENTRAL.size + MAX_NAME_LENGTH):
            raise SubmissionError(f"the file is larger than {MAX_BYTES >> 30} GiB")
        self.members = {member.name: member for member in self._read_members()}

    def read_member(self, name: str, max_bytes: int) -> bytes:
        """Return a member's bytes; refuse a member that is too large or fails its checksum."""
        member = self.members[name]
        # The size is checked before the data is read, so that memory use stays bounded.
        if member.size > max_bytes:
            raise SubmissionError(
                f"{name} has {member.size} bytes, but at most {max_bytes} are allowed"
            )
        data = self._read_at(member.data_offset, member.size)
        if zlib.crc32(data) != member.crc:
            raise SubmissionError(f"{name} does not match its checksum in the archive")
        return data

    def _read_members(self) -> list[ZipMember]:
        end_record = self._read_at(max(0, self.size - _END.size), _END.size)
        if len(end_record) < _END.size or not end_record.startswith(_END_SIGNATURE):
            begins_as_zip = self._read_at(0, 4) == _LOCAL_SIGNATURE
            raise SubmissionError(
                "the zip archive is cut short or has data after its end"
                if begins_as_zip
                else "not a zip archive"
            )
        *_, count, size, offset, _ = _END.unpack(end_record)
        # Comparing the rebuilt record excludes comments, several disks and 64-bit archives.
        if (
            end_record != _encode_end_record(count, size, offset)
            or offset + size + _END.size != self.size
        ):
            raise SubmissionError(
                "the end record of the archive differs from what `qbench submit` writes"
            )
        if not count:
            raise SubmissionError("the archive is empty")
        # Both limits are checked before the directory is read into memory.
        if count > MAX_MEMBERS or size > count * (_CENTRAL.size + MAX_NAME_LENGTH):
            raise SubmissionError(
                f"the archive has more than {MAX_MEMBERS} members or names that are too long"
            )
        return list(self._parse_directory(self._read_at(offset, size), count, offset))

    def _parse_directory(
        self, directory: bytes, count: int, directory_offset: int
    ) -> Iterator[ZipMember]:
        """Yield the members; each must begin where the one before it ends."""
        place, offset, names = 0, 0, set[str]()
        for number in range(1, count + 1):
            member = _parse_directory_entry(directory, place, offset)
            entry = member.encode_directory_entry() if member else b""
            if member is None or directory[place : place + len(entry)] != entry:
                raise SubmissionError(
                    f"entry {number} of the archive's directory differs from what "
                    "`qbench submit` writes"
                )
            header = self._read_at(offset, member.data_offset - offset)
            if header != member.encode_local_header():
                raise SubmissionError(
                    f"the header of {member.name} differs from what `qbench submit` writes"
                )
            if member.name in names:
                raise SubmissionError(f"{member.name} is in the archive twice")
            names.add(member.name)
            place, offset = place + len(entry), member.data_offset + member.size
            yield member
        if place != len(directory) or offset != directory_offset:
            raise SubmissionError("the archive has data between its members and its directory")

    def _read_at(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(size)


def _encode_end_record(count: int, directory_size: int, directory_offset: int) -> bytes:
    disk, directory_disk, comment_length = 0, 0, 0
    return _END.pack(
        _END_SIGNATURE, disk, directory_disk, count, count, directory_size, directory_offset,
        comment_length,
    )  # fmt: skip


def _parse_directory_entry(directory: bytes, place: int, offset: int) -> ZipMember | None:
    """Return the member that an entry names, assuming that its header is at `offset`.

    Return None if the entry is cut short or its name is not ASCII. The caller compares all other
    fields by encoding the entry again.
    """
    if len(directory) < place + _CENTRAL.size:
        return None
    fields = _CENTRAL.unpack_from(directory, place)
    crc, size, length = fields[7], fields[9], fields[10]
    name = directory[place + _CENTRAL.size : place + _CENTRAL.size + length]
    if len(name) != length or not name.isascii():
        return None
    return ZipMember(name.decode("ascii"), size, crc, offset)
