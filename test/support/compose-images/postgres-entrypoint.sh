#!/bin/sh
# What the official image's entrypoint does with an empty folder and the variables that docker-compose.yml sets.
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-local=trust --auth-host=scram-sha-256
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  pg_ctl -w start -o "-c listen_addresses= -c unix_socket_directories=/tmp"
  createdb --host=/tmp --username="$POSTGRES_USER" "$POSTGRES_DB" 2>/dev/null || true
  pg_ctl -w stop
fi
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/run/postgresql
