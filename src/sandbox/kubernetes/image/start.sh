#!/bin/sh
# start.sh <megabytes of a file> <open files> <program> [<argument> ...]: becomes the first program of an agent, or of
# the pod of its files, with the folders of the volume. Kubernetes starts a container again that has ended. Chowder
# decides whether an agent is started again: what is started here a second time in a pod waits, until Chowder removes the
# pod.
umask 077
[ -d /agent/home ] || mkdir -p /agent/home
[ -d /agent/uploads ] || mkdir -p /agent/uploads
cd /agent/home || exit 1
[ "$1" -eq 0 ] || ulimit -f $(($1 * 2048)) # blocks of 512 bytes
ulimit -n "$2"
shift 2
if [ -e /run/chowder/started ]; then
  exec sleep infinity
fi
: >/run/chowder/started
# Kubernetes makes /tmp without a sticky bit, and OpenClaw refuses to unpack a skill below such a folder. It takes TMPDIR
# where /tmp/openclaw cannot be a folder.
: >/tmp/openclaw
# The output is data of a tenant and may hold secrets: it stays in the volume, out of the logs of the cluster.
exec "${0%/*}/../../container/image/user.sh" "$@" >>/agent/gateway.log 2>&1
