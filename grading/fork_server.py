"""The process behind `grading.zygote`: it has PyTorch and the data, and forks the workers."""

import json
import os
import signal
import socket
import sys

from grading import worker


def serve(connection: socket.socket) -> None:
    """Answer requests until the socket closes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped at once
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 2)
        if not message:
            return
        child = os.fork()
        if child == 0:
            connection.close()
            os.setsid()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            worker.main(json.loads(message), *descriptors)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(str(child).encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
