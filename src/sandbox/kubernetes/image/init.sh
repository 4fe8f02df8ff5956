#!/bin/sh
# init.sh <socket> <program> [<argument> ...]: the first process of an agent whose tools have a room. It starts the
# program, reaps the processes that have lost their parents, and ends as the program does. Before that it removes the
# socket of the room, for which the room waits: so the tools of the turns that are being ended work.
socket=$1
shift
# Before the program starts: the first process of a container ignores a signal that it has no trap for.
trap 'kill -TERM $!' TERM
"$@" &
while :; do
  wait $!
  code=$?
  # A signal ends the wait, too.
  kill -0 $! 2>/dev/null || break
done
rm -f "$socket"
exit $code
