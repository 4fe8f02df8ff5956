import { configPath } from '#openclaw/inside/launch.ts'

/** The `resources` of an agent that is attacked from; its processors are those of the default. */
export const attackerResources = { memory_mb: 3072, pids: 512, disk_mb: 1000 }

/** What an attack uses up. */
export type Exhausted =
  | 'processes'
  | 'memory'
  | 'processors'
  | 'open files'
  | 'disk'
  | 'output'
  | 'log'
  | 'watches'
  | 'connections'

/** An attack by commands of an agent that uses something up. */
export interface ExhaustingAttack {
  of: Exhausted
  name: string
  /** A command that asks for more until it is refused, and what it prints then. Null where nothing is refused. */
  refusal: { command: string; shown: RegExp } | null
  /** Goes on until the agent is stopped. */
  command: string
  /** Whether it reaches the gateway's own process, as only the commands of an agent with one room do. */
  isAtGateway?: true
}

const perl = (program: string, ...args: string[]) => ['perl', '-e', `'${program}'`, ...args].join(' ')
const eat = (megabytes: number, pauseSeconds: number) =>
  `for (1 .. ${megabytes / 50}) { push @a, "x" x 50e6; select undef, undef, undef, ${pauseSeconds} }`
const eatAll = 'push @a, "x" x 50e6 while @a < 1000'

const python = (program: string) => `python3 -c '${program.replaceAll("'", '"')}'`
/** The watches of epoll and the instances of inotify that the kernel allows a user. */
const takeWatches = python(`
import ctypes, os, select, time
libc = ctypes.CDLL(None, use_errno=True)
instances = 0
while libc.inotify_init() >= 0: instances += 1
print("inotify refused after", instances, os.strerror(ctypes.get_errno()), flush=True)
for process in range(40):
    if os.fork(): continue
    os.closerange(3, 1024)
    pipes = [fd for _ in range(240) for fd in os.pipe()]
    try:
        polls = [select.epoll() for _ in range(500)]
        for poll in polls:
            for fd in pipes: poll.register(fd)
    except OSError as error: print("epoll refused:", error.strerror, flush=True)
    time.sleep(600)
time.sleep(600)`)
/** Sends requests without a pause over many connections, to what the agent's gateway has as its model provider. */
const flood = (line: string) =>
  `at=$(sed -n 's|.*"baseUrl": *"http://\\([^/"]*\\)/.*|\\1|p' "$HOME/../${configPath}" | head -1); ` +
  perl(
    `use IO::Socket::INET;
     $SIG{PIPE} = "IGNORE";
     $at = shift;
     $requests = "${line} HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n" x 2000;
     fork for 1 .. 2;
     while (1) {
       @open = grep { $_ } map { IO::Socket::INET->new(PeerAddr => $at) } 1 .. 60;
       $_->blocking(0), syswrite $_, $requests for @open;
       select undef, undef, undef, 0.05;
     }`,
    '"$at"',
  )

/**
 * With `keepsMemory` the kernel keeps the limit of memory; else the attack is one that a small host survives. With
 * `hasOwnUser` the agents have a user each.
 */
export const exhaustingAttacks = ({
  keepsMemory,
  hasOwnUser,
}: {
  keepsMemory: boolean
  hasOwnUser: boolean
}): ExhaustingAttack[] => [
  ...(hasOwnUser
    ? [
        {
          of: 'watches' as const,
          name: 'all watches of the kernel',
          refusal: null, // its own gateway ends as well
          command: takeWatches,
        },
      ]
    : []),
  ...[
    { name: 'a flood of requests to the relay', command: flood('GET /relay') },
    { name: 'a flood of requests to the proxy', command: flood('GET http://x.example/') },
  ].map((attack) => ({ of: 'connections' as const, refusal: null, isAtGateway: true as const, ...attack })),
  {
    of: 'processes',
    name: 'a fork bomb',
    refusal: {
      command: perl(
        `while (@p < 5000) {
           $p = fork;
           if (!defined $p) { print "refused after " . @p . ": $!\\n"; last }
           if (!$p) { sleep 60; exit }
           push @p, $p;
         }
         kill 9, @p`,
      ),
      shown: /refused after \d+: [\w ]+/,
    },
    command: perl('$SIG{CHLD} = "IGNORE"; fork while 1'),
  },
  {
    of: 'memory',
    name: 'memory',
    refusal: keepsMemory ? { command: `${perl(eatAll)}; echo "ended with $?"`, shown: /ended with 137/ } : null,
    command: keepsMemory
      ? `while :; do ${perl(`${eat(2300, 0)} sleep 20; ${eatAll}`)}; done`
      : perl(`${eat(4000, 0.1)} sleep 600`),
  },
  {
    of: 'processors',
    name: 'all processors',
    refusal: null,
    command: `for i in 1 2 3 4; do ${perl('1 while 1')} & done; wait`,
  },
  {
    of: 'open files',
    name: 'open files',
    refusal: {
      command: `perl -MPOSIX -e '$n++ while defined POSIX::open("/dev/null"); print "refused after $n: $!\\n"'`,
      shown: /refused after \d+: [\w ]+/,
    },
    command: `perl -MPOSIX -e 'fork for 1 .. 8; 1 while defined POSIX::open("/dev/null"); sleep 600'`,
  },
  {
    of: 'disk',
    name: 'the disk',
    refusal: {
      command: `truncate -s ${attackerResources.disk_mb + 1}m big`,
      shown: /File (?:too large|size limit exceeded)/,
    },
    command: 'mkdir filled; while :; do head -c 300m /dev/zero >filled/0; sync filled/0; done',
  },
  {
    of: 'output',
    name: 'an endless output',
    refusal: null,
    command: 'yes an endless output',
  },
  {
    of: 'log',
    name: 'an endless log of the gateway',
    refusal: null,
    // By its path, or else, where that is another user's, as a copy of the descriptor.
    command: perl(
      `$SIG{XFSZ} = "IGNORE";
       $p = 0 + shift;
       open $log, ">>", "/proc/$p/fd/1" or open $log, ">>&=" . syscall(438, syscall(434, $p, 0), 1, 0) or die $!;
       $line = "an endless log " . "x" x 4000 . "\\n";
       syswrite $log, $line or select undef, undef, undef, 0.01 while 1`,
      '$PPID',
    ),
    isAtGateway: true,
  },
]

/** Takes the rest of the disk that an agent may use. */
export const fillDisk = 'mkdir -p filled; for i in 1 2 3; do head -c 400m /dev/zero >filled/$i; done'
/** Does so with files that it has deleted. */
export const fillDeleted = `mkdir -p filled; ${perl(
  `for $i (1 .. 3) {
     open my $file, ">", "filled/$i" or die $!;
     unlink "filled/$i";
     push @open, $file;
     print $file "x" x 1e6 for 1 .. 400;
   }
   sleep 600`,
)}`
/** Does so with files that are empty. */
export const fillWithFiles = `mkdir filled; ${perl('open $opened, ">", "filled/$_" for 1 .. shift', String(attackerResources.disk_mb * 300))}`

/** Programs that leave their session, their parent and their environment, and take no signal that can be refused. */
export const outlive = (word: string): string => {
  const deaf = perl('$SIG{$_} = "IGNORE" for qw(HUP INT TERM); fork and exit; sleep 9999', word)
  const leave = ['setsid', 'nohup setsid', 'env -i setsid', 'setsid env -i nohup']
  return `cd /; ${leave.map((how) => `${how} ${deaf} </dev/null >/dev/null 2>&1 & `).join('')}`
}
