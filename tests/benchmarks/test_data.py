"""The loaders: real data where they are at hand, small archives of the same form, and files that are not genuine."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import struct
import sys
import tracemalloc
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sparse = pytest.importorskip("scipy.sparse")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.paper.data import DataError, load_citation, load_mnist, registry
from benchmarks.paper.data.citation import citation_from_npz
from benchmarks.paper.data.digest import digest_of
from benchmarks.paper.data.files import file_in, read_bounded
from benchmarks.paper.data.gz import idx_array, inflated
from benchmarks.paper.data.npz import read_npz

MIB = 1024 * 1024


@contextlib.contextmanager
def memory_below(limit):
    """Assert that the block takes less memory than that at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


# --- the real data ----------------------------------------------------------------------------------------------------


def folder_with(archive):
    """The folder with the real archives, which are not part of the repository."""
    for folder in (os.environ.get("IMPLICITGRAD_DATA_DIR"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / archive).is_file():
            return Path(folder)
    pytest.skip(f"no {archive}: set IMPLICITGRAD_DATA_DIR to the folder that holds it")


@pytest.mark.parametrize(
    ("name", "archive", "nodes", "links", "classes", "words", "known"),
    [
        ("cora", "cora.npz", 2708, 5429, 7, 1433, 2708),
        ("citeseer", "citeseer.npz", 3327, 4732, 6, 3703, 3312),
        ("pubmed", "pubmed-graph-only.npz", 19717, 44338, 3, None, 19717),
    ],
)
def test_the_networks_have_the_sizes_of_table_a2(name, archive, nodes, links, classes, words, known):
    citation = load_citation(name, folder_with(archive))
    assert citation.labels.shape == (nodes,)
    assert citation.edges.shape == (2 * links, 2)
    assert set(citation.labels[citation.known_nodes]) == set(range(classes))
    assert len(citation.known_nodes) == known
    assert len(citation.test_nodes) == 1000
    assert (citation.features is None) == (words is None)
    if words is not None:
        assert citation.features.shape == (nodes, words)
        assert citation.features.dtype == np.float32
        assert citation.features.nnz == citation.features.count_nonzero() > 0


@pytest.mark.parametrize(
    ("name", "archive"), [("cora", "cora.npz"), ("citeseer", "citeseer.npz"), ("pubmed", "pubmed-graph-only.npz")]
)
def test_the_edges_of_a_network_run_both_ways_in_order(name, archive):
    edges = load_citation(name, folder_with(archive)).edges
    ordered = edges[np.lexsort(edges.T[::-1])]
    np.testing.assert_array_equal(edges, ordered)
    reverse = edges[:, ::-1]
    np.testing.assert_array_equal(reverse[np.lexsort(reverse.T[::-1])], ordered)


def test_the_digits_are_those_of_mnist():
    images, labels = load_mnist(folder_with("mnist-train-19690.npz"))
    assert (images.dtype, images.shape, labels.dtype, labels.shape) == ("uint8", (19690, 28, 28), "uint8", (19690,))
    np.testing.assert_array_equal(labels[:10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4])  # as LeCun's page shows them
    assert images.flags.writeable  # torch.from_numpy warns of an array that is not
    assert (images.reshape(len(images), -1).max(axis=1) > 200).all()


def test_the_environment_variable_names_the_folder(monkeypatch):
    monkeypatch.setenv("IMPLICITGRAD_DATA_DIR", str(folder_with("cora.npz")))
    assert load_citation("cora").digests() == registry.CITATION["cora"].content


# --- names and folders ------------------------------------------------------------------------------------------------


@pytest.mark.fault(111)
@pytest.mark.parametrize("name", ["../../etc/x", "/etc/passwd", "Cora", "", "cora.npz", "cora\0", None, ["cora"]])
def test_an_unknown_name_is_refused_with_the_choices(tmp_path, name):
    with pytest.raises(DataError, match=r"got the name .*, expected one of \['citeseer', 'cora', 'pubmed'\]"):
        load_citation(name, tmp_path)
    assert issubclass(DataError, ValueError)


@pytest.mark.fault(110)
@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "..", "", "a\\b", "C:x", "..\\x", "x\0y", "./x"])
def test_a_file_name_with_a_folder_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="expected a bare name without a folder"):
        file_in(tmp_path, name)


