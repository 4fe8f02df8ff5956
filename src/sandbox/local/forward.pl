# forward.pl <pid> <way in> <way out>…: forwards connections between the jail, in whose network namespace it runs, and
# unix sockets of the host. Ends with the child <pid>, and with its exit code.
#
# A way in is <unix socket>=<port>: it listens at the socket, and connects to the port. A way out is
# <port>=<name>=<unix socket>: it listens at the port, connects to the socket, and sends the line <name> first. Its path
# begins at the working folder, which the user of the sandbox could not enter. A connection that finds nobody at the
# socket waits there: the process of Chowder that served it has ended, and the next one replaces the socket.
use strict;
use warnings;
use Socket;
use Fcntl;
use Errno;

my ($child, $in, @out) = @ARGV;
my $no_hang = 1;     # WNOHANG; the module POSIX takes a MB
my $most = 250;    # connections of each listener; more wait
my $rate = 100;    # new connections of each way out in a second; more wait
my $piece = 64 * 1024;
my $next_s = 60;   # the longest wait for the next process of Chowder, which takes some 10 s to start
my $retry_s = 10;  # the end of the child interrupts the wait, unless it comes just before

my %listeners;     # by file descriptor: { socket, target, line, open, second, begun }
my @waiting;       # connections that wait for a service: { socket, listener, until }
my $tried = 0;     # the second of the last attempt to connect them
my %ends;          # by file descriptor: { socket, peer, buffer, read, shut, listener }

sub unblocked {
  my ($socket) = @_;
  my $flags = fcntl $socket, F_GETFL, 0;
  fcntl $socket, F_SETFL, $flags | O_NONBLOCK or die "fcntl: $!";
  return $socket;
}

sub opened {
  my ($family) = @_;
  socket my $socket, $family, SOCK_STREAM, 0 or return;
  return unblocked($socket);
}

sub listening {
  my ($family, $address, $target, $line) = @_;
  my $socket = opened($family) or die "socket: $!";
  setsockopt $socket, SOL_SOCKET, SO_REUSEADDR, 1 if $family == AF_INET;
  bind $socket, $address or die "bind: $!";
  listen $socket, 511 or die "listen: $!";
  $listeners{fileno $socket} = { socket => $socket, target => $target, line => $line, open => 0, second => 0 };
}

my $loopback = sub { [AF_INET, pack_sockaddr_in($_[0], INADDR_LOOPBACK)] };
my ($path, $to) = $in =~ /^(.*)=(\d+)$/ or die 'no way in';
unlink $path;
umask 0177;
listening(AF_UNIX, pack_sockaddr_un($path), $loopback->($to), '');
for (@out) {
  my ($port, $name, $path) = split /=/, $_, 3;
  listening(@{$loopback->($port)}, [AF_UNIX, pack_sockaddr_un($path)], "$name\n");
}

sub dropped {
  my ($end) = @_;
  my @both = ($end, $end->{peer});
  $end->{listener}{open} -= 1;
  for my $each (@both) {
    delete $ends{fileno $each->{socket}};
    close $each->{socket};
    delete $each->{peer};
  }
}

sub connected {
  my ($listener, $socket) = @_;
  my ($family, $address) = @{$listener->{target}};
  my $other = opened($family) or return 0;
  connect $other, $address or $!{EINPROGRESS} or return 0;
  my $near = { socket => $socket, buffer => '', read => 1, listener => $listener };
  my $far = { socket => $other, buffer => $listener->{line}, read => 1, listener => $listener, peer => $near };
  $near->{peer} = $far;
  $ends{fileno $_->{socket}} = $_ for $near, $far;
  return 1;
}

sub accepted {
  my ($listener) = @_;
  accept my $socket, $listener->{socket} or return;
  unblocked($socket);
  my $is_way_out = $listener->{line} ne '';
  $listener->{begun} += 1 if $is_way_out;
  if (!connected($listener, $socket)) {
    return unless $is_way_out;
    push @waiting, { socket => $socket, listener => $listener, until => time + $next_s };
  }
  $listener->{open} += 1;
}

sub waited {
  my @all = @waiting;
  @waiting = ();
  for (@all) {
    next if connected($_->{listener}, $_->{socket});
    if (time < $_->{until}) { push @waiting, $_ }
    else { $_->{listener}{open} -= 1 }
  }
}

# What is read waits in the buffer of the other end.
sub received {
  my ($end) = @_;
  my $count = sysread $end->{socket}, $end->{peer}{buffer}, $piece, length $end->{peer}{buffer};
  if (!defined $count) {
    dropped($end) unless $!{EAGAIN} || $!{EINTR};
  } elsif ($count == 0) {
    $end->{read} = 0;
    flushed($end->{peer});
  } else {
    flushed($end->{peer});
  }
}

sub flushed {
  my ($end) = @_;
  if (length $end->{buffer}) {
    my $count = syswrite $end->{socket}, $end->{buffer};
    return $!{EAGAIN} || $!{EINTR} ? () : dropped($end) unless defined $count;
    substr $end->{buffer}, 0, $count, '';
    return if length $end->{buffer};
  }
  return if $end->{peer}{read} || $end->{shut};
  shutdown $end->{socket}, 1;
  $end->{shut} = 1;
  dropped($end) if $end->{peer}{shut};
}

$SIG{PIPE} = 'IGNORE';
$SIG{CHLD} = sub { };
for (;;) {
  if (waitpid($child, $no_hang) == $child) { exit($? & 127 ? 128 + ($? & 127) : $? >> 8) }
  my ($reads, $writes) = ('', '');
  my ($second, $wait_s) = (time, @waiting ? 1 : $retry_s);
  if ($second != $tried) { $tried = $second; waited() }
  for my $fd (keys %listeners) {
    my $listener = $listeners{$fd};
    @$listener{'second', 'begun'} = ($second, 0) if $listener->{second} != $second;
    if ($listener->{begun} >= $rate) { $wait_s = 0.1 }
    elsif ($listener->{open} < $most) { vec($reads, $fd, 1) = 1 }
  }
  while (my ($fd, $end) = each %ends) {
    vec($reads, $fd, 1) = 1 if $end->{read} && !length $end->{peer}{buffer};
    vec($writes, $fd, 1) = 1 if length $end->{buffer};
  }
  my $found = select $reads, $writes, undef, $wait_s;
  next if $found <= 0;
  for my $fd (keys %ends) {
    flushed($ends{$fd}) if $ends{$fd} && vec $writes, $fd, 1;
    received($ends{$fd}) if $ends{$fd} && vec $reads, $fd, 1;
  }
  for my $fd (keys %listeners) { accepted($listeners{$fd}) if vec $reads, $fd, 1 }
}
