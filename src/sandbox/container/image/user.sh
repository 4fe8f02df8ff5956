#!/bin/sh
# user.sh <program> [<argument> ...]: becomes a program of an agent. Its user id is its own and not known to the image:
# gives the user a name, and links the compile cache of Node.js under the name that Node.js looks up for this user.
run=/run/chowder
uid=$(id -u)
echo "agent:x:$uid:$(id -g)::/agent/home:/bin/bash" >$run/passwd
echo 'root:x:0:0:root:/root:/bin/bash' >>$run/passwd
mkdir -p $run/compile-cache
for cache in "${NODE_COMPILE_CACHE:-/none}-made"/*; do
  [ ! -d "$cache" ] || ln -sfn "$cache" "$run/compile-cache/${cache##*/}-$uid"
done
exec "$@"
