# launcher.sh <record folder> <working folder> <program> <argument>...: runs a program as the leader of its own session,
# and records it, also after the end of the process that has started this one. The files `supervisor` and `gateway` in
# the record folder hold the pid and the kernel's start time of this process and of the program; the latter is written
# before the program begins. `exit` holds the exit code. At most one launcher runs for a folder.
{ # the braces make the shell read all of this first: an upgrade may replace the file meanwhile
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
