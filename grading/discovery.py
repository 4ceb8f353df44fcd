"""Whose the files in a folder are that strangers filled, and which of them are judged."""

import os
import re
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gencheck.outcomes import one_line
from grading.code_files import MODELS, TITLES, code_in, is_code, rank, size_limit, with_imported
from grading.inputs import (
    DEPTH,
    NOT_PEOPLES,
    Unreadable,
    copy_flat,
    flat_name,
    moodle_name,
    read_regular,
    stem_of,
    unpack,
    walk,
)
from grading.results import FileResult
from harness.escape import printable

OURS = {"datasets", "examples", "figures", "gencheck", "grading", "harness", "tests"}
NOT_COPIED = NOT_PEOPLES | {"runs", "data"}
COPIED_BYTES = 32 << 20  # of the code in a folder, and of all files that are copied from it
N_NOTES = 10  # lines about a person's folder
N_ARCHIVES = 10  # of a person, those in archives included
NOBODY = "(nobody)"  # the name beside files that are nobody's submission
# Folders with names of such words only are parts or versions of one person's work.
OF_WORK = re.compile(
    r"assignment|attempt|backup|code|copy|draft|exp|experiments?|extra|final|flows?|gans?|new|nf"
    r"|notebooks?|old|parts?|previous|py|python|question|source|src|task|template|test|try|v|vaes?"
    r"|version"
)
# A folder with such a word in its name, too; Harold and Newman are people.
OLDER = re.compile(
    r"(?<![a-z])(?:(?:old|back|bak|backup|copy|draft|prev|previous|final|test|try|version|attempt"
    r"|archive|new)s?(?![a-z])|v\d)"
)


@dataclass
class Person:
    """One person's submission.

    Args:
        name: printable.
        files: a file for each model.
        results: by model, filled by `grader.grade`.
        roots: the folders that hold the submission, which links may not leave, with what a report
            puts before a path in them: "" for the person's folder, the archive's path for one.
        notes: what was not read, a line each.
        others: what was read and is not judged, a line each with the reason.
        code: the files of code in it.
        is_person: not so for files that are nobody's submission.
    """

    name: str
    files: dict[str, Path] = field(default_factory=dict)
    results: dict[str, FileResult] = field(default_factory=dict)
    roots: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    code: list[Path] = field(default_factory=list)
    is_person: bool = True

    def root_of(self, path: Path) -> Path:
        """The root that a file lies in."""
        return next(root for root in self.roots if path.is_relative_to(root))

    def shown(self, path: Path) -> str:
        """A file's path as a report shows it: below the person's folder, or in an archive."""
        root = self.root_of(path)
        return printable(os.path.join(self.roots[root], path.relative_to(root)))

    def reason(self) -> str:
        """Why nothing of this person is judged, or ""."""
        if self.files or not self.is_person:
            return ""
        return "; ".join(self.notes[:1] or ["no file of the assignment"])


def discover(path: Path, scratch: Path) -> list[Person]:
    """The submissions in a file or folder, and an entry `NOBODY` for files that are nobody's.

    A folder with one of the assignment's files directly in it is one person's, unless the folders,
    archives and flat downloads beside it hold the same models or are Moodle's: then each of them is
    a person's, and a file that still raises NotImplementedError is the course's hand-out. Folders
    that all hold several people's folders are groups, and searched in the same way. Whoever handed
    in anything is there, whether it holds a file of the assignment or not.

    Args:
        path: a file, an archive, or a folder.
        scratch: an empty folder for what is unpacked.

    Raises:
        OSError: the folder itself can't be read.
        Unreadable: the archive can't.
    """
    if path.is_dir():
        return _people(path, "", scratch)
    if stem_of(path.name) is not None:
        folder, notes = unpack(path, scratch)
        people = _people(folder, "", scratch, printable(stem_of(path.name)))
        if notes:
            people.append(Person(NOBODY, notes=shortened(notes, "files"), is_person=False))
        return people
    code = code_in(path) if is_code(path) else None
    if code is None or not code.models:
        return []
    files = dict.fromkeys(code.models, path)
    return [Person(printable(path.stem), files, roots={path.parent: ""})]


