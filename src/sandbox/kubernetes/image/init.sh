#!/bin/sh
# init.sh <socket> <program> [<argument> ...]: the first process of an agent whose tools have a room: it starts the program,
# reaps the processes that have lost their parents, and ends as the program does. Then it removes the socket of the room,
# for which the room waits: until then the tools of the turns that are being ended work.
socket=$1
shift
"$@" &
trap 'kill -TERM $!' TERM
while :; do
  wait $!
  code=$?
  # A signal ends the wait, too.
  kill -0 $! 2>/dev/null || break
done
rm -f "$socket"
exit $code