@pytest.mark.fault(110)
def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(tmp_path):
    folder, outside = tmp_path / "data", tmp_path / "secret.npz"
    folder.mkdir()
    outside.write_bytes(b"secret")
    (folder / "cora.npz").symlink_to(outside)
    with pytest.raises(DataError, match=r"cora\.npz, a link to \S+secret\.npz, expected a file inside"):
        load_citation("cora", folder)
    (folder / "real").write_bytes(b"x")
    (folder / "inside").symlink_to("real")
    assert file_in(folder, "inside") == (folder / "real").resolve()
    assert file_in(folder, "absent") is None


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("pipe", "folder", "dangling"):
        with pytest.raises(DataError, match="which is no regular file"):
            file_in(tmp_path, name)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(DataError, match="circle, which"):
        file_in(tmp_path, "circle")


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(DataError, match=r"load_mnist: got data_dir='\S+absent', which is no folder"):
        load_mnist(tmp_path / "absent")


def test_an_empty_folder_is_answered_with_what_belongs_there(tmp_path):
    with pytest.raises(DataError, match=r"without mnist-train-19690\.npz and without train-images-\S+, train-labels"):
        load_mnist(tmp_path)
    with pytest.raises(DataError, match=r"without pubmed-graph-only\.npz and without ind\.pubmed\.allx, .*fetched"):
        load_citation("pubmed", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(113)
def test_a_file_beyond_its_limit_is_not_read(tmp_path):
    sparse_file = tmp_path / "huge"
    with sparse_file.open("wb") as file:
        file.truncate(2**40)  # a terabyte of holes
    with pytest.raises(DataError, match=r"huge of 1099511627776 bytes, expected at most 1048576"):
        read_bounded(sparse_file, MIB)


# --- archives ---------------------------------------------------------------------------------------------------------


def small_network(n=7, d=5):
    rng = np.random.default_rng(3)
    words = sparse.csr_matrix((rng.random((n, d)) < 0.5).astype(np.float32))
    return {
        "labels": np.array([0, 1, -1, 2, 0, 1, 2], np.int8),
        "edges": np.array([[4, 0], [0, 4], [1, 2], [2, 1], [1, 2], [2, 1]], np.int32),
        "test_nodes": np.array([6, 3], np.int32),
        "feature_data": words.data,
        "feature_indices": words.indices,
        "feature_indptr": words.indptr,
        "feature_shape": np.array([n, d]),
    }


def archive_of(folder, name="cora.npz", **arrays):
    path = folder / name
    np.savez_compressed(path, **arrays)
    return path


def any_content(arrays):
    """A registry entry that takes these arrays for the published ones."""
    graph = digest_of(
        arrays["labels"], arrays["edges"][np.lexsort(arrays["edges"].T[::-1])], np.sort(arrays["test_nodes"])
    )
    features = digest_of(*(arrays[f"feature_{part}"] for part in ("shape", "indptr", "indices", "data")))
    return dataclasses.replace(registry.CITATION["cora"], content={"graph": graph, "features": features})


def test_an_archive_loads_to_its_arrays_in_canonical_form(tmp_path, monkeypatch):
    arrays = small_network()
    monkeypatch.setitem(registry.CITATION, "cora", any_content(arrays))
    archive_of(tmp_path, **arrays)
    citation = load_citation("cora", tmp_path)
    np.testing.assert_array_equal(citation.edges, [[0, 4], [1, 2], [1, 2], [2, 1], [2, 1], [4, 0]])
    np.testing.assert_array_equal(citation.labels, arrays["labels"])
    np.testing.assert_array_equal(citation.known_nodes, [0, 1, 3, 4, 5, 6])
    np.testing.assert_array_equal(citation.test_nodes, [3, 6])
    assert citation.labels.dtype == citation.edges.dtype == np.int64
    dense = np.zeros((7, 5))
    rows = np.repeat(np.arange(7), np.diff(arrays["feature_indptr"]))
    dense[rows, arrays["feature_indices"]] = arrays["feature_data"]
    np.testing.assert_array_equal(citation.features.toarray(), dense)


def test_the_order_of_edges_and_columns_and_the_width_of_integers_do_not_change_the_digest(tmp_path):
    arrays = small_network()
    published = any_content(arrays)
    indptr, columns = arrays["feature_indptr"], arrays["feature_indices"]
    backwards = np.concatenate([columns[a:b][::-1] for a, b in pairwise(indptr)])
    other = {
        **arrays,
        "edges": arrays["edges"][::-1].astype(np.int64),
        "labels": arrays["labels"].astype(">i4"),
        "feature_indices": backwards.astype(np.int64),
        "feature_shape": arrays["feature_shape"][::-1],  # the transpose by columns
    }
    citation = citation_from_npz("cora", published, archive_of(tmp_path, **other))
    assert citation.digests() == published.content
    assert citation.features.shape == (7, 5)


@pytest.mark.fault(112)
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("graph", {"labels": np.array([1, 1, -1, 2, 0, 1, 2], np.int8)}),
        ("graph", {"edges": np.array([[4, 0], [0, 4], [1, 2], [2, 1]], np.int32)}),
        ("graph", {"test_nodes": np.array([6, 2], np.int32)}),
        ("features", {"feature_data": 2 * small_network()["feature_data"]}),
    ],
)
def test_an_archive_with_other_content_is_refused(tmp_path, monkeypatch, what, change):
    arrays = small_network()
    monkeypatch.setitem(registry.CITATION, "cora", any_content(arrays))
    archive_of(tmp_path, **{**arrays, **change})
    with pytest.raises(DataError, match=rf"cora\.npz \({what}\) with SHA-256 [0-9a-f]{{64}}, expected [0-9a-f]{{64}}"):
        load_citation("cora", tmp_path)


