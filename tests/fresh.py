"""Processes that have imported torch and nothing else, for what is seen where OptiActs is imported first.

They are forked off one that waits, since importing torch takes longer than most of these tests do otherwise. What
differs from ``python -c``: torch was imported before the environment and ``sys.path`` were the test's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
_waiting: subprocess.Popen[str] | None = None


def run(
    code: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, ...)``."""
    global _waiting
    server, _waiting = _waiting or _started(), None  # a test that is interrupted leaves a server to nobody
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        environment = dict(os.environ if env is None else env)
        asked = code, arguments, environment, str(cwd or Path.cwd()), str(out), str(err)
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code_of_exit = int(server.stdout.readline())
        done = subprocess.CompletedProcess(["-c", code, *arguments], code_of_exit, out.read_text(), err.read_text())
    _waiting = server
    if check and done.returncode:
        raise AssertionError(f"exit code {done.returncode}: {done.stderr}")
    return done


def _started() -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "tests.fresh"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # it ends when its input does


def _serve() -> None:
    import torch  # noqa: F401, what all of them share

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(*json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(code: str, arguments: list[str], environment: dict[str, str], cwd: str, out: str, err: str) -> None:
    """Leaves by what ``code`` raises, or by ``SystemExit``: the interpreter ends as any other."""
    for number, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT),
        (2, err, os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(path, mode), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    sys.path[:1] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    main = types.ModuleType("__main__")
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.modules["__main__"] = main
    exec(compile(code, "<string>", "exec"), vars(main))
    sys.exit()


if __name__ == "__main__":
    _serve()
