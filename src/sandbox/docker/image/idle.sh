#!/bin/sh
# idle.sh <seconds>: ends once nothing else has run in this container for so long. Before, it removes what was left of
# files whose writers were killed.
find /agent/uploads -type f -mmin +60 -delete
quiet=0
while [ "$quiet" -lt "$1" ]; do
  sleep 2
  set -- "$1" /proc/[0-9]*
  # The init process, this one, and the seconds.
  if [ "$#" -gt 3 ]; then quiet=0; else quiet=$((quiet + 2)); fi
done
