"""Layers with one fault each: what people write, copy or get from a library. ``FAULTS`` says what has to be said of it.

All but the first take ``f(z, *args)`` and solve by plain iteration; the maps they are run on contract.
"""

import torch

import implicitgrad as ig
import implicitgrad.torch as igt


def tanh_map(z, W, x):
    return torch.tanh(W @ z + x)


def problem(n=8, dtype=torch.float64, norm=0.6):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(n, n, dtype=dtype, generator=generator)
    W = W * (norm / torch.linalg.matrix_norm(W, 2))
    return tanh_map, torch.zeros(n, dtype=dtype), W, torch.randn(n, dtype=dtype, generator=generator)


def iterated(f, z, *args, steps=400):
    with torch.no_grad():
        for _ in range(steps):
            z = f(z, *args)
    return z


def one_step(f, z, *args):
    """torchdeq's default, JFB: the last step alone has a graph."""
    return f(iterated(f, z, *args), *args)


def four_steps(f, z, *args):
    """The last four: Neumann's series with K = 3."""
    z = iterated(f, z, *args)
    for _ in range(4):
        z = f(z, *args)
    return z


def damped_step(f, z, *args):
    """A phantom gradient of one step with damping one half."""
    z = iterated(f, z, *args)
    return 0.5 * z + 0.5 * f(z, *args)


def unrolled_from_the_start(f, z, *args):
    """Back-propagation through time: right, but for the few steps that it has."""
    for _ in range(60):
        z = f(z, *args)
    return z


def never_attached(f, z, *args):
    return iterated(f, z, *args)


def attached(solve):
    """The recipe of the DEQ tutorials: one tracked step, whose hook replaces g by the solution of the adjoint."""

    def layer(f, z, *args):
        z = iterated(f, z, *args)
        point = z.clone().requires_grad_()
        image = f(point, *args)
        z = f(z, *args)
        z.register_hook(lambda g: solve(lambda u: torch.autograd.grad(image, point, u, retain_graph=True)[0], g))
        return z

    return layer


def _until(done):
    def solve(vjp, g):
        u = g
        for _ in range(500):
            u, before = g + vjp(u), u
            if done(u - before, g):
                break
        return u

    return solve


by_hook = attached(_until(lambda change, g: change.norm() <= 1e-11 * g.norm()))
absolute_tolerance = attached(_until(lambda change, g: change.norm() <= 1e-9))
without_the_first_term = attached(
    lambda vjp, g: vjp(_until(lambda change, g: change.norm() <= 1e-11 * g.norm())(vjp, g))
)
wrong_sign = attached(lambda vjp, g: -_until(lambda change, g: change.norm() <= 1e-11 * g.norm())(vjp, g))


def _rows(vjp, like):
    """Return J of real or complex ``like``: row i is the conjugate of J^H e_i."""
    units = torch.eye(like.numel(), dtype=like.dtype)
    return torch.stack([vjp(unit.reshape(like.shape)).reshape(-1) for unit in units]).conj()


def _solved(matrix, g):
    return torch.linalg.solve(torch.eye(g.numel(), dtype=g.dtype) - matrix, g.reshape(-1)).reshape(g.shape)


transpose_missing = attached(lambda vjp, g: _solved(_rows(vjp, g), g))
conjugate_missing = attached(lambda vjp, g: _solved(_rows(vjp, g).mT, g))
stopped_early = attached(_until(lambda change, g: change.norm() <= 1e-3 * g.norm()))


def block_diagonal(f, z, *args):
    """TorchOpt's materialized Jacobian: each tensor of the state for itself."""
    a, b = iterated(f, z, *args)
    p, q = a.clone().requires_grad_(), b.clone().requires_grad_()
    image = f((p, q), *args)
    out = f((a, b), *args)
    for x, point, y in zip(out, (p, q), image, strict=True):
        vjp = lambda u, y=y, point=point: torch.autograd.grad(
            y, point, u, retain_graph=True, allow_unused=True, materialize_grads=True
        )[0]
        x.register_hook(lambda g, vjp=vjp: _solved(_rows(vjp, g).mT, g))
    return out


def detached_argument(f, z, W, x):
    return igt.fixed_point(f, z, W.detach(), x)


def half_detached(f, z, W, x):
    """Two uses of the layer, one of them without a graph: half of the gradient."""
    solved = igt.fixed_point(f, z, W, x)
    return 0.5 * (solved + solved.detach())


def start_attached(f, z, W, x):
    return igt.fixed_point(f, z, W, x) + 1e-3 * (z - z.detach())


