import { secretsPath } from '#openclaw/inside/launch.ts'
import type { Endpoint } from '#sandbox/driver.ts'
import { type AttackedHost, allowed, echoGot, got } from './attacked-host.ts'

/** What an attack finds on the host of Chowder, and what it knows of the agent that it runs in. */
export interface Target {
  host: AttackedHost
  dataDir: string
  /** Ports of Chowder on 127.0.0.1. */
  chowder: { api: number; metrics: number }
  /** The socket of its PostgreSQL. */
  database: string
  /** Another agent: its files on this host, and how its gateway is reached from here. */
  other: { home: string; gateway: Endpoint }
  /** The socket of dockerd, where there is one. */
  dockerSocket: string | null
  /** What the gateway of the agent asks as its model provider, and a token of the right form that nobody has. */
  relay: { url: string; foreignToken: string }
}

export interface AgentAttack {
  name: string
  /** A command of the agent. It prints `got` when it has what it wants. */
  command: string
  /** A command on this host, by root, that prints `got`: what the attack wants is there. Null where nobody may have it. */
  twin: string | null
}

const tcp = (address: string, port: number, ask = '') =>
  `timeout 2 bash -c "exec 3<>/dev/tcp/${address}/${port}; printf '${ask}' >&3; head -c 2000 <&3"`
const curl = (url: string, ...options: string[]) => `curl -sgk -m 4 ${options.join(' ')} '${url}'`
const unix = (path: string) => `perl -MIO::Socket::UNIX -e 'print IO::Socket::UNIX->new(Peer => "${path}")->getline'`
/** Prints `got` if the output of a command has a word. */
const finds = (word: string, command: string) => `{ ${command}; } 2>/dev/null | grep -q '${word}' && ${echoGot}`
/** All at once. */
const together = (commands: readonly string[]) => `${commands.map((command) => `{ ${command}; } & `).join('')}wait`

const decimal = (address: string) => address.split('.').reduce((sum, part) => sum * 256 + Number(part), 0)
const parts = (address: string, form: (part: number) => string) => address.split('.').map(Number).map(form).join('.')
const hex = (part: number) => part.toString(16).padStart(2, '0')

/** The spellings of an address in a URL, and names that lead there. */
function spellings(address: string): Record<string, string> {
  const [a = 0, b = 0, c = 0, d = 0] = address.split('.').map(Number)
  return {
    'as it is': address,
    'as a number': `${decimal(address)}`,
    'in hexadecimal': `0x${decimal(address).toString(16)}`,
    'in octal': parts(address, (part) => `0${part.toString(8)}`),
    'in three parts': `${a}.${b}.${c * 256 + d}`,
    'in IPv6': `[::ffff:${address}]`,
    'in IPv6, in hexadecimal': `[::ffff:${hex(a)}${hex(b)}:${hex(c)}${hex(d)}]`,
  }
}

