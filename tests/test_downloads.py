"""Fetched files are announced, checked, and complete or absent."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from loopback import serving

from lipaudit.errors import LoadError
from lipaudit.loading.downloads import Remote, cache_dir, fetch, is_offline, size_of
from lipaudit.progress import Lines, Silent

CONTENT = bytes(range(256)) * 9000  # more than two blocks of a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def remote(path: Path, *urls: str, digest: str = SHA256[:8]) -> Remote:
    return Remote(urls, path, digest, "sha256", "copy it there by hand")


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_is_announced_with_its_size_then_checked_then_kept(tmp_path: Path) -> None:
    said = io.StringIO()
    with serving({"/w.pth": CONTENT}) as server:
        path = fetch(remote(tmp_path / "cache" / "w.pth", f"{server.url}/w.pth"), offline=False, progress=Lines(said))

    assert path.read_bytes() == CONTENT
    announcement, *_, last = said.getvalue().splitlines()
    assert "fetching w.pth, 2.3 MB, from 127.0.0.1" in announcement
    assert "3/3" in last
    assert "sha256 as published" in last


def test_a_file_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(CONTENT)
    with serving({"/w.pth": CONTENT}) as server:
        fetch(remote(tmp_path / "w.pth", f"{server.url}/w.pth"), offline=True, progress=Silent())

    assert server.asked == []


def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(CONTENT[:-1])
    with serving({"/w.pth": CONTENT}) as server:
        path = fetch(remote(tmp_path / "w.pth", f"{server.url}/w.pth"), offline=False, progress=Silent())

    assert path.read_bytes() == CONTENT


def test_the_second_address_serves_where_the_first_does_not(tmp_path: Path) -> None:
    with serving({"/w.pth": CONTENT}) as server:
        urls = (f"{server.url}/gone.pth", f"{server.url}/w.pth")
        path = fetch(remote(tmp_path / "w.pth", *urls), offline=False, progress=Silent())

    assert path.read_bytes() == CONTENT


def test_other_bytes_than_published_are_refused_and_not_kept(tmp_path: Path) -> None:
    with serving({"/w.pth": CONTENT + b"!"}) as server, pytest.raises(LoadError, match="damaged or replaced") as caught:
        fetch(remote(tmp_path / "w.pth", f"{server.url}/w.pth"), offline=False, progress=Silent())

    assert SHA256[:8] in str(caught.value)
    assert left_behind(tmp_path) == []


def test_a_connection_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    with serving({"/w.pth": CONTENT}, cut=1000) as server, pytest.raises(LoadError):
        fetch(remote(tmp_path / "w.pth", f"{server.url}/w.pth"), offline=False, progress=Silent())

    assert left_behind(tmp_path) == []


def test_offline_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"^w.pth is not on this machine .*--offline.*copy it there by hand$"):
        fetch(remote(tmp_path / "w.pth", "http://127.0.0.1:9/w.pth"), offline=True, progress=Silent())


def test_no_server_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"^cannot fetch w.pth \(.*refused\); copy it there by hand$"):
        fetch(remote(tmp_path / "w.pth", "http://127.0.0.1:9/w.pth"), offline=False, progress=Silent())


def test_the_size_of_a_remote_file() -> None:
    with serving({"/w.pth": CONTENT}) as server:
        assert size_of(f"{server.url}/w.pth") == len(CONTENT)


@pytest.mark.parametrize(("value", "forbidden"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_the_environment_forbids_the_network_too(value: str, forbidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPAUDIT_OFFLINE", value)

    assert is_offline(False) is forbidden
    assert is_offline(True)


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert cache_dir() == tmp_path / "lipaudit"
