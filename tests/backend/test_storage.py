"""Addresses to local files, against a real HTTP server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from backend_helpers import jpeg

from glus_backend.contracts import Project, StudioAccess
from glus_backend.errors import FileTooLarge, NotAllowed, StorageError
from glus_backend.settings import Settings
from glus_backend.storage import Storage, write_atomically
from glus_backend.studio import Projects

NOBODY = StudioAccess(None)


@pytest.fixture
def storage(tmp_path):
    return Storage(Settings.for_tests(tmp_path))


def leftovers(tmp_path):
    return [path for path in tmp_path.rglob(".*") if path.is_file() or path.name.startswith(".part")]


def test_a_list_of_frames_becomes_a_folder_in_order(storage, site, frames, tmp_path):
    folder = storage.frame_folder(list(reversed(frames)), NOBODY)
    assert [file.name for file in sorted(folder.iterdir())] == [f"{n:05d}.jpg" for n in range(6)]
    assert (folder / "00000.jpg").read_bytes() == jpeg(5)
    assert not leftovers(tmp_path)


def test_the_same_pictures_are_the_same_folder_whatever_their_address(storage, site, frames):
    for index, _ in enumerate(frames):
        site.pages[f"/again/{index}"] = jpeg(index)
    again = [f"{site.url}/again/{index}" for index, _ in enumerate(frames)]
    assert storage.frame_folder(frames, NOBODY) == storage.frame_folder(again, NOBODY)
    assert storage.frame_folder(frames, NOBODY) != storage.frame_folder(frames[:-1], NOBODY)


def test_a_folder_asked_for_by_many_at_once(storage, frames, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: storage.frame_folder(frames, NOBODY), range(8)))
    assert len(folders) == 1
    assert not leftovers(tmp_path)


def test_suffixes_come_from_the_contents_and_a_login_page_is_no_picture(storage, site):
    site.pages["/a"] = b"\x89PNG\r\n\x1a\n..."
    site.pages["/b.jpg"] = b"<!doctype html>"
    assert (storage.frame_folder([f"{site.url}/a"], NOBODY) / "00000.png").exists()
    with pytest.raises(StorageError, match=r"b\.jpg is not a JPEG.*doctype"):
        storage.frame_folder([f"{site.url}/b.jpg"], NOBODY)


def test_what_did_not_change_is_not_sent_again_and_what_changed_is(storage, site):
    version = {"tag": '"1"', "body": jpeg(1)}

    def page(handler):
        if handler.headers.get("If-None-Match") == version["tag"]:
            handler.reply(304, ETag=version["tag"])
        else:
            handler.reply(200, version["body"], ETag=version["tag"])

    site.pages["/f"] = page
    first = storage.fetch(f"{site.url}/f", NOBODY)
    assert storage.fetch(f"{site.url}/f", NOBODY) == first
    assert [headers.get("If-None-Match") for _, _, headers in site.seen] == [None, '"1"']
    version.update(tag='"2"', body=jpeg(2))
    assert storage.fetch(f"{site.url}/f", NOBODY).read_bytes() == jpeg(2)


def test_relative_addresses_are_label_studios_and_carry_its_token(storage, site):
    site.pages["/data/upload/3/a.jpg"] = jpeg(1)
    studio = StudioAccess(site.url, "legacy-token")
    for url in ("/data/upload/3/a.jpg", "data/upload/3/a.jpg", f"{site.url}/data/upload/3/a.jpg"):
        assert storage.fetch(url, studio).read_bytes() == jpeg(1)
    assert site.authorizations("/data/upload/3/a.jpg") == ["Token legacy-token"] * 3


def test_a_label_studio_that_does_not_live_at_the_root(storage, site):
    site.pages["/ls/data/a.jpg"] = jpeg(1)
    studio = StudioAccess(f"{site.url}/ls/", "t")
    assert storage.fetch("/data/a.jpg", studio).read_bytes() == jpeg(1)
    assert storage.fetch("/ls/data/a.jpg", studio).read_bytes() == jpeg(1)


def test_a_personal_token_is_exchanged_once(storage, site):
    site.pages["/api/token/refresh/"] = lambda h: h.reply(
        200 if json.loads(h.body) == {"refresh": "aa.bb.cc"} else 401,
        b'{"access": "access-1"}',
        Content_Type="application/json",
    )
    site.pages["/a"] = site.pages["/b"] = jpeg(1)
    studio = StudioAccess(site.url, "aa.bb.cc")
    storage.frame_folder(["/a", "/b"], studio)
    assert site.authorizations("/a") == site.authorizations("/b") == ["Bearer access-1"]
    assert site.authorizations("/api/token/refresh/") == [None]
    with pytest.raises(StorageError, match="did not accept our personal access token"):
        storage.fetch("/a", StudioAccess(site.url, "x.y.z"))


def test_our_token_goes_to_no_other_host(storage, site, new_site):
    other = new_site()
    other.pages["/f"] = jpeg(1)
    studio = StudioAccess(site.url, "secret")
    storage.fetch(f"{other.url}/f", studio)
    assert other.authorizations("/f") == [None]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_not_through_a_redirect_either(storage, site, new_site, status):
    other = new_site()
    other.pages["/f"] = lambda h: h.reply(302, Location=f"{site.url}/back")
    site.pages["/start"] = lambda h: h.reply(status, Location=f"{other.url}/f", Set_Cookie="session=1; Path=/")
    site.pages["/back"] = jpeg(4)
    assert storage.fetch("/start", StudioAccess(site.url, "secret")).read_bytes() == jpeg(4)
    assert site.authorizations("/start") == ["Token secret"]
    assert other.authorizations("/f") == [None]
    assert site.authorizations("/back") == ["Token secret"]
    assert not any("Cookie" in headers for _, _, headers in other.seen)


def test_nor_out_of_a_netrc_file(storage, site, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    site.pages["/f"] = jpeg(1)
    storage.fetch(f"{site.url}/f", NOBODY)
    assert site.authorizations("/f") == [None]


def test_redirects_that_lead_nowhere(storage, site, tmp_path):
    site.pages["/loop"] = lambda h: h.reply(302, Location="/loop")
    site.pages["/file"] = lambda h: h.reply(302, Location="file:///etc/hostname")
    with pytest.raises(StorageError, match="more than 5 times"):
        storage.fetch(f"{site.url}/loop", NOBODY)
    with pytest.raises(NotAllowed, match="only http and https"):
        storage.fetch(f"{site.url}/file", NOBODY)


def test_the_size_cap_with_and_without_an_announced_length(tmp_path, site):
    storage = Storage(Settings.for_tests(tmp_path, max_download_mb=1))

    def unannounced(handler):
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(bytes(2 << 20))
        handler.close_connection = True

    site.pages["/announced"] = bytes((1 << 20) + 1)
    site.pages["/unannounced"] = unannounced
    site.pages["/fits"] = bytes(1 << 20)
    for path in ("/announced", "/unannounced"):
        with pytest.raises(FileTooLarge, match=rf"{path} is larger than 1 MiB.*GLUS_MAX_DOWNLOAD_MB"):
            storage.fetch(f"{site.url}{path}", NOBODY)
    assert storage.fetch(f"{site.url}/fits", NOBODY).stat().st_size == 1 << 20
    assert not leftovers(tmp_path)


def test_a_broken_download_leaves_nothing(storage, site, tmp_path):
    def broken(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.close_connection = True

    site.pages["/f"] = broken
    with pytest.raises(StorageError):
        storage.fetch(f"{site.url}/f", NOBODY)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_errors_name_the_file_but_not_its_signature(storage, site):
    with pytest.raises(StorageError, match="answered with status 404") as caught:
        storage.fetch(f"{site.url}/gone?signature=abc", NOBODY)
    assert "abc" not in str(caught.value)
    site.pages["/locked"] = lambda h: h.reply(401)
    with pytest.raises(StorageError, match="LABEL_STUDIO_API_KEY"):
        storage.fetch("/locked", StudioAccess(site.url, "old"))


def test_nobody_at_home(storage, new_site):
    site = new_site()
    site._server.server_close()
    with pytest.raises(StorageError, match="could not fetch"):
        storage.fetch(f"{site.url}/f", NOBODY)


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("s3://bucket/a.jpg", NotAllowed, "starts with s3:"),
        ("//host/a.jpg", NotAllowed, "without saying http"),
        ("/data/a.jpg", StorageError, "set LABEL_STUDIO_URL"),
        ("file:///etc/hostname", NotAllowed, "GLUS_LOCAL_ROOTS"),
        ("http://[", StorageError, "not an address"),
        ("http://h:99999/", StorageError, "not an address"),
    ],
)
def test_addresses_that_are_not_opened(storage, url, error, words):
    with pytest.raises(error, match=words):
        storage.fetch(url, NOBODY)


def test_local_files_only_below_allowed_folders(tmp_path, site):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    for folder in (root, outside):
        (folder / "a b.jpg").write_bytes(jpeg(1))
    (root / "link.jpg").symlink_to(outside / "a b.jpg")
    storage = Storage(Settings.for_tests(tmp_path, local_roots=(root,)))
    assert storage.fetch(str(root / "a b.jpg"), NOBODY).read_bytes() == jpeg(1)
    assert storage.fetch(f"file://{root}/a%20b.jpg", NOBODY).read_bytes() == jpeg(1)
    for url in (
        f"file://{outside}/a%20b.jpg",
        f"file://{root}/../outside/a%20b.jpg",
        f"file://{root}/link.jpg",
    ):
        with pytest.raises(NotAllowed, match="not below an allowed folder"):
            storage.fetch(url, NOBODY)
    with pytest.raises(StorageError, match="does not exist"):
        storage.fetch(f"file://{root}/none.jpg", NOBODY)
    # Outside, a bare path can only be a path on Label Studio, which does not have it.
    with pytest.raises(StorageError, match="404"):
        storage.fetch(str(outside / "a b.jpg"), StudioAccess(site.url))


def test_a_local_frame_that_changes_later_does_not_change_the_clip(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(jpeg(1))
    storage = Storage(Settings.for_tests(tmp_path, local_roots=(tmp_path,)))
    folder = storage.frame_folder([str(file)], NOBODY)
    file.write_bytes(jpeg(2))
    assert (folder / "00000.jpg").read_bytes() == jpeg(1)
    assert storage.frame_folder([str(file)], NOBODY) != folder


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "f"
    write_atomically(file, b"old")
    with pytest.raises(TypeError):
        write_atomically(file, "not bytes")  # type: ignore[arg-type]
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_projects_are_remembered_and_our_own_key_comes_first(tmp_path):
    settings = Settings.for_tests(tmp_path)
    project = Project("3.1", "http://studio:8080", "from-setup", {"prompt": "x"}, "<View/>")
    Projects(settings).remember(project)
    again = Projects(settings)
    assert again.get("3.1") == project
    assert again.get("4.1") == Project("4.1")
    assert again.access("3.1") == StudioAccess("http://studio:8080", "from-setup")
    assert (settings.data_dir / "projects.json").stat().st_mode & 0o077 == 0
    own = Settings.for_tests(tmp_path, label_studio_url="http://inside:80", label_studio_api_key="own")
    assert Projects(own).access("3.1") == StudioAccess("http://inside:80", "own")
    assert "own" not in repr(Projects(own).access("3.1"))
