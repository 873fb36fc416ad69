"""Run `python SCRIPT ...` in a process that is forked after the imports: seconds sooner.

    python tests/helpers/fork_server.py SOCKET SCRIPT ...

asks the server that listens at SOCKET (`run_command.start_fork_server`), which forks a process for
each call. Streams, folder, environment, signals and exit status are those of this process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress


def ask(path: str, command: list[str]) -> None:
    """Have the server run a command with this process's streams, and exit as it does."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        job = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(server, [json.dumps(job).encode() + b"\n"], [0, 1, 2])
        answers = server.makefile()
        process = int(answers.readline())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(process, number))
        status = int(answers.readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def serve(listener: socket.socket) -> list[str]:
    """Fork for each call, and return the command to be run, in a process of its own."""
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    listener.settimeout(2)
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            if os.getppid() != parent:  # the tests are over
                sys.exit()
            continue
        if not os.fork():
            break
        connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.setblocking(True)
    message, streams = b"", []
    while not message.endswith(b"\n"):
        chunk, more, *_ = socket.recv_fds(connection, 2**16, 3)
        message, streams = message + chunk, streams + more
    job = json.loads(message)
    if child := os.fork():
        for stream in streams:
            os.close(stream)
        with suppress(BrokenPipeError):  # who asked has been killed
            connection.sendall(b"%d\n" % child)
            while not (ended := os.waitpid(child, os.WNOHANG))[0]:
                if select.select([connection], [], [], 0.01)[0]:  # it says no more: its end
                    os.kill(child, signal.SIGKILL)
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(ended[1]))
        os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    connection.close()
    listener.close()
    sys.stdin, sys.stdout = open(0), open(1, "w")  # those there are know what they were opened on
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return job["command"]


def main() -> None:
    if sys.argv[1] != "--serve":
        ask(sys.argv[1], sys.argv[2:])
    import runpy

    sys.path[0] = os.path.dirname(sys.path[0])  # tests/
    import torch._dynamo  # noqa: F401 (which each process would import for its first optimizer)

    import minidpt
    from helpers import run_command  # noqa: F401 (torch and the package)

    minidpt.tokenize(["ox"])  # the vocabulary is read for the first text
    sys.argv = serve(socket.socket(fileno=int(sys.argv[2])))
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
