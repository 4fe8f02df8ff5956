import { execFile, spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { connect, type Server, type Socket } from 'node:net'
import { pipeline } from 'node:stream'
import { promisify } from 'node:util'

const run = promisify(execFile)
const ip = (...args: string[]) => run('ip', args)

/** One place a number: several runs, and tests beside each other, have one each. */
const places = Array.from({ length: 64 }, (_, number) => ({
  name: `chowder-outside-${number}`,
  link: `chowder-${number}-`,
  host: `198.51.100.${4 * number + 1}`,
  address: `198.51.100.${4 * number + 2}`,
  linkLocal: `169.254.77.${number + 1}`,
}))
type Place = (typeof places)[number]

/** A network namespace with a web server, which looks like another host. */
export interface Outside {
  /** The name of the namespace. */
  name: string
  /** The address of this host on the way to it. */
  host: string
  /** A public address. */
  address: string
  /** A link-local address, as metadata services of clouds have. */
  linkLocal: string
  port: number
  close(): Promise<void>
}

const webServer = (port: number) => [
  '-e',
  `require('node:http').createServer((_, answer) => answer.end('outside')).listen(${port}, () => console.log('ready'))`,
]

async function remove({ name, link }: Place): Promise<void> {
  await ip('netns', 'del', name).catch(() => {})
  await ip('link', 'del', `${link}0`).catch(() => {})
}

/** Takes a place that nobody has. A run that was killed leaves a namespace without processes, which is made anew. */
async function takePlace(): Promise<Place> {
  const first = randomInt(places.length)
  for (const place of [...places.slice(first), ...places.slice(0, first)]) {
    const { stdout: processes } = await ip('netns', 'pids', place.name).catch(() => ({ stdout: '' }))
    if (processes !== '') continue
    await remove(place)
    const isTaken = await ip('netns', 'add', place.name).then(
      () => true,
      () => false,
    )
    if (isTaken) return place
  }
  throw new Error(`no network namespace for another host: ${places.length} of them are open`)
}

/**
 * Makes a namespace and starts `server` in it: the arguments of a Node.js program that writes a line when it listens;
 * by default it serves a page that says `outside`. Needs root and `ip`.
 */
export async function openOutside(
  server: (port: number, addresses: Pick<Outside, 'address' | 'linkLocal'>) => string[] = webServer,
): Promise<Outside> {
  const place = await takePlace()
  const { name, link, host, address, linkLocal } = place
  const outside = { name, host, address, linkLocal, port: 8000 }
  await ip('link', 'add', `${link}0`, 'type', 'veth', 'peer', 'name', `${link}1`, 'netns', name)
  await ip('addr', 'add', `${host}/30`, 'dev', `${link}0`)
  await ip('link', 'set', `${link}0`, 'up')
  const paths = (...args: string[]) => ip('-n', name, ...args)
  await paths('addr', 'add', `${outside.address}/30`, 'dev', `${link}1`)
  await paths('addr', 'add', `${outside.linkLocal}/32`, 'dev', `${link}1`)
  await paths('link', 'set', `${link}1`, 'up')
  await paths('link', 'set', 'lo', 'up')
  await paths('route', 'add', 'default', 'via', host)
  await ip('route', 'add', `${outside.linkLocal}/32`, 'via', outside.address)
  const program = spawn('ip', ['netns', 'exec', name, process.execPath, ...server(outside.port, outside)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  await once(program.stdout, 'data')
  return {
    ...outside,
    async close() {
      program.kill('SIGKILL')
      await once(program, 'exit')
      await remove(place)
    },
  }
}

/** Listens, and sends the listening server to its parent. */
const listener = `const server = require('node:net').createServer().listen(Number(process.argv[1]), () => process.send('listening', server))`

const listenMs = 30_000
const served = new Map<number, Promise<Server>>()

async function listenOutside(name: string, port: number): Promise<Server> {
  const program = spawn('ip', ['netns', 'exec', name, process.execPath, '-e', listener, String(port)], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  const [, server] = (await once(program, 'message', { signal: AbortSignal.timeout(listenMs) })) as [string, Server]
  program.kill('SIGKILL')
  return server.unref().on('connection', (incoming: Socket) => {
    const onHost = connect(port, '127.0.0.1')
    pipeline(incoming, onHost, incoming, () => {}) // when one end breaks, both are closed
  })
}

/**
 * Forwards a port of an open namespace to the same port on the loopback of this host, until this process ends. All calls
 * of a process are for the same namespace.
 */
export async function serveOutside(name: string, port: number): Promise<void> {
  const serving = served.get(port) ?? listenOutside(name, port)
  served.set(port, serving)
  await serving
}
