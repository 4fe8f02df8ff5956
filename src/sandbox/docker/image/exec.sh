#!/bin/sh
# exec.sh <seconds> <program> [<argument> ...]: runs a program, and ends it at its deadline with exit code 137. Whatever
# else is in its process group by then, or when it has ended by itself, is killed.
seconds=$1
shift
exec 3<&0
/usr/bin/timeout -s KILL "$seconds" "$@" <&3 3<&- &
group=$!
exec <&- 3<&-
wait "$group" 2>/dev/null # it would say that the program was killed
code=$?
kill -s KILL -- "-$group" 2>/dev/null
exit "$code"
