# socket-filter.pl <family>,... <program> [<argument> ...]: becomes a program that opens sockets of these address
# families alone, by their numbers in socket.h, and no ring of io_uring, which would open others. So do all programs that
# it starts. The room of a pod, whose containers share a network, gets AF_UNIX (1); a jail gets AF_INET (2), AF_INET6 (10)
# and AF_NETLINK (16) too, and not AF_VSOCK, which leads out of its network to the host. Programs of another
# architecture, such as 32 bits, do not run. A filter of seccomp(2): the layouts and numbers are those of
# linux/filter.h, linux/seccomp.h and linux/audit.h.
use strict;
use warnings;
use POSIX ();

my %processors = (
  x86_64  => { audit => 0xc000003e, prctl => 157, socket => 41 },
  aarch64 => { audit => 0xc00000b7, prctl => 167, socket => 198 },
);
my $machine = (POSIX::uname())[4];
my $own = $processors{$machine} or die "no numbers of system calls are known for $machine\n";
my @families = split /,/, shift @ARGV;
my $count = @families;
my ($load, $equal, $at_least, $return) = (0x20, 0x15, 0x35, 0x06);
my ($number_at, $processor_at, $family_at) = (0, 4, 16);
my ($io_uring_setup, $other_numbers) = (425, 0x40000000);
my ($refuse, $allow) = (0x00050000 | POSIX::EACCES(), 0x7fff0000);
my @filter = (
  [$load, 0, 0, $processor_at],
  [$equal, 0, $count + 5, $own->{audit}], # else refused
  [$load, 0, 0, $number_at],
  [$at_least, $count + 3, 0, $other_numbers],
  [$equal, $count + 2, 0, $io_uring_setup],
  [$equal, 0, $count + 2, $own->{socket}], # else allowed
  [$load, 0, 0, $family_at],
  (map { [$equal, $count - $_, 0, $families[$_]] } 0 .. $count - 1),
  [$return, 0, 0, $refuse],
  [$return, 0, 0, $allow],
);
my $instructions = join '', map { pack 'S C C L', @$_ } @filter;
my $program = pack 'S x![Q] P', scalar @filter, $instructions;
my ($set_no_new_privileges, $set_seccomp, $mode_filter) = (38, 22, 2);
syscall($own->{prctl}, $set_no_new_privileges, 1, 0, 0, 0) == 0 or die "no_new_privs: $!\n";
syscall($own->{prctl}, $set_seccomp, $mode_filter, $program) == 0 or die "seccomp: $!\n";
exec { $ARGV[0] } @ARGV or die "$ARGV[0]: $!\n";
