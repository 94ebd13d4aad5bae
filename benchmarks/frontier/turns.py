"""Contenders in processes of their own, so that no compiled code, cache or heap is shared, which take turns."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch._inductor.config

from benchmarks.frontier.contender import Contender, Found, Setting
from benchmarks.frontier.methods import Method
from benchmarks.frontier.models import Model

TOGETHER = 3  # steps between two of the base


class FailedError(RuntimeError):
    """A method did not run here."""


@dataclass(frozen=True)
class _Failure:
    """What a process says of an exception: its last words, and all of them."""

    reason: str
    traceback: str


class Remote:
    """A contender in a process of its own."""

    def __init__(self, model: Model, method: Method, setting: Setting) -> None:
        self.method = method
        context = multiprocessing.get_context("forkserver")  # whose server has torch imported, and no thread
        context.set_forkserver_preload([__name__])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, model, method, setting), daemon=True)
        self._process.start()
        theirs.close()

    def found(self, patience: float) -> Found:
        """What its first steps show; ``FailedError`` where they fail, or take more than so many seconds."""
        if not self._pipe.poll(patience):
            self.close()
            raise FailedError(f"not ready within {patience:.0f} s")
        return self._answer()

    def step(self) -> float:
        self._pipe.send("step")
        return self._answer()

    def close(self) -> None:
        self._process.terminate()
        self._process.join()
        self._pipe.close()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise FailedError("its process died") from None
        if isinstance(answer, _Failure):
            print(answer.traceback, flush=True)
            raise FailedError(answer.reason)
        return answer


def started(
    model: Model, chosen: Iterable[Method], setting: Setting, deadline: float
) -> list[tuple[Method, Remote | None, Found | FailedError]]:
    """Every method in its process, with what its first steps show, or why it does not run."""

    def start(method: Method) -> tuple[Method, Remote | None, Found | FailedError]:
        if time.monotonic() > deadline:
            return method, None, FailedError("left out: no time")
        remote = Remote(model, method, setting)
        begin = time.monotonic()
        try:
            found = remote.found(deadline - begin)
        except FailedError as failure:
            remote.close()
            return method, None, failure
        mib = f"held {found.held / 2**20:.1f} MiB, peak {found.peak / 2**20:.1f}"
        print(f"  {method.name}: {mib} ({time.monotonic() - begin:.0f} s)", flush=True)
        return method, remote, found

    at_once = 12 if setting.device == "cuda" else max(1, (os.cpu_count() or 1) // setting.threads)
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(start, chosen))


class Step(NamedTuple):
    """The seconds of a step, and those of the base's steps around it."""

    seconds: float
    beside: float


def measured(remotes: list[Remote], base: Method, seconds: float, least: int) -> dict[Method, list[Step]]:
    """Steps in turns A B C ... C B A, for so many seconds in all and ``least`` rounds.

    The base has a turn before every few of them and behind the last: a machine is slower in one minute than in the
    next, so what is compared must lie within seconds.
    """
    times: dict[Method, list[Step]] = {remote.method: [] for remote in remotes}
    own = next(remote for remote in remotes if remote.method == base)
    others = [remote for remote in remotes if remote is not own]
    end = time.monotonic() + seconds
    rounds = 0
    while rounds < least or time.monotonic() < end:
        turn = others[:: -1 if rounds % 2 else 1]
        before = own.step()
        for first in range(0, max(1, len(turn)), TOGETHER):
            found = [(remote.method, remote.step()) for remote in turn[first : first + TOGETHER]]
            after = own.step()
            times[base].append(Step(after, after))
            for method, took in found:
                times[method].append(Step(took, (before + after) / 2))
            before = after
        rounds += 1
    return times


def _serve(pipe: Connection, model: Model, method: Method, setting: Setting) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the profiler's notices about itself
    torch._inductor.config.compile_threads = 1  # no pool of processes for each
    try:
        contender = Contender(model, method, setting)
        pipe.send(contender.found())
        while pipe.recv():
            pipe.send(contender.step())
    except EOFError:
        pass
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        pipe.send(_Failure(reason, traceback.format_exc()))
