#!/bin/sh
# Makes the namespace of this overlay and its Secret `chowder`, in the cluster that kubectl reaches. A Secret that is
# there is never made again: with another key the stored secrets could not be read any more.
set -eu
cd "$(dirname "$0")"

random() { head -c 32 /dev/urandom | base64 | tr -d '\n'; }
password() { random | tr '+/' '-_' | tr -d =; } # as it may stand in a URL

kubectl apply -f namespace.yaml
found=$(kubectl get secret chowder --namespace chowder --ignore-not-found --output name)
if [ -n "$found" ]; then
  echo "the Secret chowder is there already"
  exit
fi
postgres=$(password)
redis=$(password)
# By the standard input: nothing of this is ever an argument of a program. One Secret: it is there whole, or not.
kubectl create --namespace chowder -f - <<END
apiVersion: v1
kind: Secret
metadata: { name: chowder }
stringData:
  secret-key: "$(random)"
  database-url: "postgres://chowder:$postgres@chowder-postgres:5432/chowder"
  redis-url: "redis://:$redis@chowder-redis:6379"
  postgres-password: "$postgres"
  redis-password: "$redis"
  # The queue must not be thrown away when memory is short, nor be lost with the process.
  redis.conf: |
    requirepass $redis
    dir /data
    appendonly yes
    maxmemory-policy noeviction
END
