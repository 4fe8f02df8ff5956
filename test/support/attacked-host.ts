import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { rm, writeFile } from 'node:fs/promises'
import { createServer, type Server } from 'node:net'
import { networkInterfaces } from 'node:os'
import { promisify } from 'node:util'
import { openOutside } from './outside.ts'

const run = promisify(execFile)

/** What a target shows to who reaches it. No command of an attack has it in its text. */
export const got = 'GOT-WHAT-IT-WANTS'
/** Prints it. */
export const echoGot = "echo G''OT-WHAT-IT-WANTS"
/** What the host that agents may reach shows. */
export const allowed = 'THIS-HOST-IS-ALLOWED'

/**
 * Another host: its public address shows that it is allowed, and all its others are targets. It answers on port 25 as a
 * mail server, and as a name server, for which every name leads to its address of metadata services.
 */
const server = (port: number) => [
  '-e',
  `const [public, metadata] = process.argv.slice(1)
   const web = require('node:http').createServer((asked, answer) => {
     if (asked.url === '/redirect') return answer.writeHead(302, { location: 'http://' + metadata + ':${port}/' }).end()
     const isPublic = asked.socket.localAddress.endsWith(public)
     answer.end(isPublic ? '${allowed}' : '${got}')
   }).listen(${port}, '::')
   require('node:net').createServer((socket) => socket.on('error', () => {}).end('${got}\\n')).listen(25, '::')
   const names = require('node:dgram').createSocket('udp4').on('message', (asked, { address, port }) => {
     const end = asked.indexOf(0, 12) + 5
     const isA = asked.readUInt16BE(end - 4) === 1
     const header = Buffer.from([asked[0], asked[1], 0x81, 0x80, 0, 1, 0, isA ? 1 : 0, 0, 0, 0, 0])
     const answer = isA ? [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, ...metadata.split('.').map(Number)] : []
     names.send(Buffer.concat([header, asked.subarray(12, end), Buffer.from(answer)]), port, address)
   }).bind(53, '0.0.0.0', () => console.log('ready'))`,
]

export interface AttackedHost {
  /** A host that agents may reach, at 198.51.100.0/24, and its other addresses, which are targets. */
  outside: { address: string; metadata: string; lan: string; port: number }
  /** The file of name servers by which every name leads to the metadata service. */
  resolvConf: string
  /** Services of this host. */
  ports: { loopback: number; any: number }
  /** Everybody may connect to it. */
  socket: string
  /** A process with a secret in its environment. */
  canary: { pid: number; word: string }
  /** All IPv4 addresses of this host, now. */
  addresses(): string[]
  close(): Promise<void>
}

/** Makes what attacks want: services, sockets, processes and another host. Needs root and `ip`. */
export async function openAttackedHost(): Promise<AttackedHost> {
  const mark = randomInt(2 ** 40).toString(36)
  const word = `canary-${mark}`
  const lan = `10.213.${randomInt(256)}.2`
  const opened = await openOutside((port, place) => [...server(port), place.address, place.linkLocal])
  await run('ip', ['-n', opened.name, 'addr', 'add', `${lan}/32`, 'dev', 'lo'])
  await run('ip', ['route', 'add', `${lan}/32`, 'via', opened.address])
  const servers: Server[] = []
  const listen = async (address: object) => {
    const listening = createServer((socket) => socket.on('error', () => {}).end(`${got}\n`)).listen(address)
    servers.push(listening)
    await once(listening, 'listening')
    return (listening.address() as { port: number }).port
  }
  const ports = {
    loopback: await listen({ host: '127.0.0.1', port: 0 }),
    any: await listen({ host: '::', port: 0 }),
  }
  const socket = `/run/chowder-attacked-${mark}.sock`
  await listen({ path: socket, readableAll: true, writableAll: true })
  const resolvConf = `/run/chowder-attacked-${mark}.conf`
  await writeFile(resolvConf, `nameserver ${opened.address}\noptions timeout:1\n`)
  const canary: ChildProcess = spawn('/usr/bin/perl', ['-e', 'sleep 3600', word], {
    env: { CANARY: got },
    stdio: 'ignore',
  })
  return {
    outside: { address: opened.address, metadata: opened.linkLocal, lan, port: opened.port },
    resolvConf,
    ports,
    socket,
    canary: { pid: canary.pid ?? 0, word },
    addresses: () =>
      Object.values(networkInterfaces()).flatMap((found = []) =>
        found.flatMap(({ family, address }) => (family === 'IPv4' ? [address] : [])),
      ),
    async close() {
      canary.kill('SIGKILL')
      for (const listening of servers) listening.close()
      for (const path of [socket, resolvConf]) await rm(path, { force: true })
      await run('ip', ['route', 'del', `${lan}/32`]).catch(() => {})
      await opened.close()
    },
  }
}