def _people(folder, prefix, scratch, name="") -> list[Person]:
    own, parts, nobodys = [], [], Person(NOBODY, is_person=False)
    flat: dict[str, list[tuple[str, Path]]] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path, shown = Path(entry.path), printable(entry.name)
        if entry.name.startswith(".") or entry.name in NOT_PEOPLES:
            continue
        if entry.is_symlink() and path.is_dir():
            parts.append(Person(shown, notes=["a link to a folder: not followed"]))
        elif entry.is_dir(follow_symlinks=False):
            if who := moodle_name(entry.name):
                flat.setdefault(who, []).append((entry.name, path))
            else:
                parts.append(_part(shown, path, scratch))
        elif not entry.is_file(follow_symlinks=False):
            nobodys.notes.append(f"{prefix}{shown}: no regular file")
        elif flat_of := flat_name(entry.name):
            flat.setdefault(flat_of[0], []).append((flat_of[1], path))
        elif stem_of(entry.name) is not None:
            parts.append(_archive(path, scratch))
        elif is_code(path) and code_in(path).models:
            own.append(path)
        else:
            nobodys.others.append(f"{prefix}{shown}: no file of the assignment")
    not_people = [p for p in parts if p.name in OURS | NOT_COPIED]
    parts = [p for p in parts if p not in not_people]
    nobodys.others += [f"{prefix}{p.name}/: no person's folder" for p in not_people]
    downloads = [_flat(who, files, scratch) for who, files in flat.items()]
    named = [path for files in flat.values() for _, path in files]
    is_moodles = any(map(os.path.isdir, named))
    is_class = is_moodles or own or len([p for p in parts if p.files]) != 1
    if is_class or any(p.files or p.notes for p in downloads):
        parts += downloads
    else:  # such as epoch_100_samples.png beside the one folder with code
        words = "no file of the assignment"
        nobodys.others += [f"{prefix}{printable(path.name)}: {words}" for path in named]
    name = name or printable(folder.name)
    with_files = [p for p in parts if p.files]
    if len(with_files) > 1 and not own and all(_is_of_work(p.name) for p in with_files):
        return [_part(f"{prefix}{name}", folder, scratch)]
    if own and not is_moodles and _is_one_persons(own, with_files):
        return [_part(f"{prefix}{name}", folder, scratch)]
    if with_files and not own and all(p not in downloads and _is_group(p) for p in with_files):
        people = [p for p in parts if not p.files]
        for group in with_files:
            root = next(iter(group.roots))
            people += _people(root, f"{group.name}/", scratch, group.name)
    else:
        people = parts
        if any(map(_is_handout, own)):
            words = "the hand-out, nobody's submission"
            nobodys.others += [f"{prefix}{printable(path.name)}: {words}" for path in own]
        elif own:
            people.append(_person(name, {folder: ""}, own))
    for person in people:
        person.name = f"{prefix}{person.name}"
        if not person.is_person:
            nobodys.notes += [f"{prefix}{note}" for note in person.notes]
            nobodys.others += [f"{prefix}{line}" for line in person.others]
    people = [person for person in people if person.is_person]
    _tell_apart(people)
    nobodys.others = shortened(nobodys.others, "files")
    return people + ([nobodys] if nobodys.others or nobodys.notes else [])


def _part(name, folder, scratch, *more):
    """The person of a folder or several, with what archives in them hold."""
    roots = dict.fromkeys((folder, *more), "")
    try:
        return _searched(Person(name, roots=dict(roots)), scratch)
    except Exception as error:  # whatever it is, the others are not to blame
        words = getattr(error, "strerror", None) or one_line(error)
        return Person(name, roots=roots, notes=[f"cannot be searched: {words}"])


def _archive(path, scratch):
    name = printable(stem_of(path.name))
    try:
        folder, notes = unpack(path, scratch)
    except Unreadable as reason:
        return Person(name, notes=[f"{printable(path.name)}: {reason}"])
    person = _part(name, folder, scratch)
    person.notes = shortened(notes + person.notes, "files")
    return person


def _flat(who, files, scratch):
    """The person of files that begin with their name, and of Moodle's folders."""
    folders = [path for _, path in files if os.path.isdir(path)]
    copies = Path(tempfile.mkdtemp(dir=scratch))
    notes = copy_flat([file for file in files if file[1] not in folders], copies)
    person = _part(printable(who), copies, scratch, *folders)
    person.notes = shortened(notes + person.notes, "files")
    return person


def _is_one_persons(own, parts) -> bool:
    """Whether a folder with files of its own is one person's, whatever lies in folders below.

    It is, unless two parts have the same models as its own files or each other, or one part and a
    file that is still the hand-out.
    """
    models = [{m for path in own for m in code_in(path).models}, *(set(p.files) for p in parts)]
    shared = [part for part in models[1:] if part & models[0]]
    if len(parts) == 1:
        return not (shared and any(_is_handout(path) for path in own))
    return sum(map(len, models)) == len(set().union(*models))


