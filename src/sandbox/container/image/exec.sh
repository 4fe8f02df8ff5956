#!/bin/sh
# exec.sh <seconds> <program> [<argument> ...]: runs a program, and kills it at its deadline, with exit code 137. When
# it has ended, every other process of its group is killed.
seconds=$1
shift
exec 3<&0
/usr/bin/timeout -s KILL "$seconds" "$@" <&3 3<&- &
group=$!
exec <&- 3<&-
wait "$group" 2>/dev/null # the shell would report that the program was killed
code=$?
kill -s KILL -- "-$group" 2>/dev/null
exit "$code"
