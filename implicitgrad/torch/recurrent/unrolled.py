"""Back-propagation through time and its truncations: run ``z <- f(z, *args)`` and differentiate the updates themselves.

With ``J_i`` the Jacobian of update ``i`` the gradient of a loss on the last state ``h^T`` is the sum over ``k = 0, 1,
...`` of ``g J_{T-1} ... J_{T-k} dF/dw`` (Liao et al. 2018, appendix, eq. 6): all ``T`` terms, the first ``K``, or a
random number of them with weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch

from implicitgrad.errors import SettingError, SettingTypeError
from implicitgrad.torch.layout import Layout
from implicitgrad.torch.recurrent.reweight import reweighted
from implicitgrad.torch.recurrent.truncation import PoissonTruncation, Truncation, UniformTruncation

__all__ = ["artbp", "bptt", "checked_steps", "tbptt", "updated_without_history"]

_NAMED: dict[str, Truncation] = {"uniform": UniformTruncation(), "poisson": PoissonTruncation()}


def bptt(f: Callable[..., Any], z0: Any, *args: Any, steps: int) -> Any:
    """Return the state after ``steps`` updates ``z <- f(z, *args)``, all of them differentiated.

    Parameters
    ----------
    f : callable or torch.nn.Module
        ``f(z, *args)`` returns a state like ``z``.
    z0 : tensor, or nested tuples, lists and dicts of tensors
        The first state. Unlike that of ``fixed_point`` it gets the gradient that the iteration gives it.
    *args
        Further arguments of ``f``; tensors in them, and tensors that ``f`` captures, get gradients.
    steps : int
        ``T``, at least 1.

    Returns
    -------
    tensor, or nested tensors
        ``h^T``, of the structure of ``z0``; not checked to be a fixed point.

    Raises
    ------
    SettingError, SettingTypeError
        ``steps`` is no number of updates.
    BackendError, ShapeError, DtypeError, DeviceError
        ``z0`` is no state, or ``f`` does not return one like it.

    Notes
    -----
    Time: ``T`` calls of ``f`` and ``T`` VJPs. Memory: the graphs of ``T`` updates, until the backward pass. Where the
    iteration converges, the gradient tends to that of ``fixed_point`` as ``T`` grows (proposition P1). Random numbers
    that ``f`` draws are new ones for each update.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    >>> z = igt.bptt(lambda z, w: w * z + 1, torch.zeros((), dtype=torch.float64), w, steps=60)
    >>> z.backward()
    >>> z.item(), w.grad.item()  # 1 / (1 - w) and 1 / (1 - w)^2
    (2.0, 4.0)
    """
    return _run("bptt", f, z0, args, checked_steps("bptt", "steps", steps, least=1))


def tbptt(f: Callable[..., Any], z0: Any, *args: Any, steps: int, truncate: int) -> Any:
    """Return the state after ``steps`` updates, the last ``truncate`` of them differentiated.

    Parameters
    ----------
    f, z0, *args, steps
        As for ``bptt``.
    truncate : int
        How many updates the gradient goes back through, ``1 .. steps``. 1 is the one-step gradient; ``steps`` is BPTT.

    Returns
    -------
    tensor, or nested tensors
        ``h^T``, the same to the bit for every ``truncate``.

    Raises
    ------
    As ``bptt``; ``SettingError`` if ``truncate`` exceeds ``steps``.

    Notes
    -----
    **Convention.** ``truncate=m`` keeps the ``m`` terms ``k = 0 .. m - 1``. At a fixed point that is the gradient of
    ``Neumann(max_iters=m - 1, rtol=0)``, which has as many terms and makes ``m - 1`` products (proposition P1). The
    appendix of the paper sums ``k = 0 .. K`` and calls it ``K``-step TBPTT: here ``truncate=K + 1``. Its reference code
    goes back through ``K`` updates: here ``truncate=K``. Memory: the graphs of ``truncate`` updates. ``z0`` has a
    gradient only where ``truncate == steps``.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    >>> z = igt.tbptt(lambda z, w: w * z + 1, torch.zeros((), dtype=torch.float64), w, steps=60, truncate=3)
    >>> z.backward()
    >>> w.grad.item()  # z (1 + w + w^2)
    3.5
    """
    steps = checked_steps("tbptt", "steps", steps, least=1)
    truncate = checked_steps("tbptt", "truncate", truncate, least=1)
    if truncate > steps:
        raise SettingError(
            f"tbptt: got truncate={truncate} with steps={steps}, expected at most as many updates as are made. "
            "For all of them write bptt."
        )
    return _run("tbptt", f, updated_without_history("tbptt", f, z0, args, steps - truncate), args, truncate)


def artbp(
    f: Callable[..., Any],
    z0: Any,
    *args: Any,
    steps: int,
    distribution: str | Truncation = "uniform",
    generator: torch.Generator | None = None,
) -> Any:
    """Return the state after ``steps`` updates with an unbiased, randomly truncated gradient.

    One truncation point is drawn for the pass; the last ``N`` updates are differentiated and term ``k`` is divided by
    ``P(N > k)``, so that the mean of the gradient is that of ``bptt``.

    Parameters
    ----------
    f, z0, *args, steps
        As for ``bptt``.
    distribution : {"uniform", "poisson"} or Truncation
        Of ``N`` on ``1 .. steps``. ``"poisson"`` is ``PoissonTruncation(rate=5)``. The weights are
        ``distribution.weights(steps)``.
    generator : torch.Generator, optional
        On the CPU; where ``N`` is drawn from. None (default): torch's own, which ``torch.manual_seed`` sets.

    Returns
    -------
    tensor, or nested tensors
        ``h^T``, the same to the bit for every draw.

    Raises
    ------
    As ``bptt``; ``SettingError`` for an unknown name of a distribution.

    Notes
    -----
    Anticipated reweighted truncated back-propagation (Tallec & Ollivier 2017, *Unbiasing truncated backpropagation
    through time*), with one cut instead of one chance at every step, as in the paper's appendix, section 3.3: the loss
    stands on the last state alone. Unbiased at every ``steps``, whether the iteration converges or not. The price is
    variance: the weights of far terms are large. Time and memory: those of ``tbptt`` with ``truncate=N``;
    ``(T + 1) / 2`` updates in the mean for the uniform distribution, about ``rate`` for the Poisson. All samples of a
    batch share the draw. For a fixed point ``RussianRoulette`` does the same to the Neumann series, at the fixed point,
    with a draw of its own for each sample.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    >>> _ = torch.manual_seed(0)
    >>> total = 0.0
    >>> for _ in range(2000):
    ...     z = igt.artbp(lambda z, w: w * z + 1, torch.zeros((), dtype=torch.float64), w, steps=8)
    ...     total += torch.autograd.grad(z, w)[0].item() / 2000
    >>> exact, = torch.autograd.grad(igt.bptt(lambda z, w: w * z + 1, torch.zeros(()).double(), w, steps=8), w)
    >>> abs(total - exact.item()) < 0.1
    True
    """
    steps = checked_steps("artbp", "steps", steps, least=1)
    if isinstance(distribution, str):
        if distribution not in _NAMED:
            raise SettingError(
                f"artbp: got distribution={distribution!r}, expected one of {sorted(_NAMED)} or a Truncation such as "
                "PoissonTruncation(rate=10)."
            )
        distribution = _NAMED[distribution]
    elif not isinstance(distribution, Truncation):
        raise SettingTypeError(
            f"artbp: got distribution={distribution!r}, expected one of {sorted(_NAMED)} or a Truncation such as "
            "PoissonTruncation(rate=10)."
        )
    kept = distribution.sample(steps, generator)
    z = updated_without_history("artbp", f, z0, args, steps - kept)
    return _run("artbp", f, z, args, kept, distribution.ratios(steps))


def checked_steps(name: str, setting: str, value: Any, least: int) -> int:
    """Return ``value`` if it is a number of updates, at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingTypeError(f"{name}: got {setting}={value!r}, expected a number of updates.")
    if value < least:
        raise SettingError(f"{name}: got {setting}={value}, expected at least {least}.")
    return value


def updated_without_history(name: str, f: Callable[..., Any], z: Any, args: tuple[Any, ...], steps: int) -> Any:
    """Return the state after ``steps`` updates, detached; ``z`` itself, with its history, where there are none."""
    if steps == 0:
        return z
    with torch.no_grad():
        z = _run(name, f, z, args, steps)
    return optree.tree_map(torch.Tensor.detach, z)


def _run(
    name: str, f: Callable[..., Any], z: Any, args: tuple[Any, ...], steps: int, ratios: list[float] | None = None
) -> Any:
    """Return the state after ``steps`` updates; ``ratios[k - 1]`` multiplies what goes back over the k-th last seam."""
    layout = Layout.of(name, z, 0)
    for left in range(steps, 0, -1):
        z = f(z, *args)
        layout.ravel_output(name, z)
        if ratios is not None and left > 1:
            factor = ratios[left - 2]  # left - 1 updates follow: a cotangent that comes here has passed them
            z = optree.tree_map(lambda leaf, factor=factor: reweighted(leaf, factor), z)
    return z
