"""Processes that find their imports made: a server that has made them forks for each.

As a script, a process that takes the place of one: `python forking.py SOCKET CODE WORDS...` ends as
`python -c CODE WORDS...` does.
"""

import json
import os
import socket
import sys

# What a request's process inherits: streams, words, folder and environment of who asks. It says how
# that process has ended, and ends itself with its own input. A process of multiprocessing ends
# without taking all that was imported apart, which would take longer than most of what it does.
SERVER = """
import gc, json, multiprocessing, os, select, socket, sys
import {imports}

def start(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process

def serve(client):
    _, streams, *_ = socket.recv_fds(client, 1, 3)
    with client.makefile() as request:
        process = start(run, streams, *json.loads(request.readline()))
    process.join()
    client.sendall(b"%d" % process.exitcode)

def run(streams, code, words, folder, environment):
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 1 + max(streams))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = words
    exec(code, {{"__name__": "__main__"}})

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
gc.freeze()
print("ready", flush=True)
while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
    client, _ = listener.accept()
    start(serve, client)
    client.close()
"""


def run(server, code, words, folder, environment, streams):
    """Return how a process ends that runs this code: its status, or less a signal's number."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(server)
        socket.send_fds(asked, [b" "], streams)
        request = [code, words, folder, environment]
        asked.sendall(json.dumps(request).encode() + b"\n")
        return int(asked.recv(8))


if __name__ == "__main__":
    ended = run(*sys.argv[1:3], sys.argv[3:], os.getcwd(), dict(os.environ), [0, 1, 2])
    sys.exit(ended if ended >= 0 else 128 - ended)  # as a shell has it
