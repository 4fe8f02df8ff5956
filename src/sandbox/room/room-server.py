#!/usr/bin/python3 -SE
# The first program of an agent's second room: `room-server.py <socket> <folder> [--until-removed]`. Runs the commands
# that come in on a unix socket by a shell in a folder, each on the three file descriptors that came with it. A command
# ends with its caller, and its caller with it. With --until-removed a SIGTERM ends it once somebody has removed the socket:
# where the room and the gateway get the signal at the same time, the gateway may still end its turns.
import os
import select
import signal
import socket
import subprocess
import sys

path, folder, *options = sys.argv[1:]
longest = 4 * 1024 * 1024  # bytes of a command
deadline = 30  # seconds that a command may take to come in


def serve(connection):
    connection.settimeout(deadline)
    head, files, _, _ = socket.recv_fds(connection, 4, 3)
    length = int.from_bytes(head, "big")
    if len(head) != 4 or len(files) != 3 or length > longest:
        return
    command = b""
    while len(command) < length:
        part = connection.recv(length - len(command))
        if not part:
            return
        command += part
    stdin, stdout, stderr = files
    child = subprocess.Popen(
        ["/bin/sh", "-c", command], stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True, cwd=folder
    )
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child.pid)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:  # the caller has gone
        os.killpg(child.pid, signal.SIGKILL)
    code = child.wait()
    connection.sendall(b"%d\n" % (code if code >= 0 else 128 - code))


os.umask(0o077)
# Bound under another name: a caller that finds the socket can connect.
new = path + ".new"
for old in (new, path):
    if os.path.lexists(old):
        os.unlink(old)
listener = socket.socket(socket.AF_UNIX)
listener.bind(new)
listener.listen(128)
os.rename(new, path)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no caller waits for the processes that serve
is_ending = False


def end(*_):
    global is_ending
    is_ending = True
    if not options:
        os._exit(0)


signal.signal(signal.SIGTERM, end)
# A signal does not end the wait for a caller.
listener.settimeout(0.5 if options else None)
while True:
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        if is_ending and not os.path.lexists(path):
            os._exit(0)
        continue
    if os.fork() > 0:
        connection.close()
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    listener.close()
    try:
        serve(connection)
    finally:
        os._exit(0)
