"""A `python` whose processes start from one that has imported torch, which takes seconds.

A job calls a small script. It hands its words, environment, folder and files to a server, which
forks the process that runs them. Signals are passed on, and the process is killed if the script is.
All else is as with a real interpreter: SLURM, submitit, and every step of the run.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRELOADED = ("stabkit.train.loop", "stabkit.sweep.job", "torch._dynamo", "submitit.core._submit")
SCRIPT = """\
#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
asked = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
server.sendall(asked)
pid = int.from_bytes(server.recv(4), "big")
for number in {numbers}:
    signal.signal(number, lambda number, frame: os.kill(pid, number))
code = int.from_bytes(server.recv(4), "big", signed=True)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)


@contextmanager
def preloaded_python(folder: Path) -> Iterator[str]:
    """Give the path of the script. It lies in `folder`, whose path must be short."""
    path, script = folder / "preloaded", folder / "preloaded-python"
    numbers = tuple(map(int, PASSED_ON))
    script.write_text(SCRIPT.format(python=sys.executable, path=str(path), numbers=numbers))
    script.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.slurm.preloaded_python", str(path)],
        stdin=subprocess.PIPE,  # it ends when this is closed, also by the death of the test
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == b"ready\n"
        yield str(script)
    finally:
        server.kill()
        server.communicate()


def _serve(path: str) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # what is shared stays shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers end by themselves
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _keep(client)
                return
            client.close()


def _keep(client: socket.socket) -> None:
    """Fork the process, and wait until it ends or the script does. Returns in the process alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(client, 4, 3)
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += client.recv(1 << 16)
    pid = os.fork()
    if pid == 0:
        client.close()
        _become(files, *json.loads(asked))
        return
    client.sendall(pid.to_bytes(4, "big"))
    ended = os.pidfd_open(pid)
    readable, _, _ = select.select([client, ended], [], [])
    if ended not in readable:  # the script was killed
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        client.sendall(code.to_bytes(4, "big", signed=True))
    finally:
        os._exit(0)


def _become(files: list[int], words: list[str], environment: dict[str, str], folder: str) -> None:
    """Run `-u -m MODULE ...` as the interpreter would. The process ends when this returns."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    assert words[:2] == ["-u", "-m"], words
    sys.argv = [words[2], *words[3:]]
    runpy.run_module(words[2], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
