"""A file is replaced as a whole, or stays as it was."""

import os
import secrets
import socket
import stat
from pathlib import Path

import pytest

from pixelcnn_fast.files import check_replaceable, replacing


def test_a_file_is_replaced_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_goes_wrong_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "images"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), replacing(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("through_links", [True, False])  # it is replaced where others may write
def test_a_link_stays_one_or_is_replaced(through_links: bool, tmp_path: Path) -> None:
    there, link = tmp_path / "there", tmp_path / "link"
    there.write_bytes(b"precious")
    link.symlink_to(there)
    with replacing(link, through_links) as file:
        file.write(b"new")
    assert link.is_symlink() == through_links and link.read_bytes() == b"new"
    assert there.read_bytes() == (b"new" if through_links else b"precious")


def test_what_is_in_a_new_file_s_place_is_left_alone(tmp_path: Path, monkeypatch) -> None:
    """A link may lead from there to another file."""
    monkeypatch.setattr(secrets, "token_hex", lambda n: "foreseen")
    there = tmp_path / "there"
    there.write_bytes(b"precious")
    process = f"{socket.gethostname()}-{os.getpid()}"
    link = tmp_path / f"images.foreseen.{process}.unfinished"
    link.symlink_to(there)
    with pytest.raises(FileExistsError):
        check_replaceable(tmp_path / "images")
    with pytest.raises(FileExistsError), replacing(tmp_path / "images") as file:
        file.write(b"new")
    assert there.read_bytes() == b"precious"


def test_new_files_have_the_permissions_of_the_process(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "images") as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "images").stat().st_mode) == 0o640


def test_what_can_t_be_replaced_is_known_before_the_work(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "images"
    check_replaceable(path)
    path.write_bytes(b"old")
    check_replaceable(path)
    check_replaceable(os.devnull)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        check_replaceable(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_replaceable(tmp_path / "absent" / "images")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "absent" / "images")
    with pytest.raises(FileNotFoundError):
        check_replaceable(link)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="images can't be written"):
        check_replaceable(path)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(28, "No space left on device"), "images"),
        (OSError(2, "No such file", "another"), "another"),
        (OSError("no number"), None),
    ],
)
def test_an_error_names_the_file_unless_it_names_another(error, named, tmp_path):
    with pytest.raises(type(error)) as raised, replacing(tmp_path / "images"):
        raise error
    assert (raised.value.filename and Path(raised.value.filename).name) == named
    assert raised.value.args[:2] == error.args[:2]


def test_a_device_is_written_and_not_replaced() -> None:
    with replacing(os.devnull) as file:
        file.write(b"nothing")
    assert not Path(os.devnull).is_file()
