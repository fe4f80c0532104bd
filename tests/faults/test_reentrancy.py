"""Solves inside of solves, in many threads at a time, and interrupted at any line: each is as if it were alone."""

import signal
import threading
import time

import numpy as np
import pytest
from interrupts import InterruptAt, spread
from world import undisturbed

import implicitgrad as ig
from implicitgrad.testing import make_problem

PROBLEM = make_problem("symmetric contraction", 8, 1)
MATRIX, G = PROBLEM.matrix, PROBLEM.rhs


def operator(product=lambda u: u @ MATRIX):
    return ig.VJPOperator(product, 8, symmetric=True)


@pytest.mark.fault(79)
def test_a_product_may_solve_with_the_solver_that_asks_for_it(row):
    """J u = inner^-1 u, each product a solve by the very object that runs the outer one: J = (2 I - M / 2)^-1."""
    inner = ig.VJPOperator(lambda u: -u + u @ MATRIX / 2, 8, symmetric=True)  # I - it is 2 I - M / 2
    tight = row.set(rtol=1e-11) if row.name not in ("Neumann", "Richardson") else ig.GMRES(rtol=1e-11)

    def vjp(u):
        return ig.adjoint_solve(inner, u, solver=tight).x

    J = operator(vjp)
    with undisturbed(G, J):
        solution = ig.adjoint_solve(J, G, solver=row.solver)
    dense = np.linalg.inv(2 * np.eye(8) - MATRIX / 2)
    expected = np.linalg.solve(np.eye(8) - dense, G)
    assert solution.converged
    assert np.linalg.norm(solution.x - expected) <= 1e-7 * np.linalg.norm(expected)


@pytest.mark.fault(79)
def test_a_product_may_solve_the_very_system_it_belongs_to(row):
    """The same operator, solver and right-hand side, one level down: the outer solve takes no note of it."""
    alone, depth = ig.adjoint_solve(operator(), G, solver=row.solver), 0

    def vjp(u):
        nonlocal depth
        if depth == 0:
            depth += 1
            assert np.array_equal(ig.adjoint_solve(J, G, solver=row.solver).x, alone.x)
            depth -= 1
        return u @ MATRIX

    J = operator(vjp)
    solution = ig.adjoint_solve(J, G, solver=row.solver)
    assert np.array_equal(solution.x, alone.x)
    assert (solution.num_matvecs, solution.num_rmatvecs) == (alone.num_matvecs, alone.num_rmatvecs)


def test_a_product_that_solves_itself_without_end_is_a_recursion_error(row):
    J = operator(lambda u: ig.adjoint_solve(J, u, solver=row.solver).x)
    with undisturbed(G, J), pytest.raises(RecursionError):
        ig.adjoint_solve(J, G, solver=row.solver)
    assert ig.adjoint_solve(operator(), G, solver=row.solver).converged


@pytest.mark.fault(57, 79)
def test_threads_share_an_operator_and_a_solver_and_get_their_own_answers(row):
    """Eight threads at a time on one operator, each with a right-hand side of its own; a ninth fails all the while."""
    rhs = [np.roll(G, i) for i in range(8)]
    J, alone, got = operator(), [], [[] for _ in rhs]
    alone = [ig.adjoint_solve(J, g, solver=row.solver) for g in rhs]
    start, failures = threading.Barrier(9), []

    def work(i):
        start.wait()
        for _ in range(6):
            got[i].append(ig.adjoint_solve(J, rhs[i], solver=row.solver))

    def fail():
        bad = operator(lambda u: {}["missing"])
        start.wait()
        for _ in range(6):
            try:
                ig.adjoint_solve(bad, G, solver=row.solver)
            except KeyError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)] + [threading.Thread(target=fail)]
    with undisturbed(J):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(failures) == 6
    for solutions, expected in zip(got, alone, strict=True):
        assert len(solutions) == 6
        assert all(np.array_equal(s.x, expected.x) for s in solutions)
        assert all(s.num_matvecs == expected.num_matvecs for s in solutions)


@pytest.fixture
def ctrl_c():
    """Return a function that sends SIGINT to the main thread, soon; the handler is Python's own while it is in use."""
    if not hasattr(signal, "pthread_kill"):
        pytest.skip("signals to a thread are POSIX")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    timers = []

    def soon():
        timers.append(threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGINT)))
        timers[-1].start()

    yield soon
    for timer in timers:
        timer.join()
    signal.signal(signal.SIGINT, before)


@pytest.mark.fault(58)
def test_ctrl_c_ends_a_product_that_sleeps(row, ctrl_c):
    calls = 0

    def vjp(u):
        nonlocal calls
        calls += 1
        if calls == 2:
            ctrl_c()
            time.sleep(30)
        return u @ MATRIX

    J, began = operator(vjp), time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        ig.adjoint_solve(J, G, solver=row.solver)
    assert time.perf_counter() - began < 20
    assert calls == 2
    assert ig.adjoint_solve(J, G, solver=row.solver).converged


@pytest.mark.fault(58)
def test_an_interrupt_at_any_line_of_the_package_changes_nothing(row):
    """Thirty lines of a solve, evenly spread; the same exception comes out, and the next solve has the same bits."""
    J, x0 = operator(), np.ones(8)
    expected = ig.adjoint_solve(J, G, solver=row.solver, x0=x0).x
    with InterruptAt() as count:
        ig.adjoint_solve(J, G, solver=row.solver, x0=x0)
    assert count.lines > 100
    for number in spread(count.lines, 30):
        with undisturbed(G, x0, J), pytest.raises(KeyboardInterrupt) as caught, InterruptAt(number) as interrupt:
            ig.adjoint_solve(J, G, solver=row.solver, x0=x0)
        assert caught.value is interrupt.error
        assert np.array_equal(ig.adjoint_solve(J, G, solver=row.solver, x0=x0).x, expected)
