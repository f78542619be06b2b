"""The typed journal: lines that are only appended, a torn end, one holder, and a rewrite in one step."""

from __future__ import annotations

import errno
import json
import os
import signal
from functools import partial
from pathlib import Path

import msgspec
import pytest

from ends import die_at, in_child
from misgnet_runtime.errors import StorageError, UsageError
from misgnet_runtime.storage.jsonl import JournalSchema, open_journal
from misgnet_runtime.storage.schema import Struct


class Header(Struct, frozen=True, tag="header"):
    format: int
    settings: dict[str, str]


class Item(Struct, frozen=True, tag="item"):
    name: str


Line = Header | Item
SCHEMA: JournalSchema[Line] = JournalSchema(Header, Item, (1, 2), "choose another -o")
AGAIN: JournalSchema[Line] = JournalSchema(Header, Line, (1, 2), "choose another -o")
HEADER = Header(2, {"--overlap": "16"})


def write(path: Path, *entries: Line) -> None:
    with open_journal(path, SCHEMA, "busy") as journal:
        journal.append(*entries)


def read(path: Path) -> list[Line]:
    with open_journal(path, SCHEMA, "busy") as journal:
        return journal.entries


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.jsonl"
    write(path, HEADER, Item("a"))
    write(path, Item("b"))
    assert read(path) == [HEADER, Item("a"), Item("b")]


@pytest.mark.parametrize("torn", [b"{", b'{"type":"item","name":"b"}', b"\xff"])
def test_a_torn_last_line_does_not_count_and_goes(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "a.jsonl"
    write(path, HEADER, Item("a"))
    with path.open("ab") as handle:
        handle.write(torn)
    write(path, Item("c"))
    assert read(path) == [HEADER, Item("a"), Item("c")]


@pytest.mark.parametrize(
    ("lines", "number", "words"),
    [
        ([b"{}"], 1, "damaged"),
        ([b'{"type":"item","name":"a"}'], 1, "damaged"),
        ([b'{"type":"header","format":3,"settings":{}}'], 1, "it has format 3; this version reads format 1 and 2"),
        ([b'{"type":"other","format":7,"more":1}'], 1, "it has format 7; this version reads format 1 and 2"),
        ([msgspec.json.encode(HEADER), b"no JSON"], 2, "damaged"),
        ([msgspec.json.encode(HEADER), b'{"type":"item"}'], 2, "damaged"),
        ([msgspec.json.encode(HEADER), msgspec.json.encode(HEADER)], 2, "damaged"),
    ],
)
def test_a_damaged_line_is_refused_in_one_line(tmp_path: Path, lines: list[bytes], number: int, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    content = path.read_bytes()
    with pytest.raises(UsageError) as raised:
        read(path)
    message = str(raised.value)
    assert f"a.jsonl, line {number} is damaged" in message and words in message and "choose another -o" in message
    assert "format 1 and 2" in message and "\n" not in message
    assert path.read_bytes() == content


def test_a_header_that_may_come_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with open_journal(path, AGAIN, "busy") as journal:
        journal.append(Header(1, {}), Item("a"), HEADER)
    with open_journal(path, AGAIN, "busy") as journal:
        assert journal.entries == [Header(1, {}), Item("a"), HEADER]
        journal.append(Header(9, {}))
    with pytest.raises(UsageError, match=r"line 4 is damaged .*it has format 9"), open_journal(path, AGAIN, "busy"):
        pass


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with open_journal(path, SCHEMA, "busy"), pytest.raises(UsageError, match="busy"):
        write(path, HEADER)
    write(path, HEADER)


def test_a_rewrite_keeps_the_lock_and_its_rights(tmp_path: Path) -> None:
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


def test_who_opened_the_replaced_file_takes_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its opening and its lock another process rewrote the journal, and let go of it."""
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


def test_a_rewrite_through_a_link_replaces_what_it_points_to(tmp_path: Path) -> None:
    path, link = tmp_path / "a.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(path)
    with open_journal(link, SCHEMA, "busy") as journal:
        journal.rewrite([HEADER])
    assert link.is_symlink() and read(path) == [HEADER]


def test_a_full_disk_leaves_the_old_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_rewrite_that_is_killed_leaves_the_old_or_the_new_lines(tmp_path: Path) -> None:
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


def test_an_untagged_header_and_untagged_lines() -> None:
    """Those of other journals: the first line has one type, and all others another."""

    class Plain(Struct, frozen=True):
        format: int
        dataset: str

    class Unit(Struct, frozen=True):
        unit: str

    schema: JournalSchema[Plain | Unit] = JournalSchema(Plain, Unit, (1,), "prepare it anew")
    assert schema.decode(json.dumps({"format": 1, "dataset": "levir"}).encode(), 1) == Plain(1, "levir")
    assert schema.decode(b'{"unit":"a"}', 2) == Unit("a")