def _is_handout(path) -> bool:
    try:
        return b"NotImplementedError" in read_regular(path, size_limit(path))
    except Unreadable:
        return False


def _is_group(person) -> bool:
    """Whether a folder holds people's folders: two of them, or flat downloads, share a model.

    One of Moodle's is enough.
    """
    root = next(iter(person.roots))
    if any(moodle_name(name) and os.path.isdir(root / name) for name in os.listdir(root)):
        return True
    by_child: dict[str, set[str]] = {}
    for path in person.code:
        code = code_in(path)
        if code.reason:  # such as a link: it says nothing about the others
            continue
        first, *below = Path(person.shown(path)).parts
        whose = flat_name(first)
        if not below and not whose:
            return False
        models = code.models if code.named else []  # of layers.py beside a model's file, none
        by_child.setdefault(first if below else whose[0], set()).update(models)
    names = [name for name, models in by_child.items() if models]
    if any(OLDER.search(name.lower()) or _is_of_work(name) for name in names):
        return False
    found = [by_child[name] for name in names]
    return sum(map(len, found)) > len(set().union(*found))


def _is_of_work(name) -> bool:
    """Whether a folder's name consists of words for parts and versions of one's work."""
    words = re.findall(r"[a-z]+", name.lower())
    return bool(words) and all(map(OF_WORK.fullmatch, words))


def _tell_apart(people):
    """Give people whose folders have the same name a number: ann, ann (2)."""
    seen: dict[str, int] = {}
    for person in people:
        seen[person.name] = seen.get(person.name, 0) + 1
        if seen[person.name] > 1:
            person.name = f"{person.name} ({seen[person.name]})"


def _searched(person, scratch) -> Person:
    """Search a person's roots in any depth up to DEPTH, unpacking archives on the way."""
    code, noted, rest, todo, n_archives = [], set(), 0, list(person.roots), 0
    while todo:
        root = todo.pop(0)
        for path, reason in walk(root, DEPTH, NOT_PEOPLES):
            if reason == "a link":
                continue
            if reason:
                where = person.shown(path) if path != root else person.roots[root] or "."
                person.notes.append(f"{where}: {reason}")
                noted.add(path)
                if is_code(path):
                    code.append(path)
            elif is_code(path):
                code.append(path)
            elif stem_of(path.name) is None:
                rest += 1
            elif n_archives == N_ARCHIVES:
                person.notes.append(f"{person.shown(path)}: more than {N_ARCHIVES} archives")
            else:
                n_archives += 1
                shown = person.shown(path)
                try:
                    folder, notes = unpack(path, scratch)
                except Unreadable as reason:
                    person.notes.append(f"{shown}: {reason}")
                    continue
                person.notes += [f"{shown}: {note}" for note in notes]
                person.roots[folder] = shown
                todo.append(folder)
    found = _person(person.name, person.roots, code, noted)
    found.notes = shortened(person.notes + found.notes, "files")
    if rest:
        found.others.append(f"{rest} other file{'s' * (rest > 1)}: no code")
    return found


def _person(name, roots, paths: Iterable[Path], noted: Collection[Path] = ()) -> Person:
    """The person of these files of code: which of them is judged for which model.

    Those of `noted` have a note that says why they are not read.
    """
    person, codes, left = Person(name, roots=roots), [], COPIED_BYTES
    for path in paths:
        left -= min(path.lstat().st_size, size_limit(path))
        if left < 0:
            more = f"more than {COPIED_BYTES >> 20} MB of code: the rest is not looked at"
            person.notes.append(more)
            break
        codes.append(code_in(path))
    with_imported(codes)
    person.code = [code.path for code in codes]
    codes.sort(key=rank)
    others = []
    for code in codes:
        new = [model for model in code.models if model not in person.files]
        person.files |= dict.fromkeys(new, code.path)
        if not new:
            others.append(code)
    for code in others:
        if code.path in noted:
            continue
        why = code.reason
        if not why:
            judged = [f"{TITLES[m]} in {person.shown(person.files[m])}" for m in code.models]
            why = f"judged is the {', '.join(judged)}" if judged else "no model of the assignment"
        person.others.append(f"{person.shown(code.path)}: {why}")
    person.others = shortened(person.others, "files")
    person.files = {model: person.files[model] for model in MODELS if model in person.files}
    return person


def shortened(notes: list[str], noun: str) -> list[str]:
    """The first N_NOTES, and how many more there are."""
    more = len(notes) - N_NOTES
    return notes if more <= 0 else [*notes[:N_NOTES], f"and {more} more {noun}"]
