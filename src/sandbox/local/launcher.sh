# launcher.sh <record folder> <working folder> <program> <argument>...: runs a program as the leader of its own session,
# and records it, also after the end of the process that has started this one. The files `supervisor` and `gateway` in
# the record folder hold the pid and the kernel's start time of this process and of the program; the latter is written
# before the program begins. `exit` holds the exit code. At most one launcher runs for a folder.
#
# Without a working folder the program builds a jail: it writes the record of what it runs there to its file descriptor
# 3, and that of the first process of the jail, the file `init`, to 4.
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
  rm -f "$records/gateway" "$records/init" "$records/exit"
  identify >"$records/supervisor"
  if [ -n "$folder" ]; then
    (
      identify >"$records/gateway"
      cd "$folder" && exec setsid "$@"
    ) 9>&- &
  else
    setsid "$@" 9>&- 3>"$records/gateway" 4>"$records/init" &
  fi
  wait $!
  code=$?
  [ -s "$records/gateway" ] || exit 1 # there is no jail
  echo $code >"$records/exit"
  exit 0
}
