"""A few processes with a gloo group between them, started once and handed one function after the other.

A function that runs on ranks stands in the test file beside its test; the processes load it from there by path. It is
called with its rank first. What it returns or raises comes back; a rank that does not answer in time is killed with all
others, so no test hangs and none leaves a process behind.
"""

import importlib.util
import multiprocessing
import os
import sys
import time
import traceback
from datetime import timedelta
from functools import cache


class Pool:
    """``size`` processes of one group. ``limit`` is how many seconds a function may take."""

    def __init__(self, size, folder, timeout=20.0):
        context = _context()
        self.broken = False
        self.processes, self.pipes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, str(folder), timeout, theirs), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def answers(self, function, *args, limit=60.0):
        """Return ``(kind, value, seconds)`` of each rank, with kind "value", "error" or, if it ended, "gone"."""
        end = time.monotonic() + limit
        for pipe in self.pipes:
            pipe.send((function.__code__.co_filename, function.__name__, args))
        told = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(max(0.0, end - time.monotonic())):
                self.close()
                raise AssertionError(f"{function.__name__}: rank {rank} did not answer within {limit} s")
            try:
                told.append(pipe.recv())
            except EOFError:
                self.broken = True
                told.append(("gone", None, None))
        return told

    def run(self, function, *args, limit=60.0):
        """Return what each rank returned; raise where any of them raised."""
        told = self.answers(function, *args, limit=limit)
        wrong = [f"rank {rank}: {kind}\n{value}" for rank, (kind, value, _) in enumerate(told) if kind != "value"]
        if wrong:
            self.close()  # the ranks are out of step
            raise AssertionError("\n".join(wrong))
        return [value for _, value, _ in told]

    def close(self):
        """End the processes, now."""
        self.broken = True
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def _context():
    """Return how processes start: not by a fork of this one, which would inherit locks of torch's threads."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")  # a process without threads, which has imported torch for all
    context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "implicitgrad.torch", "pytest"])
    return context


def _serve(rank, size, folder, timeout, pipe):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    while True:
        try:
            path, name, args = pipe.recv()
        except EOFError:
            os._exit(0)
        start = time.monotonic()
        try:
            answer = ("value", getattr(_module(path), name)(rank, *args))
        except Exception as error:
            answer = ("error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        pipe.send((*answer, time.monotonic() - start))


@cache
def _module(path):
    spec = importlib.util.spec_from_file_location("on_ranks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
