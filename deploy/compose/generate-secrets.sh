#!/bin/sh
# Makes the secrets of docker-compose.yml that are missing, each in the folder of those who may read it, and what follows from
# them. A secret that is there is never made again, so that one that was put back from a backup holds; after a crash half-way
# the next run makes the rest.
set -e
cd /secrets

put() {
  cat >"$1.part"
  sync "$1.part"
  mv "$1.part" "$1"
}
keep() { [ -e "$1" ] || put "$1"; }
random() { head -c 32 /dev/urandom | base64 | tr -d '\n'; }
password() { random | tr '+/' '-_' | tr -d =; } # as it may stand in a URL

random | keep chowder/secret-key
password | keep postgres/password
password | keep redis/password
# printf is the shell's own: nothing of this is ever an argument of a program.
printf 'postgres://chowder:%s@postgres:5432/chowder' "$(cat postgres/password)" | put chowder/database-url
printf 'redis://:%s@redis:6379' "$(cat redis/password)" | put chowder/redis-url
# The queue must not be thrown away when memory is short, nor be lost with the process.
printf 'requirepass %s\ndir /data\nappendonly yes\nmaxmemory-policy noeviction\n' "$(cat redis/password)" | put redis/redis.conf
