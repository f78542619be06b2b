"""Tests the append-only journals of all five jobs: resume, torn and damaged lines, formats, headers and locks."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misgnet.datasets import record as dataset_record
from misgnet_runtime.errors import InputError, MisgnetError, StorageError, UsageError
from misgnet_runtime.formatting import now
from misgnet_runtime.jobs import folder_record
from misgnet_runtime.jobs import journal as scene_journal
from misgnet_runtime.jobs.batch import record as batch_record
from misgnet_runtime.jobs.batch.table import Shard
from misgnet_runtime.jobs.watch import journal as watch_journal
from misgnet_runtime.limits import JOURNAL_LINE_BYTES
from misgnet_runtime.storage.jsonl import JournalSchema, open_journal, read_journal
from misgnet_runtime.storage.schema import Struct
from support.ends import die_at, in_child

DIGEST = "0" * 64
DEEP = "[" * 100_000 + "]" * 100_000


class _Stop(Exception):  # noqa: N818 - ends a block like a kill: saved progress stays
    pass


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The journal of one job."""

    # Path of the journal, relative to the folder of the job.
    file: str
    # Opens the journal; ``setting`` differs between runs, ``force`` is --force or --restart.
    opened: Callable[..., AbstractContextManager[Any]]
    # Adds a finished unit of work with a number.
    finish: Callable[[Any, int], object]
    # Returns the numbers of the finished units as one text.
    finished: Callable[[Any], str]
    # Part of the message about a damaged journal.
    advice: str
    damage: type[MisgnetError] = UsageError
    # Whether a header may appear more than once.
    headers: bool = False


def open_scene(root: Path, setting: str = "a", force: bool = False) -> Any:
    raw = scene_journal.Raw("probability.raw", 8, 64, "the scene")
    return scene_journal.open_journal(root / "change.tif", raw, {"--overlap": setting}, restart=force)


def finish_band(journal: Any, number: int) -> None:
    journal.add([np.full((1, 16), number, np.float32)], (("before", number, 0, 32, 32),))


@contextmanager
def open_folder(root: Path, setting: str = "a", force: bool = False) -> Iterator[Any]:
    outputs = {str(number): f"{number}.png" for number in range(8)}
    with suppress(_Stop), folder_record.open_record(root, {"the engine": setting}, outputs, force) as record:
        yield record
        raise _Stop


def finish_mask(record: Any, number: int) -> None:
    about = folder_record.Written(name=str(number), stamp=(1, 2, 3, 4), pixels=4, changed=1)
    record.write([(about, np.ones((2, 2), np.bool_), {})])


@contextmanager
def open_batch(root: Path, **_: Any) -> Iterator[Any]:
    with batch_record.open_record(root, Shard()) as record:
        if record.bundle is None:
            record.add(batch_record.Started(now(), batch_record.SCHEMA.format, DIGEST))
        yield record


def finish_scene(record: Any, number: int) -> None:
    figures = {"changed_share": 0.5, "unread": [0, 0]}
    record.add(
        batch_record.Done(
            time=now(), scene=str(number), key=DIGEST, outputs=("a.tif",), attempts=1, worker="here", figures=figures
        )
    )


@contextmanager
def open_watch(root: Path, **_: Any) -> Iterator[Any]:
    with watch_journal.open_journal(root) as journal:
        if journal.pairs.started is None:
            journal.add(watch_journal.Started(now(), watch_journal.SCHEMA.format, DIGEST, "cpu", {"--overlap": "16"}))
        yield journal


def finish_pair(journal: Any, number: int) -> None:
    files = (watch_journal.FileState(f"{number}_{date}.tif", 1, 2, DIGEST) for date in ("before", "after"))
    journal.add(watch_journal.PairStarted(now(), str(number), *files))
    journal.add(watch_journal.Complete(now(), str(number), ("a.tif",), {"unread": [0, 0]}))
    journal.add(watch_journal.Done(now(), str(number)))


def open_dataset(root: Path, setting: str = "a", **_: Any) -> Any:
    header = dataset_record.Header(format=1, dataset="levir", tile=32 if setting == "a" else 64, splits={"train": 8})
    return dataset_record.open_record(root, header, {})


def finish_unit(record: Any, number: int) -> None:
    tiles = (f"train/{number}",)
    record.add(dataset_record.Done(str(number), (DIGEST,), tiles, DIGEST, {"train": 1}))


