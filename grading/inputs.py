"""Reading what strangers hand in: files, folders, archives, and downloads without folders.

Only regular files are read, and no more of them than fits a submission. Archives are unpacked into
a folder of the grader: regular files only, under names that stay in it, and never more bytes than
its limits, whatever the archive says about itself.
"""

import bz2
import gzip
import io
import itertools
import lzma
import os
import re
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from harness.escape import printable

SOURCE_BYTES = 1 << 20  # of one file
DEPTH, N_ENTRIES = 20, 10_000  # folders below, and files of, a person's folder or an archive
ARCHIVE_BYTES = 128 << 20  # of an archive
MEMBER_BYTES = 32 << 20  # of a file in it
UNPACKED_BYTES = 64 << 20  # of all files that are kept
STREAM_BYTES = 512 << 20  # that a tar archive may become, with what is left out
NOT_PEOPLES = {"__pycache__", "node_modules", "venv", "site-packages", "__MACOSX"}
TAR = {
    ".tar": lambda file: file,
    ".tar.gz": lambda file: gzip.GzipFile(fileobj=file),
    ".tgz": lambda file: gzip.GzipFile(fileobj=file),
    ".tar.bz2": bz2.BZ2File,
    ".tar.xz": lzma.LZMAFile,
}
NOT_READ = (".rar", ".7z", ".zipx", ".tar.zst")
# How Moodle names a person's folders, one for each kind of hand-in, and files without folders.
MOODLE = r"(?P<who>.+?_\d+)_assignsubmission_[a-z]+(?:_(?P<rest>.*))?"
# How Moodle, Blackboard and Canvas name files that they put into one folder, and how people do.
FLAT = (
    MOODLE,
    r".+?_(?P<who>[^_]+)_attempt_\d{4}(?:-\d\d){5}(?:_(?P<rest>.+)|\.txt)",
    r"(?P<name>.+?)(?:_LATE)?(?P<id>_\d{3,})(?:_\d{3,})?_(?P<rest>\D.*)",
    r"(?P<who>.+?)[_-](?P<rest>a3_(?:vae|gan|nf)_template.*)",
)


class Unreadable(Exception):
    """A file that is not read; the message says why."""


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading.

    Raises:
        Unreadable: it is a link, device or FIFO, or can't be read.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for somebody who writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unreadable("no regular file")
            yield file
    except OSError as error:
        is_link = os.path.islink(path)
        raise Unreadable("a link" if is_link else error.strerror or str(error)) from error


