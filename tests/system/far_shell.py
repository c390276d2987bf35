"""What ssh does, over plain tcp, for tests in namespaces that have no sshd: a link that a cut silences.

    far_shell.py serve ADDRESS        runs what comes, until it is killed; prints "ready"
    far_shell.py HOST COMMAND...      runs the command there; stdin, stdout and stderr are passed on
"""
import json
import os
import select
import socket
import subprocess
import sys

PORT = 2222


def answer(connection):
    words = json.loads(connection.makefile("r", buffering=1, newline="\n").readline())
    fd = connection.fileno()
    subprocess.Popen(words, stdin=fd, stdout=fd, stderr=fd).wait()


def serve(address):
    with socket.create_server((address, PORT)) as listener:
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                answer(connection)
                os._exit(0)
            connection.close()


def go(host, *words):
    with socket.create_connection((host, PORT)) as connection:
        connection.sendall(json.dumps(words).encode() + b"\n")
        pairs = {0: connection.fileno(), connection.fileno(): 1}
        while pairs:
            for fd in select.select(list(pairs), [], [])[0]:
                data = os.read(fd, 1 << 16)
                if not data:
                    return
                view = memoryview(data)
                while view:
                    view = view[os.write(pairs[fd], view):]


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "serve" else go(*sys.argv[1:])