def test_features_without_a_known_checksum_are_refused(tmp_path, monkeypatch):
    arrays = small_network()
    published = any_content(arrays)
    graph_only = dataclasses.replace(published, content={"graph": published.content["graph"]})
    monkeypatch.setitem(registry.CITATION, "cora", graph_only)
    archive_of(tmp_path, **arrays)
    with pytest.raises(DataError, match="with features, for which no checksum is known"):
        load_citation("cora", tmp_path)
    archive_of(tmp_path, **{name: values for name, values in arrays.items() if not name.startswith("feature")})
    assert load_citation("cora", tmp_path).features is None


WORDS = len(small_network()["feature_data"])
WRONG_ARRAYS = {
    "a label out of range": ({"labels": np.array([0, 1, -2, 2, 0, 1, 2])}, "labels from -2 to 2, expected -1 <= value"),
    "labels that are no numbers": ({"labels": np.array(list("abcdefg"))}, "array 'labels.npy' of dtype <U1"),
    "labels that are no integers": ({"labels": np.zeros(7)}, r"labels of dtype float64 .* expected integers \(any\)"),
    "labels in a table": ({"labels": np.zeros((7, 1), int)}, r"labels of dtype int64 and shape \(7, 1\)"),
    "one label": ({"labels": np.array(3)}, r"no CSR matrix of shape"),
    "an edge to nowhere": ({"edges": np.array([[0, 7]])}, "edges from 0 to 7, expected 0 <= value < 7"),
    "an edge from below": ({"edges": np.array([[-1, 0]])}, "edges from -1 to 0, expected 0 <="),
    "edges of three ends": ({"edges": np.zeros((4, 3), int)}, r"\(4, 3\), expected integers \(any, 2\)"),
    "a test node out of range": ({"test_nodes": np.array([7])}, "test_nodes from 7 to 7"),
    "a column out of range": ({"feature_indices": np.full(WORDS, 5)}, "no CSR matrix of shape"),
    "rows that go backwards": ({"feature_indptr": np.array([0, 3, 2, 4, 5, 6, 7, WORDS])}, "no CSR matrix of shape"),
    "too few columns": ({"feature_indices": np.array([0])}, "no CSR matrix of shape"),
    "a matrix of another size": ({"feature_shape": np.array([8, 5])}, "no CSR matrix of shape"),
    "a matrix of no size": ({"feature_shape": np.array([7, 5, 1])}, "no CSR matrix of shape"),
    "a matrix as wide as memory": ({"feature_shape": np.array([7, 2**40])}, "no CSR matrix of shape"),
    "a word that is no number": ({"feature_data": np.full(WORDS, np.inf, np.float32)}, "no CSR matrix of shape"),
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_an_archive_with_senseless_arrays_is_refused(tmp_path, case):
    change, message = WRONG_ARRAYS[case]
    arrays = small_network()
    path = archive_of(tmp_path, **{**arrays, **change})
    with pytest.raises(DataError, match=message):
        citation_from_npz("cora", any_content(arrays), path)


def test_a_missing_array_is_named(tmp_path):
    arrays = small_network()
    published = any_content(arrays)
    del arrays["edges"]
    with pytest.raises(DataError, match=r"expected \['edges', 'labels', 'test_nodes'\]; \['edges'\] missing"):
        citation_from_npz("cora", published, archive_of(tmp_path, **arrays))
    arrays["edges"] = small_network()["edges"]
    del arrays["feature_indptr"]
    with pytest.raises(DataError, match=r"expected all of .* or none"):
        citation_from_npz("cora", published, archive_of(tmp_path, **arrays))


@pytest.mark.fault(108)
def test_an_archive_that_needs_a_pickle_is_refused(tmp_path):
    path = archive_of(tmp_path, labels=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(DataError, match=r"array 'labels\.npy' of dtype object, .*would need a pickle: refused"):
        read_npz(path, ("labels",))


def npy_header(shape, descr="'<f8'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


HEADERS = {
    "of a gigabyte": (npy_header("(134217728,)") + bytes(8), r"float64\(134217728,\), but 8 bytes long"),
    "of more than memory": (npy_header("(1152921504606846976,)"), "but 0 bytes long"),
    "of minus one": (npy_header("(-1, -1)") + bytes(8), "but 8 bytes long"),
    "longer than its limit": (npy_header("(1,)" + " " * 1000) + bytes(8), "no readable npz archive"),
    "that is nested": (npy_header("(" * 150 + "1" + ",)" * 150), "no readable npz archive"),
    "of code": (npy_header("__import__('os').system('true')"), "no readable npz archive"),
    "of a record": (npy_header("(1,)", "[('a', '<f8')]") + bytes(8), "expected plain numbers"),
    "of complex numbers": (npy_header("(1,)", "'<c8'") + bytes(8), "expected plain numbers"),
    "of version 9": (b"\x93NUMPY\x09\x00", "no readable npz archive|npy version"),
    "that is none": (b"labels: 1, 2, 3", "no readable npz archive"),
    "that ends too early": (npy_header("(1,)")[:20], "no readable npz archive"),
}


@pytest.mark.fault(113)
@pytest.mark.parametrize("case", HEADERS)
def test_an_array_with_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path, case):
    content, message = HEADERS[case]
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("labels.npy", content)
    with memory_below(MIB), pytest.raises(DataError, match=message):
        read_npz(tmp_path / "x.npz", ("labels",))


@pytest.mark.fault(113)
def test_a_zip_bomb_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.paper.data.npz.ARRAY_LIMIT", 2 * MIB)
    path = archive_of(tmp_path, labels=np.zeros(8 * MIB, np.uint8))
    assert path.stat().st_size < MIB / 10
    refused = pytest.raises(DataError, match=r"array 'labels\.npy' of 8388736 bytes, expected at most 2097152")
    with memory_below(MIB), refused:
        read_npz(path, ("labels",))


def test_an_archive_that_hides_a_member_behind_a_password_is_refused(tmp_path):
    path = archive_of(tmp_path, labels=np.arange(3))
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        content[content.index(signature) + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"no readable npz archive \(RuntimeError"):
        read_npz(path, ("labels",))


@st.composite
def changed(draw, content):
    """The bytes with up to four places overwritten and the end cut off or not."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content) - 1))
        piece = draw(st.binary(min_size=1, max_size=4))
        content[start : start + len(piece)] = piece
    return bytes(content[: len(content) - draw(st.sampled_from([0, 0, 1, 20]))])


def bytes_of(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("archives")


@given(content=changed(bytes_of(**small_network())) | st.binary(max_size=100) | st.just(b""))
def test_a_changed_archive_loads_to_the_published_arrays_or_is_refused(scratch, content):
    """Nothing but DataError comes out, and no other content: some bytes of a zip mean nothing."""
    arrays = small_network()
    published = any_content(arrays)
    (scratch / "cora.npz").write_bytes(content)
    with contextlib.suppress(DataError):
        assert citation_from_npz("cora", published, scratch / "cora.npz").digests() == published.content


@given(content=changed(bytes_of(labels=np.arange(5, dtype=">i2"))) | st.binary(max_size=100))
def test_a_changed_archive_raises_nothing_but_data_errors_without_its_checksum(scratch, content):
    (scratch / "x.npz").write_bytes(content)
    with contextlib.suppress(DataError):
        values = read_npz(scratch / "x.npz", ("labels",))["labels"]
        assert values.dtype.kind in "biuf"


def test_arrays_come_in_the_byte_order_of_this_machine(tmp_path):
    """torch takes no other."""
    for order in "<>":
        path = archive_of(tmp_path, "x.npz", labels=np.arange(5).astype(f"{order}i2"))
        values = read_npz(path, ("labels",))["labels"]
        assert values.dtype == np.int16
        assert values.dtype.isnative
        np.testing.assert_array_equal(values, np.arange(5))


# --- MNIST's public files ---------------------------------------------------------------------------------------------


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_digits(folder, monkeypatch, images, labels):
    """Write two files of MNIST's form and enter them in the registry as the published ones."""
    files = {}
    for name, array in zip(registry.MNIST.files, (images, labels), strict=True):
        (folder / name).write_bytes(gzip.compress(idx(array), mtime=0))
        files[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr("benchmarks.paper.data.MNIST", dataclasses.replace(registry.MNIST, files=files))


def digits(count=4):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 28, 28), np.uint8), rng.integers(0, 10, count).astype(np.uint8)


def test_public_digits_load_to_what_was_written(tmp_path, monkeypatch):
    write_digits(tmp_path, monkeypatch, *digits())
    images, labels = load_mnist(tmp_path)
    np.testing.assert_array_equal(images, digits()[0])
    np.testing.assert_array_equal(labels, digits()[1])
    assert images.flags.writeable


@pytest.mark.fault(112)
def test_an_archive_of_other_digits_is_refused(tmp_path, monkeypatch):
    images, labels = digits()
    published = dataclasses.replace(registry.MNIST, content={"images and labels": digest_of(images, labels)})
    monkeypatch.setattr("benchmarks.paper.data.MNIST", published)
    np.savez(tmp_path / published.archive, images=images, labels=labels)
    np.testing.assert_array_equal(load_mnist(tmp_path)[0], images)
    images[0, 0, 0] ^= 1
    np.savez(tmp_path / published.archive, images=images, labels=labels)
    with pytest.raises(DataError, match=r"19690\.npz \(images and labels\) with SHA-256"):
        load_mnist(tmp_path)


@pytest.mark.fault(112)
@pytest.mark.parametrize("name", list(registry.MNIST.files))
def test_a_changed_file_of_digits_is_refused(tmp_path, monkeypatch, name):
    write_digits(tmp_path, monkeypatch, *digits())
    content = (tmp_path / name).read_bytes()
    for wrong in (content[:-1], content + b"\0", b""):
        (tmp_path / name).write_bytes(wrong)
        with pytest.raises(DataError, match=rf"{name} with SHA-256"):
            load_mnist(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 28, 27)), np.zeros(2), r"images uint8\(2, 28, 27\), expected uint8 \(N, 28, 28\)"),
        (np.zeros((2, 28, 28)), np.zeros(3), r"labels uint8\(3,\), expected uint8 \(2,\) up to 9"),
        (np.zeros((2, 28, 28)), np.full(2, 10), "up to 9"),
        (np.zeros((2, 784)), np.zeros(2), "expected an IDX file of bytes, '00 00 08 03'"),
    ],
)
def test_digits_of_another_form_are_refused(tmp_path, monkeypatch, images, labels, message):
    write_digits(tmp_path, monkeypatch, images, labels)
    with pytest.raises(DataError, match=message):
        load_mnist(tmp_path)