def loose_forward(f, z, *args):
    return igt.implicit_gradient(f, iterated(f, z, *args, steps=5), *args, on_failure="return")


def wrong_state(f, z, *args):
    return iterated(f, z, *args), 17


def nan_gradient(f, z, W, x):
    return igt.fixed_point(f, z, W, x) + 0 * (W - W.detach()).sum().sqrt()


def constant_adjoint(f, z, *args):
    """Right to first order; the second derivative takes the adjoint and the point for constants."""
    z = iterated(f, z, *args)
    point = z.clone().requires_grad_()
    with torch.enable_grad():
        image = f(point, *args)
    vjp = lambda u: torch.autograd.grad(image, point, u, retain_graph=True)[0]
    solve = _until(lambda change, g: change.norm() <= 1e-11 * g.norm())
    step = f(z, *args)
    shift = step - step.detach()  # a tensor of its own: second derivatives of f do not meet its hook
    shift.register_hook(lambda g: solve(vjp, g.detach()))
    return z + shift


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shift, solve):
        ctx.solve = solve
        return torch.zeros_like(shift)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return ctx.solve(g), None


class _Refusing(_Once):
    @staticmethod
    def backward(ctx, g):
        if torch.is_grad_enabled():
            raise RuntimeError("this layer has first derivatives only")
        return ctx.solve(g), None


def _through(function):
    def layer(f, z, *args):
        z = iterated(f, z, *args)
        point = z.clone().requires_grad_()
        image = f(point, *args)
        vjp = lambda u: torch.autograd.grad(image, point, u, retain_graph=True)[0]
        solve = _until(lambda change, g: change.norm() <= 1e-11 * g.norm())
        return z + function.apply(f(z, *args), lambda g: solve(vjp, g))

    return layer


once_differentiable = _through(_Once)
refusing = _through(_Refusing)


def by_hand(f, z, W, x):
    """The exact adjoint of this package, through ``implicit_gradient``: nothing is wrong with it."""
    return igt.implicit_gradient(f, iterated(f, z, W, x), W, x, adjoint=ig.GMRES(rtol=1e-12))


# name -> (layer, words of the verdict)
FAULTS = {
    "one step": (one_step, r"this is the one-step gradient, adjoint u = g \(JFB\): the backward solve is missing"),
    "four steps": (four_steps, r"this is the Neumann series cut after K = 3 products"),
    "damped step": (damped_step, r"this is 0\.5 times the one-step gradient"),
    "never attached": (never_attached, r"the layer's output has no graph: nothing gets a gradient"),
    "transpose missing": (transpose_missing, r"the adjoint is solved with J, not with J\^T"),
    "one product too many": (without_the_first_term, r"J\^T u in the place of u: one product too many"),
    "sign": (wrong_sign, r"this is -1 times the right gradient"),
    "absolute tolerance": (
        absolute_tolerance,
        r"wrong for 2\*\*-23 times the loss, though right for the loss itself(.|\n)*Neumann series cut after K = \d"
        r"(.|\n)*look for an absolute tolerance",
    ),
    "stopped early": (stopped_early, r"this is the Neumann series cut after K = \d+ products"),
    "detached argument": (
        detached_argument,
        r"args\[0\], .*(.|\n)*right: args\[1\]\n  args\[0\]: this is no gradient at all",
    ),
    "half detached": (half_detached, r"this is 0\.5 times the right gradient"),
    "start attached": (
        start_attached,
        r"z0 gets a gradient of norm 1\.0e-03 for a cotangent of norm 1, expected 0 within",
    ),
    "loose forward": (loose_forward, r"no fixed point of f: norm\(f\(z\) - z\) = \d\.\de-0\d norm"),
    "wrong state": (wrong_state, r"the layer returned .* with leaves \[\(8,\), 'int'\], expected a state like z0"),
    "NaN": (nan_gradient, r"args\[0\], shape \(8, 8\): holds NaN or Inf"),
}
SECOND = {
    "by hook": (by_hook, r"2 of 2 second derivatives are wrong(.|\n)*off by 0?\.?\d.*(.|\n)*needs a graph of its own"),
    "constant adjoint": (
        constant_adjoint,
        r"args\[0\], args\[1\]: this is the derivative with the fixed point and the adjoint",
    ),
    "once differentiable": (
        once_differentiable,
        r"once_differentiable: backward\(\) raises here, but torch\.autograd\.grad steps around it without a word",
    ),
    "refusing": (refusing, r"a second one is refused: RuntimeError: this layer has first derivatives only"),
}
RIGHT = {"bptt": unrolled_from_the_start, "by hook": by_hook, "refusing": refusing, "by hand": by_hand}
