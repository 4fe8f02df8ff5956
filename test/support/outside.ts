import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect, type Server, type Socket } from 'node:net'
import { pipeline } from 'node:stream'
import { promisify } from 'node:util'

const run = promisify(execFile)
const ip = (...args: string[]) => run('ip', args)

interface Place {
  name: string
  link: string
  /** The address of this host on the link. */
  host: string
  address: string
  linkLocal: string
}

/** For tests that open it themselves. */
const ofTest: Place = {
  ...{ name: 'chowder-outside', link: 'chowder-out', host: '203.0.113.1', address: '203.0.113.2' },
  linkLocal: '169.254.77.77',
}
/** For those that reach their own servers there: they run beside the others. */
export const ofRun: Place = {
  ...{ name: 'chowder-outside-run', link: 'chowder-run', host: '203.0.113.5', address: '203.0.113.6' },
  linkLocal: '169.254.77.78',
}

/** A network namespace with a web server, which looks like another host. */
export interface Outside {
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

/**
 * Makes the namespace anew and starts `server` in it: the arguments of a Node.js program that writes a line when it
 * listens; by default it serves a page that says `outside`. Needs root and `ip`.
 */
export async function openOutside(
  server: (port: number) => string[] = webServer,
  { name, link, host, address, linkLocal }: Place = ofTest,
): Promise<Outside> {
  const remove = async () => {
    await ip('netns', 'del', name).catch(() => {})
    await ip('link', 'del', `${link}0`).catch(() => {})
  }
  const outside = { address, linkLocal, port: 8000 }
  await remove()
  await ip('netns', 'add', name)
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
  const program = spawn('ip', ['netns', 'exec', name, process.execPath, ...server(outside.port)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  await once(program.stdout, 'data')
  return {
    ...outside,
    async close() {
      program.kill('SIGKILL')
      await once(program, 'exit')
      await remove()
    },
  }
}

/** Listens, and sends the listening server to its parent. */
const listener = `const server = require('node:net').createServer().listen(Number(process.argv[1]), () => process.send('listening', server))`

const listenMs = 30_000
const served = new Map<number, Promise<Server>>()

async function listenOutside(port: number): Promise<Server> {
  const program = spawn('ip', ['netns', 'exec', ofRun.name, process.execPath, '-e', listener, String(port)], {
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
 * Forwards a port of the namespace `ofRun`, which is open, to the same port on the loopback of this host, until this process ends.
 * Returns the address of the namespace.
 */
export async function serveOutside(port: number): Promise<string> {
  const serving = served.get(port) ?? listenOutside(port)
  served.set(port, serving)
  await serving
  return ofRun.address
}
