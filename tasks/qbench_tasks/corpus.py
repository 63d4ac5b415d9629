"""Where text comes from: the running Python's own library, files and folders, or the Hugging Face
hub.

A source yields documents in UTF-8. A document is a file of the library, or a record of a .jsonl or
.parquet file or of a data set. A plain file has no records, so its documents are pieces that end
where a line ends. A source's signature says, without reading the documents, whether they may have
changed.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.api import UsageError
from qbench_tasks.files import read_documents
from qbench_tasks.vocabulary import NOT_INSTALLED

SCHEMES = 'write "stdlib", "path:FILE-OR-FOLDER" or "hf:OWNER/NAME[/CONFIG][@REVISION]"'
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
HUB_TIMEOUT_S = 5.0

# Folders of the library that are not Python's own, its tests, and generated tables.
EXCLUDED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
}
# Parts that distributions leave out or alter. Others should be the same wherever this Python is.
EXCLUDED_FOLDERS |= {"idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "distutils"}
# Files that are written where Python is built or installed, and name its paths.
MACHINE_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize", "config-")


class Source(ABC):
    """Something that documents can be read from."""

    @abstractmethod
    def documents(self) -> Iterator[bytes]:
        """Yield all documents, in any order, empty ones included.

        Raises:
            UsageError: In one line, if anything is wrong with the text.
        """

    @abstractmethod
    def signature(self) -> list[Any]:
        """Return a value for JSON that differs if the documents may differ."""


def parse_source(corpus: str, field: str = "text") -> Source:
    """Return the source that a task's option names."""
    scheme, _, rest = corpus.partition(":")
    if corpus == "stdlib":
        return Library()
    if scheme == "path" and rest:
        return Files(resolve_path(rest), field)
    if scheme == "hf" and (match := HUB_NAME.fullmatch(rest)):
        return Hub(match["name"], match["config"], match["revision"], field)
    raise UsageError(f"unknown corpus {corpus!r}; {SCHEMES}")


@dataclass(frozen=True)
class Library(Source):
    """The modules of the running Python's standard library, one file a document.

    Files that are not UTF-8 are left out.
    """

    root: Path = Path(sysconfig.get_path("stdlib"))

    def documents(self) -> Iterator[bytes]:
        for path in self.paths():
            text = path.read_bytes()
            try:
                text.decode()
            except UnicodeDecodeError:
                continue
            yield text

    def signature(self) -> list[Any]:
        return [sys.version, *read_stamps(self.paths())]

    def paths(self) -> Iterator[Path]:
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(
                name
                for name in folders
                if name not in EXCLUDED_FOLDERS and not name.startswith(MACHINE_FILES)
            )
            yield from (
                Path(folder, name)
                for name in sorted(names)
                if name.endswith(".py") and not name.startswith(MACHINE_FILES)
            )


@dataclass(frozen=True)
class Files(Source):
    """A file, or all files of a folder and the folders in it; hidden ones are left out."""

    path: Path
    field: str

    def documents(self) -> Iterator[bytes]:
        for path in self.paths():
            yield from read_documents(path, self.field)

    def signature(self) -> list[Any]:
        return [self.field, *read_stamps(self.paths())]

    def paths(self) -> list[Path]:
        if self.path.is_dir():
            found = sorted(
                p
                for p in self.path.rglob("*")
                if p.is_file() and not is_hidden(p.relative_to(self.path))
            )
        else:
            found = [self.path] if self.path.exists() else []
        if not found:
            problem = "no file in this folder" if self.path.is_dir() else "no such file or folder"
            raise UsageError(f"{self.path}: {problem}")
        return found


@dataclass(frozen=True)
class Hub(Source):
    """The split `train` of a data set on the hub, read as a stream."""

    name: str
    config: str | None = None
    revision: str | None = None
    field: str = "text"
    files: tuple[str, ...] = ()
    """Local files, for a `name` that is a builder of datasets (json, text, parquet).

    They are read by the same code as a data set of the hub.
    """

    def documents(self) -> Iterator[bytes]:
        try:
            import datasets
        except ImportError:
            raise UsageError(NOT_INSTALLED.format("datasets, which reads the hub,")) from None
        revision = None if self.files else self.find_commit()
        try:
            rows = datasets.load_dataset(
                self.name,
                self.config,
                revision=revision,
                split="train",
                streaming=True,
                data_files=list(self.files) or None,
            )
            yield from self.read_texts(rows)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"hf:{self.name}: {describe_error(error)}") from error

    def read_texts(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
        """Yield the text of each record."""
        for number, row in enumerate(rows, 1):
            if not isinstance(text := row.get(self.field), str):
                raise UsageError(
                    f"hf:{self.name}: record {number} has no text {self.field!r} "
                    f"(it has {', '.join(row)}): name it by field ="
                )
            yield text.encode()

    def find_commit(self) -> str:
        """Return the hub's commit that `revision` stands for now.

        This is one request with a timeout, so a missing network is an error at once. The library
        datasets would try for minutes.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            return str(
                HfApi().dataset_info(self.name, revision=self.revision, timeout=HUB_TIMEOUT_S).sha
            )
        except RepositoryNotFoundError:
            raise UsageError(
                f"hf:{self.name}: the hub has no such data set, or it is not open to you"
            ) from None
        except RevisionNotFoundError:
            raise UsageError(
                f"hf:{self.name}: the hub has no revision {self.revision!r} of it"
            ) from None
        except Exception as error:
            raise UsageError(
                f"hf:{self.name}: the hub cannot be reached ({describe_error(error)}); "
                f'copy the files to this machine and write corpus = "path:…"'
            ) from error

    def signature(self) -> list[Any]:
        return [
            self.name,
            self.config,
            self.revision,
            self.field,
            *read_stamps(map(Path, self.files)),
        ]


def resolve_path(text: str) -> Path:
    """Return the absolute path of what somebody wrote, which may begin with ~."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise UsageError(f"{text}: there is no such home folder; write the whole path") from None


def read_stamps(paths: Iterable[Path]) -> list[list[Any]]:
    """Return for each file its path, size, times and inode, of which every change alters something.

    The time of the last change of the inode is one of them, because it cannot be set back by hand.
    """
    result = []
    for path in paths:
        stat = path.stat()
        result.append([str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])
    return result


def is_hidden(path: Path) -> bool:
    """Return whether a file or one of its folders begins with a point."""
    return any(part.startswith(".") for part in path.parts)


def describe_error(error: BaseException) -> str:
    """Return an exception in one line of at most 200 characters."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]
