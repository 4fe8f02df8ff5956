#!/bin/sh
# room.sh <megabytes of a file> <open files> <socket> <folder>: becomes the first program of the room of an agent's
# tools, which has the network of its pod, and reaches none.
umask 077
[ "$1" -eq 0 ] || ulimit -f $(($1 * 2048)) # blocks of 512 bytes
ulimit -n "$2"
shift 2
programs=${0%/*}/../..
exec "$programs/container/image/user.sh" perl "$programs/socket-filter.pl" 1 "$programs/room/room-server.py" "$@" --until-removed
