# The stages of a jail, each of which becomes the next one, or starts it. Runs as `eval "$JAIL"`, with the stage as $1.
#
#   plugins <uid> <arguments of start>…   as root, in a mount namespace of its own
#   start <root> <releases> <node> <home> <way in> <ways out> <program>…
#                                         as the user of the sandbox
#   build <arguments of start>…           in the namespaces of the jail, with all capabilities there
#   enter <root> <home> <program>…        as the first process of its pid namespace
#   run <program>…                        the same process, without capabilities
#   room <root> <home>                    as the first process of the pid namespace of the second room
#
# With $ROOM_FOLDER the jail has a second room, which ends with it: namespaces of their own for the tools of the agent,
# with that folder of the home and the one of the socket, and without a network. $ROOM_SSH is the program that stands in
# for ssh, and $ROOM_SERVER the one in the room.
#
# Programs run under $SOCKET_FILTER, a program of Perl, with the address families $SOCKET_FAMILIES.
#
# With $JAIL_PROCESSES the jail has at most so many processes and threads.
#
# With a way in there is a forwarder, whose program is $FORWARDER; it ends with the jail, and the jail with it, and
# keeps the working folder that the first stage has. The file descriptors 3 and 4 are then the records of the program
# and of the first process: pid and start time, as the host sees them.
set -eu
umask 022
stage=$1
shift
namespaces='--user --map-current-user --keep-caps --mount --net --ipc --uts'
powerless='setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all --'

