import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { chmod, mkdir, rename } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { dirname, join } from 'node:path'

/** Serves a connection from the jail of a sandbox. */
export type ServeJail = (sandboxId: string, socket: Socket) => void

const maxLineBytes = 100
const lineTimeoutMs = 10_000
const backlog = 511
const newline = 0x0a

/**
 * The folder of the unix sockets of services for the connections from jails, each under its name. The folder above it
 * is closed to others: the forwarder of a jail, which has the user of the sandbox, starts in this one.
 */
export const waysOutFolder = (dataDir: string): string => join(dataDir, 'sockets', 'jails')

/** Creates it, whatever the umask. */
export async function makeWaysOutFolder(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o700 })
  await chmod(dirname(folder), 0o700)
  await chmod(folder, 0o711)
}

/** Reads the first line, which the forwarder of the jail has written, and leaves the rest. */
function readSandboxId(socket: Socket, serve: ServeJail): void {
  let read = Buffer.alloc(0)
  socket.on('error', () => socket.destroy())
  socket.setTimeout(lineTimeoutMs, () => socket.destroy())
  const onData = (chunk: Buffer) => {
    read = Buffer.concat([read, chunk])
    const end = read.indexOf(newline)
    if (end === -1 && read.length < maxLineBytes) return
    socket.off('data', onData)
    socket.pause()
    if (end === -1) return void socket.destroy()
    socket.setTimeout(0)
    socket.removeAllListeners('timeout')
    serve(read.subarray(0, end).toString(), socket)
    // As if it came now: a server bounds the pieces that it reads at once.
    if (end + 1 < read.length) socket.push(read.subarray(end + 1))
    socket.resume()
  }
  socket.on('data', onData)
}

/**
 * Serves the connections from jails at a unix socket, and replaces another process that does so. Close ends no
 * connection.
 */
export async function serveWayOut(
  folder: string,
  service: string,
  serve: ServeJail,
): Promise<{ close(): Promise<void> }> {
  const server = createServer({ allowHalfOpen: true }, (socket) => readSandboxId(socket, serve))
  await makeWaysOutFolder(folder)
  const temporary = join(folder, randomUUID().slice(0, 8))
  server.listen({ path: temporary, backlog })
  await once(server, 'listening')
  await chmod(temporary, 0o666) // the users of sandboxes have the forwarders
  await rename(temporary, join(folder, service))
  return {
    close: () =>
      new Promise((resolve) => {
        server.close()
        resolve()
      }),
  }
}
