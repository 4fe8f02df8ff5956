#!/bin/sh
# fake-pod.sh <root> <volume> <programs> <release> <node>: the first process of a pod of the fake Kubernetes, in
# namespaces of its own: it builds what the pod sees of its image and its volume, then waits and reaps, as the pause
# program of Kubernetes does.
set -eu
root=$1 volume=$2 programs=$3 release=$4 node=$5
mount -t tmpfs -o mode=0755 pod "$root"
for folder in usr proc dev etc tmp run/chowder agent opt/chowder/programs opt/chowder/support .host; do
  mkdir -p "$root/$folder"
done
mount --rbind /usr "$root/usr"
for path in bin sbin lib lib32 lib64 libx32; do
  [ ! -L "/$path" ] || ln -s "$(readlink "/$path")" "$root/$path"
done
mount -t tmpfs -o mode=0755 programs "$root/usr/local/bin"
: >"$root/usr/local/bin/node"
mount --bind "$node" "$root/usr/local/bin/node"
for device in null zero full random urandom; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
mount --bind "$volume" "$root/agent"
mount --bind "$programs" "$root/opt/chowder/programs"
mount --bind "$release" "$root/opt/chowder/support"
mount -t tmpfs -o mode=0777 tmp "$root/tmp"
mount -t tmpfs -o mode=0777 run "$root/run/chowder"
mount -t proc proc "$root/proc"
perl -MSocket -e '
  socket my $socket, AF_INET, SOCK_DGRAM, 0 or die "socket: $!";
  my $request = pack "a16 s x22", "lo", 0x41; # up, running
  ioctl $socket, 0x8914, $request or die "lo: $!"; # SIOCSIFFLAGS'
cd "$root"
pivot_root . .host
umount -n -l .host
rmdir .host
mount -o remount,bind,ro /
exec perl -MPOSIX=:sys_wait_h -e '
  $SIG{CHLD} = sub { 1 while waitpid(-1, WNOHANG) > 0 };
  $SIG{TERM} = sub { exit 0 };
  $| = 1;
  print "ready\n";
  sleep 3600 while 1'