# show <path>…: shows files and folders of the host at their own paths, if they exist, also when links lead there.
show() {
  for path; do
    shift
    [ ! -e "$path" ] || set -- "$@" "$path"
  done
  [ $# -gt 0 ] || return 0
  reals=$(readlink -f "$@")
  while read -r real; do
    path=$1
    shift
    if [ "$real" != "$path" ] && [ ! -e "$root$path" ]; then
      [ -d "$root${path%/*}" ] || mkdir -p "$root${path%/*}"
      ln -s "$real" "$root$path"
    fi
    [ ! -e "$root$real" ] || continue # in /usr
    if [ -d "$real" ]; then
      mkdir -p "$root$real"
    else
      [ -d "$root${real%/*}" ] || mkdir -p "$root${real%/*}"
      : >"$root$real"
    fi
    mount --rbind "$real" "$root$real"
  done <<END
$reals
END
}

# restrict <folder>…: takes away what the mounts in the root need not allow: devices, programs that give rights, and
# writing but in these folders. What a mount has taken away is repeated: a user namespace cannot give it back.
restrict() {
  mounts=$(cat /proc/self/mountinfo)
  while read -r _ _ _ _ at has _; do
    case $at in *\\*) at=$(printf %b "$(printf %s "$at" | sed 's/\\/\\0/g')") ;; esac
    case $at in "$root"/*) ;; *) continue ;; esac
    options=ro,nosuid,nodev
    case ${at#"$root"} in
      /tmp | /run | /dev/shm | /dev/pts) continue ;; # made for the jail
      /dev/null | /dev/zero | /dev/full | /dev/random | /dev/urandom | /dev/tty) continue ;;
    esac
    for writable; do
      case $at in "$root$writable" | "$root$writable"/*) options=nosuid,nodev ;; esac
    done
    mount -o "remount,bind${has#r[wo]},$options" "$at"
  done <<END
$mounts
END
  [ -n "${options:-}" ] # else the list names the mounts otherwise
}

# private <path> <size> <mode>: an empty folder in memory.
private() {
  mount -t tmpfs -o "mode=$3,size=$2,nosuid,nodev" jail "$root$1"
}

# furnish <home>: an empty root, with the programs of the system and devices.
furnish() {
  mount -t tmpfs -o mode=0755,size=1m,nosuid,nodev jail "$root"
  mkdir -p "$root/proc" "$root/etc" "$root/.host" "$root/tmp" "$root/run" "$root/dev/shm" "$root/dev/pts"
  private /tmp 256m 1777
  private /run 16m 0755
  private /dev/shm 256m 1777
  mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,nosuid,noexec jail "$root/dev/pts"
  show /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  for stream in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${stream%:*}" "$root/dev/${stream#*:}"; done
  links=
  for path in /bin /sbin /lib /lib32 /lib64 /libx32; do
    if [ -L "$path" ]; then links="$links $path"; else show "$path"; fi
  done
  [ -z "$links" ] || cp -P $links "$root/"
  show /usr /etc/ssl /etc/pki /etc/ca-certificates /etc/alternatives /etc/ld.so.cache /etc/localtime
  uid=$(id -u)
  gid=$(id -g)
  echo "agent:x:$uid:$gid::$1:/bin/sh" >"$root/etc/passwd"
  echo "agent:x:$gid:" >"$root/etc/group"
  echo '127.0.0.1 localhost agent' >"$root/etc/hosts"
}

# move_in: makes the root the root of this process, read-only but for what is mounted in it.
move_in() {
  cd "$root"
  pivot_root . .host
  umount -n -l .host # without -n it asks /etc/fstab
  rmdir .host
  mount -o remount,bind,ro,nosuid,nodev /
}

# program <name> <text>: puts a program into the root.
program() {
  mkdir "$root/programs"
  printf '%s\n' "$2" >"$root/programs/$1"
  chmod 0555 "$root/programs/$1"
}

# share <folder of the home> <path>: shows a folder that no link leads to.
share() {
  [ "$(readlink -f "$home/$1")" = "$(readlink -f "$home")/$1" ]
  mkdir -p "$root$2"
  mount --bind "$home/$1" "$root$2"
}

identify() {
  read -r stat </proc/self/fd/8/self/stat
  set -- $stat
  echo "$1 ${22}"
}

case $stage in
plugins)
  uid=$1
  releases=$3
  shift
  # OpenClaw trusts a plugin whose files are its own user's or root's: those of root have no owner in the jail.
  mount --bind -o "X-mount.idmap=u:0:$uid:1 g:0:$uid:1" "$releases" "$releases"
  exec setpriv --reuid="$uid" --regid="$uid" --clear-groups -- /bin/sh -c 'eval "$JAIL"' jail start "$@"
  ;;
start)
  [ -n "$5" ] || exec 3>/dev/null 4>&3
  # Not before: the limit would be one of all processes of this user.
  exec unshare $namespaces -- ${JAIL_PROCESSES:+prlimit "--nproc=$JAIL_PROCESSES" --} \
    /bin/sh -c 'eval "$JAIL"' jail build "$@"
  ;;
build)
  # As the kernel lists it in mountinfo.
  root=$(readlink -f "$1") releases=$2 node=$3 home=$4 way_in=$5 ways_out=$6
  shift 6
  furnish "$home"
  show "$releases" "$node" "$home"
  # Node.js looks for its limit of memory there: else it collects no garbage before the kernel ends it.
  while IFS=: read -r _ controllers group; do
    [ "$group" != / ] || continue
    case ",$controllers," in *,memory,*) group=/memory$group ;; ,,) ;; *) continue ;; esac
    folder=/sys/fs/cgroup$group
    show "$folder/memory.max" "$folder/memory.high" "$folder/memory.limit_in_bytes" "$folder/memory.soft_limit_in_bytes"
  done </proc/self/cgroup
  restrict "$(readlink -f "$home")"
  perl -MSocket -e '
    socket my $socket, AF_INET, SOCK_DGRAM, 0 or die "socket: $!";
    my $request = pack "a16 s x22", "lo", 0x41; # up, running
    ioctl $socket, 0x8914, $request or die "lo: $!"; # SIOCSIFFLAGS'
  hostname agent 2>/dev/null || :
  if [ -n "${ROOM_FOLDER:-}" ]; then
    program room-ssh.py "$ROOM_SSH"
  fi
  echo 0 >/proc/sys/user/max_user_namespaces
  exec 8</proc
  set -- unshare --pid --fork --kill-child "--mount-proc=$root/proc" -- /bin/sh -c 'eval "$JAIL"' jail enter "$root" "$home" "$@"
  [ -n "$way_in" ] || exec "$@"
  if [ -n "${ROOM_FOLDER:-}" ]; then
    setpriv --pdeathsig KILL -- unshare --mount --net --ipc --uts --pid --fork --kill-child -- \
      /bin/sh -c 'eval "$JAIL"' jail room "$root" "$home" 3>&- 4>&- 8<&- &
  fi
  setpriv --pdeathsig KILL -- "$@" &
  exec $powerless perl -e 'eval $ENV{FORWARDER}; die $@' $! "$way_in" $ways_out 3>&- 4>&- 8<&-
  ;;
enter)
  root=$1 home=$2
  shift 2
  move_in
  cd "$home"
  exec $powerless /bin/sh -c 'eval "$JAIL"' jail run "$@"
  ;;
run)
  umask 077
  identify >&4
  (
    identify >&3
    exec perl -e 'eval $ENV{SOCKET_FILTER}; die $@' "$SOCKET_FAMILIES" setsid -- "$@" 3>&- 4>&- 8<&-
  ) &
  exec 3>&- 4>&- 8<&-
  set +e
  wait $!
  exit $?
  ;;
room)
  root=$1 home=$2
  # The root of the other room.
  umount -n -l "$root"
  furnish /tmp
  share "$ROOM_FOLDER" "/room/$ROOM_PLACE"
  share "$ROOM_SOCKETS" /run/room
  restrict "/room/$ROOM_PLACE" /run/room
  mount -t tmpfs -o ro,mode=0555,size=4k,nosuid,nodev,noexec room "$root/room/$ROOM_PLACE/$ROOM_HIDDEN"
  hostname room 2>/dev/null || :
  mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
  program room-server.py "$ROOM_SERVER"
  move_in
  # The first process of the room is none that the agent can end.
  exec $powerless perl -e 'eval $ENV{SOCKET_FILTER}; die $@' "$SOCKET_FAMILIES" env -i HOME=/tmp PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 /bin/sh -c '
    while :; do
      /programs/room-server.py "$1" "$2"
      sleep 0.2
    done' room /run/room/exec.sock "/room/$ROOM_PLACE"
  ;;
esac
