"""The connection file: what it says, when it is there, and whose it is not to touch."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from spiceshm.cli import viewing
from spiceshm.cli.common import UsageError
from spiceshm.cli.viewing import commands, connection_file
from spiceshm.errors import SpiceShmError
from spiceshm.transport import UnixAddress, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

TCP = parse_address("tcp:[::1]:5930")


def file_for(
    path: Path, *places: str, title: str = "it", password: str | None = None
) -> AbstractContextManager[None]:
    return connection_file(
        str(path), [parse_address(place) for place in places], title=title, password=password
    )


def test_what_it_says(tmp_path: Path) -> None:
    """Of the first address that a viewer can name; spaces at an end and escapes as GKeyFile's."""
    vv = tmp_path / "a.vv"
    with file_for(vv, "unix:@name", "tcp:[::1]:5930", "unix:/s", password=" \\ a\tb  "):
        assert vv.read_text() == (
            "[virt-viewer]\ntype=spice\nhost=::1\nport=5930\ntitle=it\ndelete-this-file=0\n"
            "password=\\s\\\\ a\\tb\\s\\s\n"
        )
        assert stat.S_IMODE(vv.stat().st_mode) == 0o600
    with file_for(vv, "unix:/a b/s", title="two\nlines"):
        assert vv.read_text() == (
            "[virt-viewer]\ntype=spice\nunix-path=/a b/s\ntitle=two\\nlines\ndelete-this-file=0\n"
        )
    with file_for(vv, "unix:/s", password="  "):
        assert "\npassword=\\s\\s\n" in vv.read_text()
    assert os.listdir(tmp_path) == []


@pytest.fixture
def known_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this machine's name lead to an address."""

    def know(address: str) -> None:
        viewing._own_name.cache_clear()
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)

    return know


def test_a_name_that_only_this_machine_knows_is_no_name(known_as: Callable[[str], None]) -> None:
    """Many know theirs as 127.0.1.1: then it is an address of ours, if there is one."""
    known_as("127.0.1.1")
    ours, *_ = commands(parse_address("tcp:0.0.0.0:5930"), password_file=None, vv=None)
    host = ours[-1].removeprefix("tcp:").removesuffix(":5930")
    if host != socket.gethostname():  # there is a network
        assert not host.startswith("127.")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))


def test_every_address_of_this_machine_goes_by_its_name(
    tmp_path: Path, known_as: Callable[[str], None]
) -> None:
    known_as("192.0.2.7")
    for listened in ("tcp:0.0.0.0:5930", "tcp:[::]:5930"):
        with file_for(tmp_path / "a.vv", listened):
            text = (tmp_path / "a.vv").read_text()
            assert f"\nhost={socket.gethostname()}\nport=5930\n" in text
        ours, *_, spicy = commands(parse_address(listened), password_file=None, vv=None)
        assert ours[-1] == f"tcp:{socket.gethostname()}:5930"
        assert spicy == ["spicy", f"--uri=spice://{socket.gethostname()}:5930"]


def test_one_that_stayed_behind_is_replaced(tmp_path: Path) -> None:
    vv = tmp_path / "a.vv"
    vv.write_text("[virt-viewer]\ntype=vnc\n")
    vv.chmod(0o644)
    with file_for(vv, "unix:/s", password="secret"):
        assert "unix-path=/s" in vv.read_text()
        assert stat.S_IMODE(vv.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("what", ["text", "nothing", "folder", "link", "pipe"])
def test_anything_else_is_left_alone(tmp_path: Path, what: str) -> None:
    path, other = tmp_path / "a.vv", tmp_path / "other"
    match what:
        case "text":
            path.write_text("precious\n")
        case "nothing":
            path.touch()
        case "folder":
            path.mkdir()
        case "link":
            other.write_text("[virt-viewer]\n")
            path.symlink_to(other)
        case "pipe":
            os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(SpiceShmError, match=r"a\.vv: it is there already, and is no connection"):
        with file_for(path, "unix:/s"):
            pass
    assert path.lstat() == before
    assert set(os.listdir(tmp_path)) <= {"a.vv", "other"}


def test_one_that_came_in_its_place_stays(tmp_path: Path) -> None:
    vv = tmp_path / "a.vv"
    with file_for(vv, "unix:/s"):
        with file_for(tmp_path / "b.vv", "unix:/t"):
            os.replace(tmp_path / "b.vv", vv)  # as another server does
    assert "unix-path=/t" in vv.read_text()
    vv.unlink()
    with file_for(vv, "unix:/s"):
        vv.unlink()
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_told_of(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stock viewers reach no abstract socket"):
        with file_for(tmp_path / "a.vv", "unix:@name"):
            pass
    with pytest.raises(UsageError, match=r"the socket's name is no UTF-8"):
        with connection_file(
            str(tmp_path / "a.vv"), [UnixAddress("/\udcff")], title="", password=None
        ):
            pass
    with pytest.raises(SpiceShmError, match=r"nowhere/a\.vv: No such file or directory"):
        with file_for(tmp_path / "nowhere/a.vv", "unix:/s"):
            pass
    assert os.listdir(tmp_path) == []


def test_viewers_that_can_look_at_an_address() -> None:
    ours, remote_viewer, spicy = commands(TCP, password_file="/a b", vv=None)
    assert ours == ["spiceshm-client", "--stats", "--password-file", "/a b", "tcp:[::1]:5930"]
    assert remote_viewer == ["remote-viewer", "spice://[::1]:5930"]
    assert spicy == ["spicy", "--uri=spice://[::1]:5930"]
    assert commands(TCP, password_file=None, vv="a.vv")[1] == [
        "remote-viewer",
        f"{os.getcwd()}/a.vv",
    ]
    assert commands(parse_address("unix:@name"), password_file=None, vv=None) == [
        ["spiceshm-client", "--stats", "unix:@name"]
    ]
