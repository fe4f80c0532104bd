"""Planetoid's pickles: the very bytes that were published, small ones of the same making, and hostile ones."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sparse = pytest.importorskip("scipy.sparse")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.paper.data import DataError, load_citation, registry
from benchmarks.paper.data.planetoid import citation_from_public_files
from benchmarks.paper.data.unpickle import Array, Neighbours, Sparse, unpickled


def data_folder():
    """The folder with the real archives, which are not part of the repository."""
    for folder in (os.environ.get("IMPLICITGRAD_DATA_DIR"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "cora.npz").is_file():
            return Path(folder)
    pytest.skip("no cora.npz: set IMPLICITGRAD_DATA_DIR to the folder that holds it")


# --- a writer of what Python 2's cPickle wrote with protocol 2 --------------------------------------------------------


class Python2Pickle:
    """The bytes that ``cPickle.dump(value, file, 2)`` made of an array, a CSR matrix and a dictionary of lists.

    Today's pickle cannot stand in: it writes bytes through ``_codecs.encode`` and the names of today's modules.
    """

    def __init__(self):
        self.memo = {}
        self.slots = 0

    def put(self):
        self.slots += 1
        return b"q" + bytes([self.slots]) if self.slots < 256 else b"r" + struct.pack("<I", self.slots)

    def once(self, key, make):
        """What ``make`` writes the first time, and the number of its memo slot from then on."""
        if key in self.memo:
            return b"h" + bytes([self.memo[key]])
        content = make()
        self.memo[key] = self.slots + 1
        return content + self.put()

    def name(self, module, name):
        return self.once((module, name), lambda: f"c{module}\n{name}\n".encode())

    @staticmethod
    def number(n):
        return (
            b"K" + bytes([n]) if n < 256 else b"M" + struct.pack("<H", n) if n < 65536 else b"J" + struct.pack("<i", n)
        )

    @staticmethod
    def string(s):
        return (b"U" + bytes([len(s)]) if len(s) < 256 else b"T" + struct.pack("<i", len(s))) + s

    def array(self, values):
        text = values.dtype.str.encode()
        shape = b"".join(map(self.number, values.shape)) + {1: b"\x85", 2: b"\x86"}[values.ndim]

        def dtype():
            return self.name("numpy", "dtype") + self.string(text[1:]) + b"K\x00K\x01\x87R"

        made = self.name("numpy.core.multiarray", "_reconstruct") + self.name("numpy", "ndarray")
        made += b"K\x00\x85U\x01b\x87R" + self.put() + b"(K\x01" + shape
        new = ("dtype", text) not in self.memo
        made += self.once(("dtype", text), dtype)
        if new:
            made += b"(K\x03U\x01" + text[:1] + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        return made + b"\x89" + self.string(values.tobytes()) + b"tb"

    def matrix(self, values):
        made = self.name("scipy.sparse.csr", "csr_matrix") + b")\x81" + self.put() + b"}" + self.put() + b"("
        shape = b"".join(map(self.number, values.shape)) + b"\x86"
        made += self.string(b"_shape") + self.put() + shape + self.put()
        made += (
            self.string(b"maxprint") + self.put() + b"K2" + self.string(b"format") + self.put() + self.string(b"csr")
        )
        for part in ("indices", "indptr", "data"):
            made += self.string(part.encode()) + self.put() + self.array(getattr(values, part))
        return made + b"ub"

    def graph(self, neighbours):
        made = [self.name("collections", "defaultdict"), self.name("__builtin__", "list"), b"\x85R", self.put()]
        items = list(neighbours.items())
        for start in range(0, len(items), 1000):
            made.append(b"(")
            for node, ends in items[start : start + 1000]:
                numbers = list(map(self.number, ends))
                tail = [*numbers, b"a"] if len(ends) == 1 else [b"(", *numbers, b"e"] if ends else []
                made += [self.number(node), b"]", self.put(), *tail]
            made.append(b"u")
        return b"".join(made)


def pickled(kind, value):
    return b"\x80\x02" + getattr(Python2Pickle(), kind)(value) + b"."


def one_hot(classes, count):
    return (classes[:, None] == np.arange(count)).astype("<i4")  # a class of -1 makes a row of zeros


# --- the published bytes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("archive", "name"), [("cora.npz", "cora"), ("citeseer.npz", "citeseer"), ("pubmed-graph-only.npz", "pubmed")]
)
def test_the_published_files_rebuilt_from_the_arrays_have_the_published_checksums(archive, name):
    """Labels and graph only: whoever made the archives and whoever listed the checksums had the same files."""
    folder = data_folder()
    if not (folder / archive).is_file():
        pytest.skip(f"no {archive} in {folder}")
    citation, checksums = load_citation(name, folder), registry.CITATION[name].files
    with np.load(folder / archive, allow_pickle=False) as arrays:
        edges = arrays["edges"]  # in the order of the file: a network's own are sorted
    neighbours = {node: [] for node in range(len(citation.labels))}
    for node, neighbour in edges.tolist():
        neighbours[node].append(neighbour)
    known = citation.labels[: citation.test_nodes.min()]
    files = {
        f"ind.{name}.graph": pickled("graph", neighbours),
        f"ind.{name}.ally": pickled("array", one_hot(known, citation.labels.max() + 1)),
    }
    for file, content in files.items():
        assert hashlib.sha256(content).hexdigest() == checksums[file], file
    graph = unpickled("the graph", files[f"ind.{name}.graph"])
    assert graph == neighbours
    labels = unpickled("the labels", files[f"ind.{name}.ally"]).values
    np.testing.assert_array_equal(np.where(labels.any(1), labels.argmax(1), -1), known)


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_a_whole_network_comes_back_from_its_public_files(tmp_path, monkeypatch, name):
    """With the published checksums of the content, features too: only the order of test.index is drawn here."""
    citation = load_citation(name, data_folder())
    first, count = citation.test_nodes.min(), citation.labels.max() + 1
    order = np.random.default_rng(0).permutation(citation.test_nodes)
    neighbours = {node: [] for node in range(len(citation.labels))}
    for node, neighbour in citation.edges.tolist():
        neighbours[node].append(neighbour)
    parts = {
        "allx": pickled("matrix", citation.features[:first]),
        "tx": pickled("matrix", citation.features[order]),
        "ally": pickled("array", one_hot(citation.labels[:first], count)),
        "ty": pickled("array", one_hot(citation.labels[order], count)),
        "graph": pickled("graph", neighbours),
        "test.index": "".join(f"{node}\n" for node in order).encode(),
    }
    for part, content in parts.items():
        (tmp_path / f"ind.{name}.{part}").write_bytes(content)
    content = registry.CITATION[name].content
    monkeypatch.setitem(registry.CITATION, name, dataclasses.replace(published_as(tmp_path, name), content=content))
    assert load_citation(name, tmp_path).digests() == content


# --- small networks ---------------------------------------------------------------------------------------------------


def write_network(folder, name="cora", missing=(), seed=0):
    """Write the six public files of a random network of 9 documents; return what they stand for."""
    rng = np.random.default_rng(seed)
    known, test = 5, np.array([7, 5, 8])  # in no order, as published; document 6 is left out, as 15 of Citeseer are
    n, d, count = 9, 6, 3
    words = (rng.random((n, d)) < 0.4) * rng.integers(1, 5, (n, d)).astype(np.float32)
    classes = rng.integers(0, count, n)
    words[6], classes[[3, 6]] = 0, -1  # and document 3 has words but no class
    neighbours = {node: rng.integers(0, n, rng.integers(0, 4)).tolist() for node in range(n)}
    neighbours[0] = [4, 4, 0, 2]
    rows = sparse.csr_matrix(words.astype("<f4"))
    parts = {
        "allx": pickled("matrix", rows[:known]),
        "tx": pickled("matrix", rows[test]),
        "ally": pickled("array", one_hot(classes[:known], count)),
        "ty": pickled("array", one_hot(classes[test], count)),
        "graph": pickled("graph", neighbours),
        "test.index": b"7\n5\n8\n",
    }
    for part, content in parts.items():
        if part not in missing:
            (folder / f"ind.{name}.{part}").write_bytes(content)
    edges = sorted((node, end) for node, ends in neighbours.items() for end in ends)
    return words, classes, np.array(edges), np.sort(test)


def published_as(folder, name="cora"):
    """What ``registry.CITATION[name]`` would be, were the files in the folder the published ones."""
    files = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in registry.CITATION[name].files}
    return dataclasses.replace(registry.CITATION[name], files=files, content={})


@pytest.mark.parametrize("seed", range(5))
def test_public_files_load_to_the_network_that_they_were_written_from(tmp_path, monkeypatch, seed):
    """Row i of tx describes document test.index[i]; a document that is left out has no words and the class -1."""
    words, classes, edges, test_nodes = write_network(tmp_path, seed=seed)
    monkeypatch.setitem(registry.CITATION, "cora", published_as(tmp_path))
    citation = load_citation("cora", tmp_path)
    assert citation.features.dtype == np.float32
    assert citation.features.has_sorted_indices
    np.testing.assert_array_equal(citation.features.toarray(), words)
    np.testing.assert_array_equal(citation.labels, classes)
    np.testing.assert_array_equal(citation.edges, edges)
    np.testing.assert_array_equal(citation.known_nodes, [0, 1, 2, 4, 5, 7, 8])
    np.testing.assert_array_equal(citation.test_nodes, test_nodes)


def test_the_content_of_public_files_is_compared_too(tmp_path):
    write_network(tmp_path)
    published = published_as(tmp_path)
    right = citation_from_public_files("cora", published, tmp_path).digests()
    citation_from_public_files("cora", dataclasses.replace(published, content=right), tmp_path)
    for part in ("graph", "features"):
        wrong = dataclasses.replace(published, content={**right, part: "0" * 64})
        with pytest.raises(DataError, match=rf"\({part}\) with SHA-256 [0-9a-f]{{64}}, expected 0{{64}}"):
            citation_from_public_files("cora", wrong, tmp_path)


@pytest.mark.parametrize("part", ["allx", "tx", "ally", "ty", "graph", "test.index"])
def test_a_truncated_or_changed_public_file_is_refused_before_it_is_parsed(tmp_path, monkeypatch, part):
    write_network(tmp_path)
    monkeypatch.setitem(registry.CITATION, "cora", published_as(tmp_path))
    file = tmp_path / f"ind.cora.{part}"
    content = file.read_bytes()
    for wrong in (content[:-1], content + b"\n", b"cos\nsystem\n(S'true'\ntR."):
        file.write_bytes(wrong)
        with pytest.raises(DataError, match=rf"got \S+{part} with SHA-256 [0-9a-f]{{64}}, expected [0-9a-f]{{64}}"):
            load_citation("cora", tmp_path)


def test_a_missing_public_file_is_named(tmp_path):
    write_network(tmp_path, missing=("graph", "tx"))
    with pytest.raises(DataError, match=r"without cora.npz and without ind.cora.tx, ind.cora.graph\. Put the"):
        load_citation("cora", tmp_path)


INCONSISTENT = {
    "two numbers alike": ("test.index", b"7\n7\n8\n"),
    "a test document among the known": ("test.index", b"7\n4\n8\n"),
    "a number too many": ("test.index", b"7\n5\n8\n9\n"),
    "words for numbers": ("test.index", b"7\nfive\n8\n"),
    "a number beyond all numbers": ("test.index", b"7\n5\n" + b"8" * 30),
    "no number": ("test.index", b"\n"),
    "words of four documents": ("allx", pickled("matrix", sparse.csr_matrix(np.eye(4, 6, dtype="<f4")))),
    "a class that counts twice": ("ally", pickled("array", np.tile(np.array([2, -1, 0], "<i4"), (5, 1)))),
    "one more known class": ("ally", pickled("array", one_hot(np.zeros(6, int), 3))),
    "two classes at once": ("ally", pickled("array", np.ones((5, 3), "<i4"))),
    "no class": ("ally", pickled("array", np.zeros((5, 0), "<i4"))),
    "a matrix for an array": ("ty", pickled("matrix", sparse.csr_matrix(np.eye(3, dtype="<f4")))),
    "an array for a matrix": ("tx", pickled("array", np.eye(3, dtype="<f4"))),
    "other words": ("tx", pickled("matrix", sparse.csr_matrix(np.eye(3, 5, dtype="<f4")))),
    "no number for a word": ("tx", pickled("matrix", sparse.csr_matrix(np.full((3, 6), np.nan, "<f4")))),
    "a matrix without its state": ("allx", b"\x80\x02cscipy.sparse.csr\ncsr_matrix\n)\x81."),
    "an array without its state": ("ally", b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)\x81."),
    "a document that is not there": ("graph", pickled("graph", {0: [1, 9]})),
    "nobody cites": ("graph", pickled("graph", {0: []})),
    "a list for a dictionary": ("graph", b"\x80\x02](K\x01K\x02e."),
    "a text for a document": ("graph", b"\x80\x02ccollections\ndefaultdict\n)R(K\x00](U\x01aeu."),
    "a number for a list": ("graph", b"\x80\x02ccollections\ndefaultdict\n)R(K\x00K\x01u."),
}


@pytest.mark.parametrize("case", INCONSISTENT)
def test_public_files_that_do_not_belong_together_are_refused(tmp_path, case):
    """Their checksums are right here: the parser does not lean on them."""
    write_network(tmp_path)
    part, content = INCONSISTENT[case]
    (tmp_path / f"ind.cora.{part}").write_bytes(content)
    with pytest.raises(DataError, match="got "):
        citation_from_public_files("cora", published_as(tmp_path), tmp_path)


# --- hostile pickles --------------------------------------------------------------------------------------------------


class _Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.fault(108)
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), r"(posix|nt)\.system"),
        (eval, ("open({!r}, 'w')",), r"__builtin__\.eval"),
        (getattr, ("{}", "upper"), r"__builtin__\.getattr"),
        (np.load, ("{}",), r"numpy\.load"),
    ],
)
def test_a_pickle_that_wants_another_function_is_refused_by_name(tmp_path, function, arguments, name):
    """The message names the file and the global, and the function has not run."""
    witness = tmp_path / "witness"
    arguments = tuple(text.format(str(witness)) for text in arguments)
    hostile = pickle.dumps(_Runs(function, *arguments), protocol=2)
    with pytest.raises(DataError, match=rf"got ind\.cora\.graph, which wants the global {name}; .*do not open it"):
        unpickled("ind.cora.graph", hostile)
    assert not witness.exists()


def nest_of_tuples(depth):
    return b"\x80\x02)" + b"\x85" * depth + b"."


def lists_of_lists(depth):
    """2 ** depth entries in a few bytes: each list holds the one before it twice."""
    slots = b"".join(b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1]) for k in range(depth))
    return b"\x80\x02]q\x00" + slots + b"."


HOSTILE = {
    "a memo slot far out": (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "wants memo slot 2147483647 after 0"),
    "a name from another protocol": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "the opcode SHORT_BINUNICODE"),
    "a class of the old kind": (b"\x80\x02(ios\nsystem\n.", "the opcode INST"),
    "an object by number": (b"\x80\x02\x82\x01.", "the opcode EXT1"),
    "an object by its persistent name": (b"\x80\x02K\x01Q.", "the opcode BINPERSID"),
    "a buffer of 2 ** 62 bytes": (b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".", "no readable pickle"),
    "a nest of tuples": (nest_of_tuples(100_000), "more than 100 tuples"),
    "lists that share lists": (lists_of_lists(40), "repeats what (EMPTY_LIST|APPENDS) made"),
    "bytes behind the end": (b"\x80\x02N.N.", "2 bytes behind its end"),
    "no end": (b"\x80\x02N", "no readable pickle"),
    "nothing": (b"", "no readable pickle"),
    "a stack that is empty": (b"\x80\x02R.", "no readable pickle"),
    "a state for a class": (
        b"\x80\x02cscipy.sparse.csr\ncsr_matrix\nN}U\x03docU\x01xs\x86b.",
        "no readable pickle",
    ),
    "a state for a name": (b"\x80\x02cnumpy\nndarray\n)\x81}b.", "a state for Name"),
    "a state for a dictionary": (b"\x80\x02ccollections\ndefaultdict\n)R}b.", "a state for a dictionary"),
    "objects in an array": (b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.", "dtype 'O', expected one of"),
    "an array of three dimensions": (
        pickled("array", np.zeros(3, "<i4")).replace(b"K\x03\x85", b"K\x01K\x01K\x03\x87"),
        r"shape \(1, 1, 3\), expected \(n,\) or \(n, d\)",
    ),
    "an order of bytes that swaps": (
        pickled("array", np.zeros(3, "<i4")).replace(b"U\x01<", b"U\x01S"),
        "the byte order 'S'",
    ),
    "an array larger than its bytes": (
        pickled("array", np.zeros(3, "<i4")).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"),
        "12 bytes for an array int32",
    ),
}


@pytest.mark.fault(113)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pickle_is_refused(case):
    content, message = HOSTILE[case]
    with pytest.raises(DataError, match=message):
        unpickled("ind.cora.allx", content)


def test_no_stand_in_is_changed_by_a_pickle():
    """BUILD may set attributes of whatever lies on the stack, of a class too: the stand-ins let none be set."""
    before = {kind: dict(vars(kind)) for kind in (Array, Sparse, Neighbours)}
    for case in HOSTILE:
        with pytest.raises(DataError):
            unpickled("x", HOSTILE[case][0])
    assert {kind: dict(vars(kind)) for kind in (Array, Sparse, Neighbours)} == before


GENUINE = [
    pickled("array", np.arange(6, dtype="<i4").reshape(2, 3)),
    pickled("matrix", sparse.csr_matrix(np.eye(3, dtype="<f4"))),
    pickled("graph", {0: [1, 2], 1: [0], 2: []}),
]


@given(content=st.binary(max_size=60), proto=st.booleans())
def test_random_bytes_are_no_pickle(content, proto):
    """Whatever the bytes, the reader returns a plain value or raises DataError: no crash, no other exception."""
    with contextlib.suppress(DataError):
        unpickled("x", b"\x80\x02" * proto + content)


@settings(max_examples=settings().max_examples // 2)  # each reads three networks
@given(
    which=st.sampled_from(GENUINE),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), max_size=4),
    cut=st.integers(0, 3),
)
def test_a_changed_pickle_raises_nothing_but_data_errors(tmp_path_factory, which, changes, cut):
    """Behind the checksum, too: where it still unpickles, the parser takes it or raises DataError."""
    content = bytearray(which)
    for place, piece in changes:
        start = int(place * len(content))
        content[start : start + len(piece)] = piece
    folder = tmp_path_factory.mktemp("network")
    for part in ("allx", "ally", "graph"):
        write_network(folder)
        (folder / f"ind.cora.{part}").write_bytes(bytes(content[: len(content) - cut]))
        with contextlib.suppress(DataError):
            citation_from_public_files("cora", published_as(folder), folder)
