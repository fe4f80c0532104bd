"""Solves in processes that fork, exit or die: the child of a process with threads, the end of the interpreter.

Each script runs in an interpreter of its own: it ends by itself, within a time, with the exit code that it should have.
"""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

LIMIT = 120  # seconds; a hang is what these tests are about

HEAD = """
    import atexit, os, signal, sys, threading, time
    import numpy as np
    import implicitgrad as ig

    M = np.diag(np.linspace(0.1, 0.9, 8))
    J = ig.VJPOperator(lambda u: u @ M, 8, symmetric=True)
    SOLVERS = [ig.Neumann(), ig.CG(), ig.MINRES(), ig.GMRES(), ig.BiCGSTAB(), ig.LSMR(), ig.Dense(), ig.Auto()]

    def solve():
        for solver in SOLVERS:
            x = ig.adjoint_solve(J, np.ones(8), solver=solver).x
            assert np.allclose(x, 1 / (1 - np.diag(M)), rtol=1e-6)
"""
TORCH = """
    import torch
    import implicitgrad.torch as igt

    def step():
        x = torch.ones(4, requires_grad=True)
        z = igt.fixed_point(lambda z, x: 0.5 * z + x, torch.zeros(4), x)
        z.sum().backward()
        assert torch.allclose(x.grad, torch.full((4,), 2.0), rtol=1e-3)
"""


def run(*parts, codes=(0,)):
    """Run a script; assert that its exit code is one of those, and 0 without complaint; return what it printed."""
    script = "\n".join(textwrap.dedent(part) for part in parts)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT)
    assert done.returncode in codes, done.stderr
    assert done.returncode or not done.stderr, done.stderr
    return done.stdout


FORK = """
    def work(action):
        for _ in range(10):
            action()

    def used_in_threads(action):
        threads = [threading.Thread(target=work, args=(action,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        return threads

    def forked(action):
        child = os.fork()
        if child == 0:
            try:
                action()
                os._exit(0)
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
        return child

    def check(action):
        action()  # torch imports parts of itself at first use; who forks during an import inherits its lock for ever
        threads = used_in_threads(action)
        during = forked(action)            # while the threads are at it
        for thread in threads:
            thread.join()
        for child in (during, forked(action)):
            assert os.waitpid(child, 0)[1] == 0
        action()                           # and the parent goes on
"""


@pytest.mark.fault(90)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_the_child_of_a_process_with_threads_can_solve():
    """Forked while four threads are solving, and after them."""
    run(HEAD, FORK, "import warnings; warnings.simplefilter('ignore', DeprecationWarning); check(solve); print('done')")


@pytest.mark.fault(90)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_the_child_of_a_process_with_threads_can_go_forward_and_backward():
    pytest.importorskip("torch")
    pytest.importorskip("optree")
    run(HEAD, TORCH, FORK, "import warnings; warnings.simplefilter('ignore', DeprecationWarning); check(step)")


ENDLESS = """
    begun = threading.Event()

    def endless(u):
        begun.set()
        time.sleep(0.001)
        return u[::-1]                     # a rotation by half a turn: Neumann goes on and on

    def solve_on():
        K = ig.VJPOperator(endless, 8)
        ig.adjoint_solve(K, np.arange(8.0), solver=ig.Neumann(max_iters=10**9), on_failure="return")
"""


@pytest.mark.fault(90)
def test_an_interpreter_may_exit_while_a_thread_solves():
    """A daemon thread in the middle of a solve: exit code 0, at once, and not a word."""
    out = run(
        HEAD,
        ENDLESS,
        """
        threading.Thread(target=solve_on, daemon=True).start()
        assert begun.wait(30)
        time.sleep(0.05)
        print("leaving")
    """,
    )
    assert out == "leaving\n"


@pytest.mark.fault(90)
def test_an_interpreter_may_exit_while_a_thread_looks_for_a_fixed_point():
    """It ends, and soon. Torch may abort then: so does a bare ``while True: z = 1 - z`` in a daemon thread."""
    pytest.importorskip("torch")
    pytest.importorskip("optree")
    run(
        HEAD,
        TORCH,
        """
        begun = threading.Event()

        def endless(z, x):
            begun.set()
            time.sleep(0.001)
            return x - z

        def work():
            x = torch.ones(4, requires_grad=True)
            igt.fixed_point(endless, torch.zeros(4), x, solver=igt.Picard(max_iters=10**9))

        threading.Thread(target=work, daemon=True).start()
        assert begun.wait(60)
        time.sleep(0.05)
    """,
        codes=(0, -signal.SIGABRT),
    )


@pytest.mark.fault(90)
def test_a_product_may_end_the_interpreter():
    """sys.exit in a product runs the exit handlers, in which a solve still works; its code is the process's."""
    out = run(
        HEAD,
        """
        def leave(u):
            sys.exit(7)

        atexit.register(lambda: (solve(), print("solved at exit")))
        ig.adjoint_solve(ig.VJPOperator(leave, 8), np.ones(8))
        print("not reached")
    """,
        codes=(7,),
    )
    assert out == "solved at exit\n"


@pytest.mark.fault(58, 90)
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_ends_a_script_in_the_middle_of_a_solve():
    """As from a terminal: KeyboardInterrupt, the exit handlers, and the exit code of a process that SIGINT ended."""
    out = run(
        HEAD,
        ENDLESS,
        """
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit.register(print, "exit handlers ran")
        threading.Thread(target=lambda: (begun.wait(), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()
        solve_on()
    """,
        codes=(-signal.SIGINT,),
    )
    assert out == "exit handlers ran\n"