KINDS = {
    "scene": Kind(
        file=".change.tif.progress/journal.jsonl",
        opened=open_scene,
        finish=finish_band,
        finished=lambda journal: "01234567"[: journal.finished],
        advice="--restart",
    ),
    "folder": Kind(
        file=".progress/journal.jsonl",
        opened=open_folder,
        finish=finish_mask,
        finished=lambda record: "".join(sorted(record.written)),
        advice="--force",
    ),
    "batch": Kind(
        file="batch.jsonl",
        opened=open_batch,
        finish=finish_scene,
        finished=lambda record: "".join(sorted(record.ended)),
        advice="choose another -o",
        headers=True,
    ),
    "watch": Kind(
        file="watch.jsonl",
        opened=open_watch,
        finish=finish_pair,
        finished=lambda journal: "".join(sorted(journal.pairs.ended)),
        advice="choose another -o",
        headers=True,
    ),
    "dataset": Kind(
        file="prepare.jsonl",
        opened=open_dataset,
        finish=finish_unit,
        finished=lambda record: "".join(sorted(record.done)),
        advice="--force",
        damage=InputError,
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def work(kind: Kind, root: Path, *numbers: int) -> str:
    """Resumes, finishes more units, and returns the units that were finished before."""
    with kind.opened(root) as journal:
        before = kind.finished(journal)
        for number in numbers:
            kind.finish(journal, number)
    return before


def refusal(kind: Kind, root: Path, error: type[MisgnetError], **options: Any) -> str:
    """Returns why the journal is refused; the message must be one short line, and the file must not change."""
    content = (root / kind.file).read_bytes() if (root / kind.file).stat().st_size < 1 << 30 else None
    with pytest.raises(error) as caught, kind.opened(root, **options):
        pass
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000 + len(str(root)), message
    assert content is None or (root / kind.file).read_bytes() == content
    return message


# --- resume


def test_resume_finds_all_that_was_finished(kind: Kind, tmp_path: Path) -> None:
    assert work(kind, tmp_path, 0, 1) == ""
    content = (tmp_path / kind.file).read_bytes()
    assert work(kind, tmp_path, 2) == "01"
    assert (tmp_path / kind.file).read_bytes().startswith(content), "lines are only appended"
    assert work(kind, tmp_path) == "012"


def test_writer_killed_at_any_byte_is_resumed(kind: Kind, tmp_path: Path) -> None:
    work(kind, tmp_path, 0, 1)
    path = tmp_path / kind.file
    content = path.read_bytes()
    found = []
    for size in range(0, len(content) + 1, 7):
        path.write_bytes(content[:size])
        for mask in tmp_path.glob("*.png"):  # masks without a journal would be refused
            mask.unlink()
        found.append(work(kind, tmp_path))
    assert all("01".startswith(before) for before in found) and found == sorted(found)
    assert found[0] == "" and "0" in found


@pytest.mark.parametrize("torn", [b"{", b'{"type":', b"\xff", bytes(100), b'{"masks":[{"name'])
def test_torn_last_line_is_replaced(kind: Kind, tmp_path: Path, torn: bytes) -> None:
    work(kind, tmp_path, 0, 1)
    path = tmp_path / kind.file
    content = path.read_bytes()
    path.write_bytes(content + torn)
    assert work(kind, tmp_path, 2) == "01"
    assert path.read_bytes().startswith(content + b"{") and path.read_bytes().endswith(b"}\n")
    assert work(kind, tmp_path) == "012"


def test_process_killed_at_any_step_is_resumed(kind: Kind, tmp_path: Path) -> None:
    """Steps are calls that change the disk permanently."""

    def run(root: Path, moment: int) -> None:
        die_at(moment)
        work(kind, root, 0, 1)

    found = []
    for moment in range(30):
        root = tmp_path / str(moment)
        ended = in_child(partial(run, root, moment))
        found.append(work(kind, root))
        if ended != signal.SIGKILL:
            break
    assert found == sorted(found) and found[-1] == "01" and moment < 29


# --- refused journals


def lines_of(kind: Kind, root: Path) -> list[bytes]:
    """Returns the lines of a journal with two finished units."""
    work(kind, root, 0, 1)
    return (root / kind.file).read_bytes().splitlines(keepends=True)


LINES = {
    "no JSON": b"garbage",
    "not UTF-8": b'{"type":"\xff"}',
    "zeros": bytes(50),
    "empty": b"",
    "a number": b"7",
    "a list": b"[1]",
    "another type": b'{"type":"other"}',
    "a name of many lines": b'{"type":"a\\nb' + b"x" * 5000 + b'"}',
    "deep": DEEP.encode(),
    "a deep object": b'{"type":' + DEEP.encode() + b"}",
}


@pytest.mark.parametrize("case", LINES)
def test_damaged_line_in_the_middle_is_refused(kind: Kind, tmp_path: Path, case: str) -> None:
    lines = lines_of(kind, tmp_path)
    (tmp_path / kind.file).write_bytes(b"".join([*lines[:2], LINES[case] + b"\n", *lines[2:]]))
    message = refusal(kind, tmp_path, kind.damage)
    assert f"{kind.file}, line 3 is damaged (" in message and kind.advice in message


@pytest.mark.parametrize("case", LINES)
def test_damaged_first_line_is_refused(kind: Kind, tmp_path: Path, case: str) -> None:
    lines = lines_of(kind, tmp_path)
    (tmp_path / kind.file).write_bytes(b"".join([LINES[case] + b"\n", *lines[1:]]))
    message = refusal(kind, tmp_path, UsageError)
    assert f"{kind.file}, line 1 is damaged (" in message and kind.advice in message


def test_unknown_field_is_refused(kind: Kind, tmp_path: Path) -> None:
    lines = lines_of(kind, tmp_path)
    for number in range(len(lines)):
        changed = [*lines]
        changed[number] = json.dumps({**json.loads(lines[number]), "more\n": 1}).encode() + b"\n"
        (tmp_path / kind.file).write_bytes(b"".join(changed))
        message = refusal(kind, tmp_path, kind.damage if number else UsageError)
        assert f"line {number + 1} is damaged" in message and "more" in message


def test_values_of_other_types_are_refused_or_resumed(kind: Kind, tmp_path: Path) -> None:
    lines = lines_of(kind, tmp_path)
    values = ["null", "-1", "1e400", "true", '""', '"' + "x\\n" * 5000 + '"', "[]", "{}", "1" * 5000, DEEP]
    refused = 0
    for number, line in enumerate(lines):
        fields = {name: json.dumps(value) for name, value in json.loads(line).items()}
        for name in fields:
            for value in values:
                text = ",".join(f'"{field}":{value if field == name else old}' for field, old in fields.items())
                changed = [*lines[:number], f"{{{text}}}\n".encode(), *lines[number + 1 :]]
                (tmp_path / kind.file).write_bytes(b"".join(changed))
                try:
                    work(kind, tmp_path)
                except MisgnetError as error:
                    refused += 1
                    assert type(error) in (UsageError, kind.damage), error
                    assert str(error).isprintable() and len(str(error)) < 1000 + len(str(tmp_path))
    assert refused > 10


def test_line_longer_than_the_limit_is_refused(kind: Kind, tmp_path: Path) -> None:
    lines = lines_of(kind, tmp_path)
    long = lines[1].rstrip() + b" " * JOURNAL_LINE_BYTES
    for content in ([*lines, long + b"\n", lines[2]], [*lines, long]):
        (tmp_path / kind.file).write_bytes(b"".join(content))
        message = refusal(kind, tmp_path, kind.damage)
        assert f"line {len(lines) + 1} is damaged (it has no line end within {JOURNAL_LINE_BYTES} bytes" in message


@pytest.mark.parametrize("started", [True, False])
def test_endless_file_is_refused(kind: Kind, tmp_path: Path, started: bool) -> None:
    """A sparse file costs nothing, but reading it would take years."""
    lines_of(kind, tmp_path)
    with (tmp_path / kind.file).open("r+b") as file:
        file.truncate(1 << 40 if started else 0)
        file.truncate(1 << 40)
    assert "is damaged" in refusal(kind, tmp_path, kind.damage if started else UsageError)


def test_other_format_is_named(kind: Kind, tmp_path: Path) -> None:
    lines = lines_of(kind, tmp_path)
    future = {**json.loads(lines[0]), "format": 99, "more": {"of": "that"}}
    future.pop("settings", None)
    for content in (
        [json.dumps(future).encode() + b"\n", b"\x00\n"],
        [json.dumps(future).encode() + b"\n", *lines[1:]],
    ):
        (tmp_path / kind.file).write_bytes(b"".join(content))
        message = refusal(kind, tmp_path, UsageError)
        assert f"{kind.file}, line 1 has format 99, but this version reads format" in message
        assert kind.advice in message


@pytest.mark.parametrize("text", ["a diary\n", "a diary without an end", "[", "\n", '{"name": "x"}'])
def test_files_of_other_programs_are_kept(kind: Kind, tmp_path: Path, text: str) -> None:
    (tmp_path / kind.file).parent.mkdir(exist_ok=True)
    (tmp_path / kind.file).write_text(text)
    assert "line 1 is damaged" in refusal(kind, tmp_path, UsageError)


def test_journals_of_other_jobs_are_refused(kind: Kind, tmp_path: Path) -> None:
    work(kind, tmp_path / "own", 0)
    for name, other in KINDS.items():
        if other is not kind:
            work(other, tmp_path / name, 0)
            (tmp_path / "own" / kind.file).write_bytes((tmp_path / name / other.file).read_bytes())
            assert "line 1 " in refusal(kind, tmp_path / "own", UsageError)


@pytest.mark.parametrize("kind", ["scene", "folder", "dataset"], indirect=True)
def test_header_of_another_run_is_refused(kind: Kind, tmp_path: Path) -> None:
    """Watchers and batches are not tested here: they compare the bundle themselves."""
    work(kind, tmp_path, 0, 1)
    message = refusal(kind, tmp_path, UsageError, setting="b")
    assert "and now it is" in message and kind.advice in message
    assert work(kind, tmp_path) == "01"


def test_second_header_is_accepted_only_by_batch_and_watch(kind: Kind, tmp_path: Path) -> None:
    lines = lines_of(kind, tmp_path)
    (tmp_path / kind.file).write_bytes(b"".join([*lines, lines[0]]))
    if kind.headers:
        assert work(kind, tmp_path) == "01"
    else:
        assert f"line {len(lines) + 1} is damaged" in refusal(kind, tmp_path, kind.damage)


@pytest.mark.parametrize("kind", ["scene", "folder"], indirect=True)
@pytest.mark.parametrize("content", [b"garbage\n", b"a diary", b'{"format":99,"type":"scene"}\n', None])
def test_force_starts_over(kind: Kind, tmp_path: Path, content: bytes | None) -> None:
    """``content`` None stands for the journal of a run with another setting."""
    work(kind, tmp_path, 0, 1)
    if content is not None:
        (tmp_path / kind.file).write_bytes(content)
    with kind.opened(tmp_path, setting="a" if content else "b", force=True) as journal:
        assert kind.finished(journal) == ""
        kind.finish(journal, 0)
    with kind.opened(tmp_path, setting="a" if content else "b", force=kind.file.startswith(".progress")) as journal:
        assert kind.finished(journal) == "0"


def test_pipe_is_not_a_journal(kind: Kind, tmp_path: Path) -> None:
    """Reading it would wait forever."""
    (tmp_path / kind.file).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / kind.file)
    with pytest.raises(UsageError, match="is not a regular file"), kind.opened(tmp_path):
        pass


# --- locks


def test_only_one_process_at_a_time_opens_a_journal(kind: Kind, tmp_path: Path) -> None:
    """A second process is refused until the first one ends, even by a kill; finished work is kept."""
    work(kind, tmp_path, 0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with kind.opened(tmp_path) as journal:
                kind.finish(journal, 1)
                os.write(writer, b".")
                signal.pause()
        finally:
            os._exit(1)
    assert os.read(reader, 1) == b"."
    try:
        assert "another " in refusal(kind, tmp_path, UsageError)
        assert "another " in refusal(kind, tmp_path, UsageError, force=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    assert work(kind, tmp_path) == "01"


def test_full_disk_loses_no_line(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    work(kind, tmp_path, 0)
    with kind.opened(tmp_path) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(
                "misgnet_runtime.storage.jsonl.write_all", lambda handle, data: refuse(handle.write(data[:9]))
            )
            with pytest.raises(StorageError, match="No space left"):
                kind.finish(journal, 1)
        kind.finish(journal, 1)
    assert work(kind, tmp_path) == "01"


# --- replacing all lines, as a watcher does regularly


class Header(Struct, frozen=True, tag="header"):
    format: int
    settings: dict[str, str]


class Item(Struct, frozen=True, tag="item"):
    name: str


Line = Header | Item
SCHEMA: JournalSchema[Line] = JournalSchema(header=Header, entry=Item, formats=(1, 2), advice="choose another -o")
HEADER = Header(2, {"--overlap": "16"})


def write(path: Path, *entries: Line) -> None:
    with open_journal(path, SCHEMA, "busy") as journal:
        journal.append(*entries)


def read(path: Path) -> list[Line]:
    entries = read_journal(path, SCHEMA)
    with open_journal(path, SCHEMA, "busy") as journal:
        assert journal.entries == entries
    return entries


def test_older_format_is_read_and_newer_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", Header(1, {}), Item("a"))
    assert read(tmp_path / "a") == [Header(1, {}), Item("a")]
    write(tmp_path / "b", Header(3, {}))
    with pytest.raises(
        UsageError, match="b, line 1 has format 3, but this version reads formats 1 and 2; choose another"
    ):
        read(tmp_path / "b")


def test_rewrite_keeps_the_lock_and_the_file_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, HEADER, *(Item(str(number)) for number in range(3000)))
    path.chmod(0o640)
    with open_journal(path, SCHEMA, "busy") as journal:
        assert journal.lines == 3001
        journal.rewrite([HEADER, Item("kept")])
        assert journal.lines == 2
        with pytest.raises(UsageError, match="busy"):
            write(path, Item("another's"))
        journal.append(Item("later"))
    assert read(path) == [HEADER, Item("kept"), Item("later")]
    assert path.stat().st_mode & 0o777 == 0o640 and os.listdir(tmp_path) == ["a.jsonl"]  # noqa: PTH208


def test_file_replaced_before_its_lock_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process rewrote the journal and released it after it was opened and before it was locked."""
    path = tmp_path / "a.jsonl"
    write(path, HEADER)
    real = Path.open

    def late(found: Path, *args: object, **options: object) -> object:
        handle = real(found, *args, **options)  # type: ignore[arg-type, call-overload]
        monkeypatch.setattr(Path, "open", real)
        with open_journal(path, SCHEMA, "busy") as other:
            other.rewrite([HEADER, Item("other's")])
        return handle

    monkeypatch.setattr(Path, "open", late)
    write(path, Item("mine"))
    assert read(path) == [HEADER, Item("other's"), Item("mine")]


def test_rewrite_through_a_link_replaces_its_target(tmp_path: Path) -> None:
    path, link = tmp_path / "a.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(path)
    with open_journal(link, SCHEMA, "busy") as journal:
        journal.rewrite([HEADER])
    assert link.is_symlink() and read(path) == [HEADER]


def test_rewrite_on_a_full_disk_keeps_the_old_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    write(path, HEADER, Item("a"))

    def refuse(_handle: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_journal(path, SCHEMA, "busy") as journal:
        for change in (partial(journal.append, Item("b")), partial(journal.rewrite, [HEADER])):
            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", refuse)
                with pytest.raises(StorageError, match="No space left"):
                    change()
        journal.append(Item("c"))
    assert read(path) == [HEADER, Item("a"), Item("c")] and os.listdir(tmp_path) == ["a.jsonl"]  # noqa: PTH208


def rewrite_and_die(path: Path, moment: int) -> None:
    die_at(moment)
    with open_journal(path, SCHEMA, "busy") as journal:
        journal.rewrite([HEADER, Item("new")])


def test_killed_rewrite_leaves_the_old_or_the_new_lines(tmp_path: Path) -> None:
    found = []
    for moment in range(10):
        path = tmp_path / f"{moment}.jsonl"
        write(path, HEADER, *map(Item, "abc"))
        ended = in_child(partial(rewrite_and_die, path, moment))
        lines = read(path)
        assert lines in ([HEADER, *map(Item, "abc")], [HEADER, Item("new")])
        found.append(lines)
        if ended != signal.SIGKILL:
            break
    assert 1 < moment < 9 and len(found[0]) == 4 and len(found[-1]) == 2