/** Attacks that want to read, to reach or to change something. Each takes a few seconds at most. */
export function reachingAttacks(target: Target): AgentAttack[] {
  const { host, dataDir, chowder, database, other, dockerSocket, relay } = target
  const { outside, ports, canary } = host
  const addresses = host.addresses()
  const same = (name: string, command: string): AgentAttack => ({ name, command, twin: command })
  const nobody = (name: string, command: string): AgentAttack => ({ name, command, twin: null })
  /** A service at all addresses of this host, directly and through the proxy. */
  const service = (name: string, word: string, port: number, ask: string): AgentAttack =>
    same(
      name,
      finds(
        word,
        together(addresses.flatMap((address) => [tcp(address, port, ask), curl(`http://${address}:${port}/healthz`)])),
      ),
    )
  const http = 'GET /healthz HTTP/1.0\\r\\n\\r\\n'
  const web = (url: string) => together([curl(url), curl(url, '--noproxy', "'*'")])
  const gatewayName = 'the gateway of another agent'
  const gatewayOf = (at: Endpoint): AgentAttack => {
    if (at.kind === 'unix')
      return same(gatewayName, finds('HTTP', curl('http://gateway/healthz', '-i', '--unix-socket', at.path)))
    if (at.host === '127.0.0.1') return service(gatewayName, 'HTTP', at.port, http)
    const ways = [tcp(at.host, at.port, http), curl(`http://${at.host}:${at.port}/healthz`)]
    return same(gatewayName, finds('HTTP', together(ways)))
  }
  const isCanary = `grep -q ${canary.word} /proc/${canary.pid}/cmdline`
  return [
    same('the passwords of the host', finds('^root:', 'cat /etc/shadow')),
    same('the data folder', `ls ${dataDir}/postgres && ${echoGot}`),
    same('the secret key', finds('.', `cat ${dataDir}/secret-key`)),
    same('the files of another agent', `cat ${other.home}/state/workspace/planted.txt`),
    same('the environment of other processes', "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep ^CANARY="),
    same('the memory of another process', `${isCanary} && head -1 /proc/${canary.pid}/maps | grep -q . && ${echoGot}`),
    same('a signal to another process', `${isCanary} && kill -0 ${canary.pid} && ${echoGot}`),
    same('a socket of another service', unix(host.socket)),
    same('PostgreSQL', finds('[SN]', askPostgres(database))),
    service('a service on 127.0.0.1, such as Redis', got, ports.loopback, ''),
    service('a service on all addresses', got, ports.any, ''),
    service('the API', 'status', chowder.api, http),
    service('the metrics', 'HTTP', chowder.metrics, http),
    gatewayOf(other.gateway),
    dockerSocket === null
      ? nobody('the socket of Docker', `[ -S /run/docker.sock -o -S /var/run/docker.sock ] && ${echoGot}`)
      : same('the socket of Docker', `for at in ${dockerSocket} /var/run/docker.sock; do ${unixHttp('$at')}; done`),
    ...Object.entries(spellings(outside.metadata)).map(([spelling, address]) =>
      same(`the metadata service, ${spelling}`, web(`http://${address}:${outside.port}/`)),
    ),
    {
      name: 'the metadata service, by a name that leads there',
      command: together([
        curl(`http://metadata.example:${outside.port}/`),
        curl(`http://metadata.example:${outside.port}/`, '-p'),
      ]),
      twin: curl(
        `http://metadata.example:${outside.port}/`,
        `--resolve metadata.example:${outside.port}:${outside.metadata}`,
      ),
    },
    same('the metadata service, by a redirect', curl(`http://${outside.address}:${outside.port}/redirect`, '-L')),
    same('a host of the local network', web(`http://${outside.lan}:${outside.port}/`)),
    same('port 25 of another host', together([tcp(outside.address, 25), curl(`telnet://${outside.address}:25`, '-p')])),
    {
      name: 'the relay with the token of another agent',
      command: relayCall(relay.url, relay.foreignToken),
      twin: null,
    },
    nobody('the root of the first process', finds('^root:', 'cat /proc/1/root/etc/shadow')),
    nobody('a new user namespace', `unshare --user --map-root-user true && ${echoGot}`),
    nobody('a mount', `mount -t tmpfs none /tmp && ${echoGot}`),
    nobody(
      'a write to the release and to programs',
      `for at in $(find / -name openclaw.mjs 2>/dev/null | xargs -rn1 dirname) /usr/bin; do touch $at/x && ${echoGot}; done`,
    ),
  ]
}

/** Whether it has TLS. */
const askPostgres = (path: string) =>
  `perl -MIO::Socket::UNIX -e 'my $to = IO::Socket::UNIX->new(Peer => "${path}") or die; ` +
  `syswrite $to, pack "NN", 8, 80877103; sysread $to, my $has, 1; print $has'`

const unixHttp = (path: string) => finds('ApiVersion', `curl -s -m 3 --unix-socket ${path} http://docker/version`)

/** Prints `got` unless the relay refuses the token. */
export const relayCall = (url: string, token: string): string =>
  `case "$(curl -s -m 5 -o /dev/null -w '%{http_code}' -H "x-api-key: ${token}" ${url}/v1/models)" in ` +
  `401|403|503|000) ;; *) ${echoGot} ;; esac`

/** The token of the relay that an agent with one room reads, as all its commands do. */
export const ownToken = `$(sed -n 's/.*"relayToken": *"\\([^"]*\\)".*/\\1/p' $HOME/../${secretsPath})`

/** Asks the model through the relay, with these tools. Prints the answer and its status. */
export function askModel(url: string, tools: object[]): string {
  const body = { model: 'claude-haiku-4-5', max_tokens: 50, messages: [{ role: 'user', content: 'hello' }], tools }
  const headers = `-H "x-api-key: ${ownToken}" -H 'content-type: application/json'`
  return `curl -s -m 20 -w ' %{http_code}' ${headers} -d '${JSON.stringify(body)}' ${url}/v1/messages`
}

/** The proof that the commands of an agent with one room do reach what it may reach. */
export const reachesAllowed = ({ outside }: AttackedHost) => ({
  command: curl(`http://${outside.address}:${outside.port}/`),
  shown: allowed,
})
