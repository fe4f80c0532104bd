"""Fetching: pooch with a downloader of our own, so no network; and the real one against a server on this machine."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import shutil
import struct
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy.sparse")
pooch = pytest.importorskip("pooch")
pytest.importorskip("tqdm")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.paper.data import DataError, load_citation, load_mnist, registry
from benchmarks.paper.data import fetch as fetching

IMAGES, LABELS = registry.MNIST.files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder that is not there yet, named as a user would name it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("IMPLICITGRAD_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder with two small files of digits, entered in the registry as the published ones."""
    folder = tmp_path / "remote"
    folder.mkdir()
    files = {}
    for name, array in ((IMAGES, np.ones((3, 28, 28), np.uint8)), (LABELS, np.arange(3, dtype=np.uint8))):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / name).write_bytes(gzip.compress(header + array.tobytes(), mtime=0))
        files[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    published = dataclasses.replace(registry.MNIST, files=files)
    monkeypatch.setattr("benchmarks.paper.data.MNIST", published)
    return folder


def copying(remote, asked):
    """A downloader that copies from a folder and notes what it was asked for."""

    def download(url, output_file, store):
        asked.append(url)
        shutil.copyfile(remote / url.rpartition("/")[2], output_file)

    return download


def test_the_public_files_are_fetched_once(cache, remote):
    asked = []
    for _ in range(2):
        images, labels = load_mnist(downloader=copying(remote, asked))
        assert images.shape == (3, 28, 28)
        np.testing.assert_array_equal(labels, [0, 1, 2])
    assert asked == [registry.MNIST.url + IMAGES, registry.MNIST.url + LABELS]
    assert sorted(path.name for path in cache.iterdir()) == sorted([IMAGES, LABELS])


def test_only_what_is_missing_is_fetched(cache, remote):
    asked = []
    cache.mkdir()
    shutil.copy(remote / IMAGES, cache)
    load_mnist(downloader=copying(remote, asked))
    assert asked == [registry.MNIST.url + LABELS]


def test_with_a_data_dir_nothing_is_fetched(tmp_path, remote):
    asked = []
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="or leave the folder out to have them fetched"):
        load_mnist(tmp_path / "mine", downloader=copying(remote, asked))
    assert asked == []
    load_mnist(remote, downloader=copying(remote, asked))
    assert asked == []


@pytest.mark.fault(112)
@pytest.mark.parametrize(
    "wrong", [lambda content: content[:-1], lambda content: content + b"\0", lambda content: b"<html>404</html>"]
)
def test_another_file_than_the_published_leaves_nothing_behind(cache, remote, wrong):
    (remote / LABELS).write_bytes(wrong((remote / LABELS).read_bytes()))
    with pytest.raises(DataError, match=rf"another file than the published {LABELS} .*Nothing was kept"):
        load_mnist(downloader=copying(remote, []))
    assert [path.name for path in cache.iterdir()] == [IMAGES]


@pytest.mark.fault(112)
@pytest.mark.parametrize("error", [OSError("the line is dead"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_an_interrupted_download_leaves_nothing_behind(cache, remote, error):
    """A user's Ctrl-C and another library's bug pass through as they are; a dead line is a DataError."""

    def breaks_off(url, output_file, store):
        Path(output_file).write_bytes((remote / IMAGES).read_bytes()[:10])
        raise error

    with pytest.raises(DataError if isinstance(error, OSError) else type(error)):
        load_mnist(downloader=breaks_off)
    assert list(cache.iterdir()) == []
    load_mnist(downloader=copying(remote, []))


def test_a_damaged_file_is_fetched_anew_into_the_cache_and_reported_in_a_folder_of_the_user(cache, remote):
    load_mnist(downloader=copying(remote, []))
    (cache / LABELS).write_bytes(b"half a fi")
    asked = []
    with pytest.raises(DataError, match=rf"{LABELS} with SHA-256"):
        load_mnist(cache, downloader=copying(remote, asked))
    assert asked == []
    load_mnist(downloader=copying(remote, asked))
    assert asked == [registry.MNIST.url + LABELS]


@pytest.mark.fault(112)
@pytest.mark.parametrize("url", ["http://example.org/", "file:///etc/", "ftp://example.org/", "/etc/", "HTTP://x/"])
def test_only_https_is_fetched(cache, remote, monkeypatch, url):
    asked = []
    published = dataclasses.replace(registry.MNIST, url=url)
    monkeypatch.setattr("benchmarks.paper.data.MNIST", published)
    with pytest.raises(DataError, match=rf"got the address {url}, expected https://"):
        load_mnist(downloader=copying(remote, asked))
    assert asked == []
    assert not cache.exists()


def test_every_published_address_is_https_and_every_checksum_a_sha256():
    for published in [registry.MNIST, *registry.CITATION.values()]:
        assert published.url.startswith("https://")
        assert published.url.endswith("/")
        for digest in [*published.files.values(), *published.content.values()]:
            assert len(bytes.fromhex(digest)) == 32
    assert len({url for published in registry.CITATION.values() for url in published.files.values()}) == 18


def test_a_network_is_fetched_file_by_file_from_one_commit(cache):
    """The first file is asked for by the address with the commit in it; what comes is none of the published."""
    asked = []

    def nothing(url, output_file, store):
        asked.append(url)
        Path(output_file).write_bytes(b"")

    with pytest.raises(DataError, match=r"another file than the published ind\.cora\.allx"):
        load_citation("cora", downloader=nothing)
    assert asked == [registry.CITATION["cora"].url + "ind.cora.allx"]
    assert list(cache.iterdir()) == []


def test_without_pooch_the_error_says_how_to_get_it(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.paper.data.fetch", None)
    monkeypatch.delattr("benchmarks.paper.data.fetch")
    with pytest.raises(DataError, match=r"needs pooch, .*pip install 'implicitgrad\[data\]', or name a folder"):
        load_mnist()


# --- the downloader itself, against a server on this machine ----------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/file":
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"bytes")
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(65536))
            except OSError:
                pass
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "500")
            self.end_headers()
            self.wfile.write(b"bytes")
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
        else:
            self.send_error(404)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_download_shows_its_progress(server, tmp_path, capsys):
    fetching.download(f"{server}/file", str(tmp_path / "x"), None)
    assert (tmp_path / "x").read_bytes() == b"bytes"
    assert "100%" in capsys.readouterr().err


@pytest.mark.fault(112)
def test_a_redirect_is_not_followed(server, tmp_path):
    with pytest.raises(DataError, match=r"/moved redirects to 'file:///etc/passwd', expected the file itself"):
        fetching.download(f"{server}/moved", str(tmp_path / "x"), None)
    assert (tmp_path / "x").read_bytes() == b""


@pytest.mark.fault(113)
def test_a_server_that_never_ends_is_cut_off(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "PUBLIC_FILE_LIMIT", 100_000)
    with pytest.raises(DataError, match="/endless sends more than a public file has"):
        fetching.download(f"{server}/endless", str(tmp_path / "x"), None)
    assert (tmp_path / "x").stat().st_size <= 100_000


@pytest.mark.parametrize("path", ["/cut", "/absent"])
def test_a_server_that_breaks_off_or_has_no_such_file_is_a_data_error(server, cache, remote, monkeypatch, path):
    def from_server(url, output_file, store):
        fetching.download(server + path, output_file, store)

    with pytest.raises(DataError, match=r"could not fetch https://\S+ into \S+cache \(\w+: .*Check the network"):
        load_mnist(downloader=from_server)
    assert list(cache.iterdir()) == []
