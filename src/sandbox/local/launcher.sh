# Runs a program as the leader of its own session and keeps record of it, whatever becomes of who started this:
#   launcher.sh <record folder> <working folder> <program> <argument>...
# `supervisor` and `gateway` in the record folder hold the pid and the kernel's start time of this process and of the
# program, the latter written before the program begins. `exit` holds its exit code. At most one runs for a folder.
{ # read whole before it runs: the file may be replaced by an upgrade meanwhile
  records=$1
  folder=$2
  shift 2
  umask 077

  identify() {
    read -r line </proc/self/stat
    set -- $line
    echo "$1 ${22}"
  }

  exec 9>>"$records/lock"
  flock --nonblock 9 || exit 75
  rm -f "$records/gateway" "$records/exit"
  identify >"$records/supervisor"
  (
    identify >"$records/gateway"
    cd "$folder" && exec setsid "$@"
  ) 9>&- &
  wait $!
  echo $? >"$records/exit"
  exit 0
}