def read_regular(path: Path, at_most: int = SOURCE_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        Unreadable: as for `open_regular`, or it is larger than `at_most` bytes.
    """
    with open_regular(path) as file:
        content = file.read(at_most + 1)
    if len(content) > at_most:
        raise Unreadable(f"larger than {at_most >> 20} MB")
    return content


def walk(root: Path, depth: int, skipped: set[str]) -> Iterator[tuple[Path, str]]:
    """(path, "") of each regular file below a folder, (path, reason) of what is not looked at.

    Hidden files and folders, and folders of these names, are left out silently. Links are not
    followed; those that lead to a file in the same folder's tree have the reason "a link".
    """
    todo, n = [(root, 1)], 0
    while todo:
        folder, level = todo.pop()
        try:
            with os.scandir(folder) as found:
                entries = list(itertools.islice(found, N_ENTRIES + 1))
        except OSError as error:
            yield folder, f"cannot be searched: {error.strerror}"
            continue
        for entry in sorted(entries, key=lambda entry: entry.name):
            path, n = Path(entry.path), n + 1
            if n > N_ENTRIES:
                yield folder, f"more than {N_ENTRIES:,} files: the rest is not looked at"
                return
            if entry.name.startswith(".") or entry.name in skipped:
                continue
            if entry.is_symlink():
                yield path, "a link" if inside(path, root) else f"a link out of {root.name}/"
            elif entry.is_dir(follow_symlinks=False):
                if level < depth:
                    todo.append((path, level + 1))
                else:
                    yield path, f"deeper than {depth} folders"
            else:
                regular = entry.is_file(follow_symlinks=False)
                yield path, "" if regular else "no regular file"


def inside(link: Path, root: Path) -> Path | None:
    """The file that a link leads to, if it lies below `root`."""
    try:
        target = Path(os.path.realpath(link, strict=True))
        return target if target.is_relative_to(os.path.realpath(root)) else None
    except OSError:  # a loop, or nothing there
        return None


# --- Downloads without folders
def flat_name(name: str) -> tuple[str, str] | None:
    """(whose it is, the file's own name) of a file in a download without folders, or None.

    `lee_123_a3_vae_template.py` is ("lee_123", "a3_vae_template.py"): the number tells people of
    the same name apart.
    """
    for pattern in FLAT:
        if match := re.fullmatch(pattern, name, re.IGNORECASE):
            parts = match.groupdict()
            who = parts.get("who") or parts["name"] + parts["id"]
            rest = parts["rest"] or name
            return who, name if rest.startswith(".") else rest  # .zip alone would be hidden
    return None


def moodle_name(folder: str) -> str | None:
    """Whose folder of a download from Moodle it is, or None."""
    match = re.fullmatch(MOODLE, folder, re.IGNORECASE)
    return match and match["who"]


def copy_flat(files: list[tuple[str, Path]], folder: Path) -> list[str]:
    """Copy a person's files into a folder under their own names; returns what is not read."""
    notes = []
    for name, path in files:
        try:
            content = read_regular(path, MEMBER_BYTES)
            with open(folder / name, "xb") as file:  # a name may be ".."
                file.write(content)
        except FileExistsError:
            notes.append(f"{printable(path.name)}: there is another {printable(name)}")
        except (Unreadable, OSError) as reason:
            notes.append(f"{printable(path.name)}: {_words(reason)}")
    return notes


# --- Archives
class _Member(NamedTuple):
    name: str
    kind: str  # "", or what it is instead of a regular file
    size: int  # as the archive says
    read: Callable[[int], bytes]


def stem_of(name: str) -> str | None:
    """An archive's name without its ending, NOT_READ or not; None if it is no archive."""
    for ending in (".zip", *TAR, *NOT_READ):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return None


def unpack(archive: Path, scratch: Path) -> tuple[Path, list[str]]:
    """Unpack an archive: (a new folder in `scratch`, what of it is not read, a line each).

    Raises:
        Unreadable: it is no archive, of another kind, too large, or damaged from the start.
    """
    if archive.name.lower().endswith(NOT_READ):
        raise Unreadable("archives of this kind are not read: unpack it by hand")
    folder, notes, left = Path(tempfile.mkdtemp(dir=scratch)), [], UNPACKED_BYTES
    with open_regular(archive) as file:
        if os.fstat(file.fileno()).st_size > ARCHIVE_BYTES:
            raise Unreadable(f"larger than {ARCHIVE_BYTES >> 20} MB: unpack it by hand")
        members, n = _members(archive.name.lower(), file), 0
        try:
            for n, member in enumerate(members, 1):
                if n > N_ENTRIES:
                    notes.append(f"more than {N_ENTRIES:,} files: the rest is not unpacked")
                    break
                path, is_folder, reason = _place(member)
                # Made for what is left out, too: it may be all that tells of a person.
                reason = reason or _make_folder(folder / (path if is_folder else path.parent))
                if not (reason or is_folder):
                    reason, size = _write(member, folder / path, left)
                    left -= size
                if reason:
                    notes.append(f"{printable(member.name[:200])}: {reason}")
        except Unreadable:
            raise
        except Exception as error:  # foreign bytes can make the libraries raise anything
            if n == 0:
                raise Unreadable(f"no readable archive: {_words(error)}") from error
            notes.append(f"the rest can't be unpacked: {_words(error)}")
    return folder, notes


def _words(error):
    """An error in one line, without paths in the scratch folder."""
    lines = (getattr(error, "strerror", None) or str(error)).splitlines()
    return printable(lines[0] if lines else type(error).__name__)[:200]


def _place(member) -> tuple[PurePosixPath, bool, str]:
    """(where a member belongs, whether it is a folder, why it is left out).

    What is hidden, or in NOT_PEOPLES, counts as the folder that it lies in.
    """
    path = PurePosixPath(member.name.replace("\\", "/"))
    seen = PurePosixPath(*itertools.takewhile(lambda part: not _is_skipped(part), path.parts))
    is_folder = member.kind == "folder" or seen != path or not path.parts
    if seen.is_absolute() or ".." in seen.parts or ":" in "".join(seen.parts[:1]):
        return seen, is_folder, "a path out of the archive"
    if len(seen.parts) > DEPTH or any(len(os.fsencode(part)) > 255 for part in seen.parts):
        return seen, is_folder, "its path is too long"
    return seen, is_folder, ""


def _is_skipped(name):
    return name.startswith(".") and name != ".." or name in NOT_PEOPLES


def _make_folder(path) -> str:
    """Make a folder; returns why it can't be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        return f"can't be unpacked: {_words(error)}"
    return ""


def _write(member, target, left) -> tuple[str, int]:
    """(why it is not unpacked or "", bytes written)."""
    if member.kind:
        return member.kind, 0
    at_most = min(MEMBER_BYTES, left)
    if member.size > at_most:
        return f"larger than the {at_most / 2**20:.0f} MB that are left", 0
    try:
        content = member.read(at_most + 1)
    except Exception as error:
        return f"can't be unpacked: {_words(error)}", 0
    if len(content) > at_most:
        return "larger than the archive says", 0
    try:
        with open(target, "xb") as file:
            file.write(content)
    except FileExistsError:
        return "twice in the archive", 0
    except (OSError, ValueError) as error:
        return f"can't be unpacked: {_words(error)}", 0
    return "", len(content)


def _members(name, file) -> Iterator[_Member]:
    if name.endswith(".zip"):
        yield from _zip_members(file)
        return
    opened = next(make for ending, make in TAR.items() if name.endswith(ending))(file)
    with tarfile.open(fileobj=_Counted(opened), mode="r|") as archive:
        for member in archive:
            kinds = {"folder": member.isdir(), "a link": member.issym() or member.islnk()}
            kind = next((words for words, is_it in kinds.items() if is_it), "no regular file")
            stream = archive.extractfile(member) if member.isreg() else io.BytesIO()
            yield _Member(member.name, "" if member.isreg() else kind, member.size, stream.read)


def _zip_members(file):
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            words = {stat.S_IFLNK: "a link", 0: "", stat.S_IFREG: ""}.get(kind, "no regular file")

            def read(size, info=info):
                with archive.open(info) as stream:
                    return stream.read(size)

            if info.filename.endswith("/"):  # is_dir() fails where there is no name
                words = "folder"
            yield _Member(info.filename, words, info.file_size, read)


class _Counted:
    """A stream that ends a decompression which goes on and on."""

    def __init__(self, stream):
        self.stream, self.left = stream, STREAM_BYTES

    def read(self, size):
        self.left -= size
        if self.left < 0:
            raise OSError(f"it becomes larger than {STREAM_BYTES >> 20} MB")
        return self.stream.read(size)
