"""The libraries: one module each, which hands a case's problem to every method of its library that fits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from benchmarks.peers.verdict import Answer

__all__ = ["LIBRARIES", "Library"]


@dataclass(frozen=True)
class Library:
    """A column of the table: what is imported, what its version is filed under, and why it may be missing."""

    title: str
    module: str
    distribution: str | None
    needs: tuple[str, ...] = ()
    absent: str = "not in this environment"

    @property
    def missing(self) -> str | None:
        """Why it cannot be run here, or None."""
        if self.distribution is None:
            return self.absent
        for name in (self.distribution, *self.needs):
            try:
                metadata.version(name)
            except metadata.PackageNotFoundError:
                return f"{name} is {self.absent}"
        return None

    @property
    def version(self) -> str:
        """The version that is installed, of the library and of what it stands on."""
        own = metadata.version(self.distribution or "")
        return f"{own} ({', '.join(f'{name} {metadata.version(name)}' for name in self.needs)})" if self.needs else own

    def methods(self, problem: Any) -> dict[str, Callable[[], Answer]]:
        """Return the library's methods for this problem, each ready to be called."""
        found: dict[str, Callable[[], Answer]] = import_module(f"benchmarks.peers.libraries.{self.module}").methods(
            problem
        )
        return found


LIBRARIES = {
    library.module: library
    for library in (
        Library("implicitgrad", "ours", "implicitgrad"),
        Library("SciPy", "with_scipy", "scipy"),
        Library("torchdeq", "with_torchdeq", "torchdeq", ("torch",)),
        Library("TorchOpt", "with_torchopt", "torchopt", ("torch",)),
        Library("torch.lobpcg", "with_torch", "torch"),
        Library("jaxopt", "with_jaxopt", "jaxopt", ("jax",)),
        Library("lineax", "with_lineax", "lineax", ("jax",)),
        Library("Optimistix", "with_optimistix", "optimistix", ("jax", "lineax")),
        Library("matfree", "with_matfree", "matfree", ("jax",)),
        Library("hypertorch", "with_hypertorch", None,
                absent="not on the package index (hypertorch and hypergrad there are other projects)"),
    )
}  # fmt: skip
