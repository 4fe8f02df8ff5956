# enter.sh <file>... -- <program> <argument>...: runs a program under the limits of a sandbox. Each file is the
# `cgroup.procs` of a control group, which this process enters. The size of a file is limited to $FILE_BLOCKS blocks of
# 512 bytes, and the open files of a process to $OPEN_FILES; no process dumps core, and when the host has no memory left
# the kernel ends this program, not the database.
for argument; do
  shift
  [ "$argument" = -- ] && break
  echo 0 >"$argument" || exit 1
done
echo 800 2>/dev/null >/proc/self/oom_score_adj
ulimit -c 0
[ -z "$OPEN_FILES" ] || ulimit -n "$OPEN_FILES" 2>/dev/null
[ -z "$FILE_BLOCKS" ] || ulimit -f "$FILE_BLOCKS"
unset FILE_BLOCKS OPEN_FILES
exec "$@"
