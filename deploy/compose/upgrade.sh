#!/bin/sh
# Replaces what runs by the version in this checkout, with the settings of now, the new API, workers and relay beside the old
# ones first: what is asked meanwhile is answered. Run it where docker-compose.yml is, as often as it takes: it may be ended at any point.
set -e

CHOWDER_COMMIT=$(git rev-parse HEAD 2>/dev/null || true)
export CHOWDER_COMMIT
docker compose build
image=$(docker image inspect --format '{{.Id}}' "$(docker compose config --images | grep '^chowder:' | head -n 1)")

made() { docker inspect --format '{{.Image}} {{index .Config.Labels "com.docker.compose.config-hash"}}' "$@"; }
# The containers of a service that have another image, or other settings.
old() {
  wanted="$image $(docker compose config --hash "$1" | cut -d ' ' -f 2)"
  for id in $(docker compose ps -aq "$1"); do
    if [ "$(made "$id")" != "$wanted" ]; then echo "$id"; fi
  done
}
# Runs that were ended have left several versions, none of them with more containers than were wanted.
replicas() {
  ids=$(docker compose ps -aq "$1")
  if [ -z "$ids" ]; then echo 1; else made $ids | sort | uniq -c | sort -n | tail -n 1 | awk '{ print $1 }'; fi
}
count() { old "$1" | wc -l; }

outdated=$(old api && old worker && old relay)
api=$(replicas api)
worker=$(replicas worker)
relay=$(replicas relay)
both_api=$((api + $(count api)))
both_worker=$((worker + $(count worker)))
both_relay=$((relay + $(count relay)))
# Taken away, they come with what needs them; what is made anew takes along all that depends on it. The old version goes on
# with the new schema.
docker compose rm --force --stop migrate docker-proxy
docker compose up -d --wait --no-recreate --scale api="$both_api" --scale worker="$both_worker" \
  --scale relay="$both_relay"
if [ -n "$outdated" ]; then
  # Each has the time to end what it is in the middle of.
  docker stop --time 180 $outdated >/dev/null
  docker rm $outdated >/dev/null
fi
docker compose up -d --wait --scale api="$api" --scale worker="$worker" --scale relay="$relay"
