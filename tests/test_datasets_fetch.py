"""Fetching against a server on the loopback that misbehaves in every way that servers do."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from recal.datasets import fetch as fetching
from recal.datasets.catalogue import SUMS, Download, PublishedSet, catalogue
from recal.datasets.download import download
from recal.datasets.fetch import fetch
from recal.datasets.verify import verify, verify_archive
from recal.errors import InputError, RecalError, UsageError, VerificationError

CONTENT = hashlib.sha512(b"content").digest() * 4000  # 256,000 bytes
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves files by name; `behave` says how; `log` holds the ranges that were asked for."""

    def __init__(self):
        self.files, self.log, self.behave = {}, [], lambda handler, body: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                outer.log.append(self.headers.get("Range"))
                body = outer.files.get(self.path.lstrip("/"))
                if body is None:
                    self.send_error(404)
                elif not outer.behave(self, body):
                    serve(self, body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


def serve(handler, body, *, announce=None, send=None, resume=True):
    """Answer as a good server does, but for what is named."""
    start = 0
    asked = handler.headers.get("Range")
    if asked and resume:
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return True
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    else:
        handler.send_response(200)
    rest = body[start:]
    handler.send_header("Content-Length", str(len(rest) if announce is None else announce))
    handler.end_headers()
    handler.wfile.write(rest if send is None else rest[:send])
    handler.close_connection = True
    return True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("recal.datasets.download.PAUSE", 0.0)
    served = Server()
    thread = threading.Thread(target=served.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.http.shutdown()
    served.http.server_close()
    thread.join()


def ignore(*args):
    pass


def get(server, path, md5=MD5):
    server.files["f.bin"] = CONTENT
    download(Download(f"{server.url}/f.bin", md5), path, ignore)
    return path.read_bytes()


def test_cut_connections_are_resumed_where_they_broke(server, tmp_path):
    """A server that cuts every answer after 60,000 bytes is asked for the rest each time."""
    server.behave = lambda handler, body: serve(handler, body, send=60_000)
    assert get(server, tmp_path / "f.bin") == CONTENT
    assert server.log == [None, *(f"bytes={60_000 * i}-" for i in range(1, 5))]
    assert [path.name for path in tmp_path.iterdir()] == ["f.bin"]


def test_what_an_earlier_process_left_is_not_fetched_again(server, tmp_path):
    (tmp_path / "f.bin.partial").write_bytes(CONTENT[:100_000])
    assert get(server, tmp_path / "f.bin") == CONTENT
    assert server.log == ["bytes=100000-"]


def test_a_whole_partial_file_is_taken(server, tmp_path):
    """Killed between the last byte and the renaming."""
    (tmp_path / "f.bin.partial").write_bytes(CONTENT)
    assert get(server, tmp_path / "f.bin") == CONTENT


@pytest.mark.parametrize("left", [b"x" * 100_000, b"x" * len(CONTENT), b"x" * 300_000])
def test_a_partial_file_of_other_content_is_fetched_anew(server, tmp_path, left):
    (tmp_path / "f.bin.partial").write_bytes(left)
    assert get(server, tmp_path / "f.bin") == CONTENT


def test_a_server_that_does_not_resume_is_read_from_the_start(server, tmp_path):
    (tmp_path / "f.bin.partial").write_bytes(b"x" * 100_000)
    server.behave = lambda handler, body: serve(handler, body, resume=False)
    assert get(server, tmp_path / "f.bin") == CONTENT


def test_a_server_that_resumes_elsewhere_is_not_believed(server, tmp_path):
    (tmp_path / "f.bin.partial").write_bytes(CONTENT[:100_000])

    def wrong_place(handler, body):
        if handler.headers.get("Range"):
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes 5-{len(body) - 1}/{len(body)}")
            handler.send_header("Content-Length", str(len(body) - 5))
            handler.end_headers()
            handler.wfile.write(body[5:])
            return True
        return False

    server.behave = wrong_place
    assert get(server, tmp_path / "f.bin") == CONTENT


def test_more_announced_than_sent_is_an_error_unless_the_checksum_is_right(server, tmp_path):
    """The server says 300,000 bytes for a file of 256,000, which then has no more to give."""

    def liar(handler, body):
        if handler.headers.get("Range"):
            handler.close_connection = True
            return True
        return serve(handler, body, announce=300_000)

    server.behave = liar
    with pytest.raises(RecalError, match="gave up after 5 attempts without a byte"):
        get(server, tmp_path / "f.bin", md5="0" * 32)
    assert (tmp_path / "f.bin.partial").stat().st_size == len(CONTENT)
    assert get(server, tmp_path / "f.bin") == CONTENT


def test_less_announced_than_the_file_has_fails_the_checksum(server, tmp_path):
    server.behave = lambda handler, body: serve(handler, body, announce=200_000)
    with pytest.raises(VerificationError, match=f"expected md5 {MD5}, got"):
        get(server, tmp_path / "f.bin")
    assert list(tmp_path.iterdir()) == []


def test_other_content_of_the_same_length_fails_the_checksum(server, tmp_path):
    with pytest.raises(VerificationError, match="expected md5 0000, got"):
        get(server, tmp_path / "f.bin", md5="0000")
    assert list(tmp_path.iterdir()) == []


def test_an_absurd_length_fails_before_the_disk_is_touched(server, tmp_path):
    server.behave = lambda handler, body: serve(handler, body, announce=10**18)
    with pytest.raises(RecalError, match="of free disk"):
        get(server, tmp_path / "f.bin")


def test_a_missing_file_and_no_server_are_named(server, tmp_path):
    with pytest.raises(RecalError, match="the server answered 404"):
        download(Download(f"{server.url}/none.bin", MD5), tmp_path / "f", ignore)
    with pytest.raises(RecalError, match="gave up after 5 attempts"):
        download(Download("http://127.0.0.1:9/f", MD5), tmp_path / "f", ignore)
    with pytest.raises(UsageError, match="expected an address of http"):
        download(Download("file:///etc/passwd", MD5), tmp_path / "f", ignore)


def test_a_full_disk_is_told(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(RecalError, match="free disk, got"):
        get(server, tmp_path / "f.bin")


def archive(*entries):
    """Return a .tar.gz: entries are (name, content) or TarInfo objects."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            name, content = entry
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o6777
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def special(name, kind, target="target"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def offer(server, monkeypatch, tmp_path):
    """Offer archives as the data set `toy`, and fetch it."""

    def offered(*bodies):
        downloads = {}
        for number, body in enumerate(bodies):
            server.files[f"part{number}.tar.gz"] = body
            digest = hashlib.md5(body).hexdigest()
            downloads[f"{server.url}/part{number}.tar.gz"] = digest
        toy = PublishedSet(title="Toy", folder="Toy-C", downloads=downloads, gigabytes=0.0)
        monkeypatch.setitem(catalogue(), "toy", toy)
        return fetch("toy", tmp_path / "data", ignore)

    return offered


def test_a_set_of_several_archives_is_fetched_merged_and_verified(offer, server, tmp_path):
    folder = offer(
        archive(("Toy-C/fog/1.npy", b"one"), ("Toy-C/labels.npy", b"two")),
        archive(("snow/1.npy", b"three")),
    )
    assert folder == tmp_path / "data" / "Toy-C"
    assert (folder / "fog" / "1.npy").read_bytes() == b"one"
    assert (folder / "snow" / "1.npy").read_bytes() == b"three"
    assert (folder / "fog" / "1.npy").stat().st_mode & 0o7111 == 0
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["Toy-C"]
    assert verify(folder, ignore) == 3
    server.log.clear()
    assert offer() == folder
    assert server.log == []


def test_verify_names_what_changed(offer):
    folder = offer(archive(("a", b"one"), ("b", b"two")))
    (folder / "a").write_bytes(b"0ne")
    (folder / "b").unlink()
    with pytest.raises(VerificationError, match="a differs, b is missing"):
        verify(folder, ignore)
    (folder / SUMS).write_text(f"{'0' * 64}  ../outside\n", encoding="utf-8")
    with pytest.raises(InputError, match="expected lines of a sha256 and a path"):
        verify(folder, ignore)
    (folder / SUMS).unlink()
    with pytest.raises(InputError, match="expected SHA256SUMS"):
        verify(folder, ignore)


@pytest.mark.parametrize(
    "entry",
    [
        ("../evil", b"x"),
        ("Toy-C/../../evil", b"x"),
        ("/evil", b"x"),
        ("..\\evil", b"x"),
        ("C:evil", b"x"),
        ("evil\nname", b"x"),
        ("Toy-C", b"x"),
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.LNKTYPE, "../../evil"),
        special("device", tarfile.CHRTYPE),
        special("disk", tarfile.BLKTYPE),
        special("pipe", tarfile.FIFOTYPE),
    ],
    ids=[
        "above",
        "above-from-inside",
        "absolute",
        "backslash",
        "drive",
        "newline",
        "its-own-folder",
        "symbolic-link",
        "hard-link",
        "device",
        "disk",
        "pipe",
    ],
)
def test_a_hostile_archive_is_refused_and_leaves_nothing(offer, tmp_path, entry):
    with pytest.raises(InputError, match="Refused"):
        offer(archive(("good", b"fine"), entry))
    assert not (tmp_path / "data" / "Toy-C").exists()
    found = {path.name for path in tmp_path.rglob("*")}
    assert not found & {"evil", "good", "link", "device", "disk", "pipe"}


def test_a_name_that_comes_twice_is_refused(offer):
    with pytest.raises(InputError, match="the same name twice"):
        offer(archive(("a", b"one"), ("a", b"two")))
    with pytest.raises(InputError, match="the same name twice"):
        offer(archive(("b", b"one"), ("b/c", b"two")))


def test_a_name_that_comes_in_two_archives_is_refused(offer):
    with pytest.raises(InputError, match="in two archives"):
        offer(archive(("a", b"one")), archive(("a", b"two")))


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_a_truncated_archive_is_refused(offer, keep, tmp_path):
    body = archive(("a", CONTENT), ("b", CONTENT[::-1]))
    with pytest.raises(InputError, match="expected a whole"):
        offer(body[: int(keep * len(body))])
    assert not (tmp_path / "data" / "Toy-C").exists()


def test_what_is_no_archive_is_refused(offer):
    with pytest.raises(InputError, match="expected a whole"):
        offer(b"<html>not found</html>")


def test_a_folder_that_was_there_is_not_touched(offer, tmp_path):
    mine = tmp_path / "data" / "Toy-C" / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is there already"):
        offer(archive(("a", b"one")))
    assert mine.read_text(encoding="utf-8") == "mine"


def test_fetching_goes_on_after_a_kill_between_the_archives(offer, server, tmp_path, monkeypatch):
    """The first archive, once unpacked, is not fetched again."""
    bodies = archive(("a", b"one")), archive(("b", b"two"))
    real = fetching.unpack

    def die_at_the_second(path, *args):
        if path.name.startswith("part1"):
            raise KeyboardInterrupt
        real(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "unpack", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            offer(*bodies)
    server.log.clear()
    folder = offer(*bodies)
    assert server.log == []
    assert verify(folder, ignore) == 2


def test_two_processes_do_not_fetch_the_same(offer, tmp_path):
    from recal.files import locked

    with locked(tmp_path / "data" / ".Toy-C.fetching"), pytest.raises(RecalError, match="another"):
        offer(archive(("a", b"one")))


def test_sets_without_a_download_say_where_to_get_them(tmp_path):
    with pytest.raises(UsageError, match=r"github\.com/.*put it into"):
        fetch("imagenet3dcc", tmp_path, ignore)
    with pytest.raises(UsageError, match="Did you mean 'cifar10c'"):
        fetch("cifar10-c", tmp_path, ignore)


def test_a_downloaded_archive_is_checked_by_its_name(tmp_path):
    (tmp_path / "CIFAR-10-C.tar").write_bytes(b"half")
    with pytest.raises(VerificationError, match="56bf5dcef84df0e2308c6dcbcbbd8499"):
        verify_archive(tmp_path / "CIFAR-10-C.tar")
    (tmp_path / "other.tar").write_bytes(b"")
    with pytest.raises(InputError, match="published set"):
        verify_archive(tmp_path / "other.tar")


def test_published_checksums_are_md5():
    """Every set has downloads or a page, and every checksum 32 hexadecimal digits."""
    for published in catalogue().values():
        assert bool(published.downloads) != bool(published.page)
        for source in published.files:
            assert len(source.md5) == 32
            assert int(source.md5, 16)
            assert source.url.startswith("https://")
