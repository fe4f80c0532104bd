"""What each method of ``associative_memory.py`` did: as one table, and as the sentences that the table supports."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hopfield import Hopfield
from hopfield_gradients import Method

SUCCESS = 0.5  # of the initial loss: the paper's criterion


@dataclass
class Run:
    """What one method did."""

    method: Method
    net: Hopfield
    first_loss: float = 0.0
    last_loss: float = 0.0
    halved: Hopfield | None = None  # the network when its loss had first halved, and the epoch
    halved_at: int = 0
    products: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory: int = 0
    errors: tuple[float, ...] = ()
    wrong: float = 0.0  # share of wrong pixels when recalling from the corrupted images

    @property
    def loss_left(self) -> float:
        return self.last_loss / self.first_loss

    @property
    def learned(self) -> bool:
        return self.loss_left < SUCCESS  # False for NaN


def table(runs: list[Run]) -> str:
    """Return the results, one line a method, below 100 columns."""
    rows = [
        ("", "final", "gradient", "error", "VJPs +", "peak", "", ""),
        ("method", "loss, %", "untrained", "halved", "JVPs", "memory", "seconds", "status of the solves"),
    ]
    for run in runs:
        rows.append(
            (
                run.method.name,
                f"{100 * run.loss_left:.1f}",
                *(f"{error:.1e}" for error in run.errors),
                f"{run.products:.1f}",
                f"{run.memory / 1e6:#.3g} MB",
                f"{run.seconds:.1f}",
                status_shares(run.statuses),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows[0] = (*rows[0][:3], "error".ljust(widths[3]), *rows[0][4:])  # "gradient error" stands above two columns
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
        lines.append("  ".join(cells).rstrip())
    lines.insert(2, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def status_shares(statuses: Counter[str]) -> str:
    """Return the two most frequent outcomes and their shares, such as ``MAX_ITERS 97%, CONVERGED 3%``."""
    total = statuses.total()
    if not total:
        return "not checked"
    shares = ((name, 100 * number / total) for name, number in statuses.most_common(2))
    return ", ".join(f"{name} {'<1' if share < 0.5 else f'{share:.0f}'}%" for name, share in shares)


def verdict(runs: list[Run]) -> str:
    """Return what the table shows, in sentences made of its numbers."""
    if not any(run.learned for run in runs):
        return f"No method came below {SUCCESS:.0%} of its first loss yet: give it more epochs."
    sentences = []
    for run in (run for run in runs if not run.learned):
        said = f", and its solves said so: {status_shares(run.statuses)}" if run.statuses else ""
        sentences.append(
            f"{run.method.name} did not learn: its loss came to {run.loss_left:.0%} of the first. "
            f"Its gradient was off by {run.errors[-1]:.0%}{said}."
        )
    learned = [run for run in runs if run.learned and run.errors[-1] == run.errors[-1]]
    if len(learned) > 1:
        best, worst = (choose(learned, key=lambda run: run.errors[-1]) for choose in (min, max))
        fewest = min(learned, key=lambda run: run.products)
        unseen = "" if worst.statuses else ", with nothing to tell it"
        sentences.append(
            f"Among those that learned, {best.method.name} had the most exact gradient ({best.errors[-1]:.1e}) and "
            f"{worst.method.name} the worst ({worst.errors[-1]:.1e}{unseen}); {fewest.method.name} took the fewest "
            f"products, {fewest.products:.1f} a gradient to the {max(run.products for run in learned):.1f} of "
            f"{max(learned, key=lambda run: run.products).method.name}."
        )
    return " ".join(sentences)
