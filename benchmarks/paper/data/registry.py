"""Where each data set comes from and what it must be: addresses, checksums of the files, checksums of the content.

The checksums of the *files* are those that others published; their sources are named at each table and in
docs/data.md. Eleven of the Planetoid files were in addition rebuilt byte for byte from the arrays, and their checksums
agree; tests/benchmarks/test_data_planetoid.py does so with six of them, .ally and .graph.

The checksums of the *content* were computed here, over the arrays in the canonical form of ``digest.py``. They hold
whatever file the arrays came from, so an archive that somebody made of the public files is checked too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CITATION", "MNIST", "Published"]


@dataclass(frozen=True)
class Published:
    """A data set as it was published.

    Attributes
    ----------
    url : str
        The https address of the folder that holds the public files.
    files : mapping of str to str
        SHA-256 of each public file, by its name.
    content : mapping of str to str
        SHA-256 of each part of the content, by the part's name.
    archive, graph_archive : str or None
        The npz archive that holds everything, and one that holds the graph alone.
    """

    url: str
    files: Mapping[str, str]
    content: Mapping[str, str]
    archive: str | None = None
    graph_archive: str | None = None


# The last commit of the data's own repository; an address with a commit in it cannot change its content.
_PLANETOID_URL = "https://raw.githubusercontent.com/kimiyoung/planetoid/af6abf468a772cc055bec88c52e4d6f51b7c37e3/data/"

# SHA-256 as published by skygazer42/sky-vgl, vgl/data/public.py at 7cbb28df98d5eea988f5b010f3e0df6a191f533b; three
# other projects list the same values for the networks that they use. The files .x and .y repeat rows of .allx and
# .ally: they are not needed.
CITATION: dict[str, Published] = {
    "cora": Published(
        url=_PLANETOID_URL,
        files={
            "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
            "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
            "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
            "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
            "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
            "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
        },
        content={
            "graph": "be05a7c4738b3c989f546aaac6348ea6fc7e952fd8f6ae60ca442abaa294a3d5",
            "features": "d2886e3d849fc66e292f0cdb3ea2199634a32c4dddba55b8115c17368a937916",
        },
        archive="cora.npz",
    ),
    "citeseer": Published(
        url=_PLANETOID_URL,
        files={
            "ind.citeseer.allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
            "ind.citeseer.tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
            "ind.citeseer.ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
            "ind.citeseer.ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
            "ind.citeseer.graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
            "ind.citeseer.test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
        },
        content={
            "graph": "5dda2ee383f2690b4e7fa9c5137fe7ec3af09dfc4334d3a9c61335a42a9cb2d7",
            "features": "fe848729964abcbf5ae690f091125aa65c2fefd7630f3f04d2f01b5d98916c54",
        },
        archive="citeseer.npz",
    ),
    "pubmed": Published(
        url=_PLANETOID_URL,
        files={
            "ind.pubmed.allx": "508e538e2abdccdd54c4d3e9f49d638b4af7107d85845f66ddea5a5152658b7e",
            "ind.pubmed.tx": "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
            "ind.pubmed.ally": "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
            "ind.pubmed.ty": "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
            "ind.pubmed.graph": "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
            "ind.pubmed.test.index": "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
        },
        # Of the features no copy was at hand: they are held by the checksums of .allx and .tx alone.
        content={"graph": "51637a4a71133e70ea3228d6ea8cb892cd6be99398e91ab3a1f873766c9ed826"},
        graph_archive="pubmed-graph-only.npz",
    ),
}

# SHA-256 as published by tensorflow/datasets, tensorflow_datasets/url_checksums/mnist.txt at
# 31f1255e57e519a6c004f0b097a2f5cfcf0dde7d. The MD5 sums in pytorch/vision, torchvision/datasets/mnist.py, are
# f68b3c2dcbeaaa9fbdd348bbdeb94873 (images) and d53e105ee54ea40749a09fcbcd1e9432 (labels).
MNIST = Published(
    url="https://storage.googleapis.com/cvdf-datasets/mnist/",
    files={
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    },
    # Of the first 19,690 images, which is what the archive holds; the 60,000 of the public files have the sums above.
    content={"images and labels": "43eba3433e3bc106726d982df8e3f77c7aa122fd909fb59f8e6853ed24c35a27"},
    archive="mnist-train-19690.npz",
)
