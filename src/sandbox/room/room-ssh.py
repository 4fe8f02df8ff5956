#!/usr/bin/python3 -SE
# Stands in OpenClaw's `ssh` for the second room of an agent: `room-ssh.py [<option> ...] <host> <command>`. Passes its
# own standard input, output and error, and the command, to the program that listens in the room, and ends with the exit
# code of the command. The room's agent owns the folder of the socket: a link there is not followed.
import os
import socket
import stat
import sys

command = sys.argv[-1]
# OpenClaw deletes the workspace of an SSH host that was not used for a while. This one is the agent's own.
if "openclaw-sandbox-remove" in command:
    sys.exit(0)
try:
    folder = os.path.join(os.path.dirname(os.environ["HOME"]), "room")
    found = os.open(os.path.join(folder, "exec.sock"), os.O_PATH | os.O_NOFOLLOW)
    if not stat.S_ISSOCK(os.fstat(found).st_mode):
        raise OSError("no socket is there")
    connection = socket.socket(socket.AF_UNIX)
    connection.connect("/proc/self/fd/%d" % found)
    data = command.encode("utf-8", "surrogateescape")
    socket.send_fds(connection, [len(data).to_bytes(4, "big")], [0, 1, 2])
    connection.sendall(data)
    answer = connection.makefile("rb").readline(16)
    sys.exit(int(answer) & 255 if answer else 255)
except (OSError, KeyError, ValueError) as error:
    print("the room of the agent's tools cannot be reached: %s" % error, file=sys.stderr)
    sys.exit(255)