@pytest.mark.fault(113)
def test_a_gzip_bomb_stops_at_its_limit():
    bomb = gzip.compress(bytes(16 * MIB))
    with memory_below(4 * MIB), pytest.raises(DataError, match="inflates to more than 1048576 bytes"):
        inflated("x.gz", bomb, limit=MIB)
    assert inflated("x.gz", gzip.compress(bytes(MIB)), limit=MIB) == bytes(MIB)


PACKED = gzip.compress(b"digits", mtime=0)
DAMAGED = {
    "cut": (PACKED[:-1], "ends too early"),
    "empty": (b"", "ends too early"),
    "followed": (PACKED + b"x", "goes on behind its end"),
    "plain": (b"digits", "which is no gzip file"),
    "of another sum": (PACKED[:-8] + bytes(8), r"which is no gzip file .*incorrect data check"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_gzip_file_is_refused(case):
    content, message = DAMAGED[case]
    with pytest.raises(DataError, match=message):
        inflated("x.gz", content)


WRONG_IDX = {
    "of one dimension": (idx(np.zeros(3)), "begins with '00 00 08 01'"),
    "cut": (idx(np.zeros((2, 2, 2)))[:-1], r"of 23 bytes, expected 24 for shape \(2, 2, 2\)"),
    "of 80 exabytes": (b"\0\0\x08\x03" + b"\xff" * 12, r"of 16 bytes, expected \d{29} for shape"),
    "without its lengths": (b"\0\0\x08\x03\0\0", "expected an IDX file"),
}


@pytest.mark.parametrize("case", WRONG_IDX)
def test_an_idx_file_of_another_form_is_refused(case):
    content, message = WRONG_IDX[case]
    with pytest.raises(DataError, match=message):
        idx_array("x", content, 3)


@settings(max_examples=settings().max_examples // 2)
@given(content=changed(gzip.compress(idx(np.arange(12).reshape(3, 2, 2)), mtime=0)) | st.binary(max_size=40))
def test_a_changed_file_of_digits_raises_nothing_but_data_errors(content):
    with contextlib.suppress(DataError):
        np.testing.assert_array_equal(idx_array("x", inflated("x", content), 3), np.arange(12).reshape(3, 2, 2))
