import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, rename } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import { join } from 'node:path'
import { forwarderPort } from '#sandbox/container/layout.ts'
import type { KubernetesClient } from './client.ts'
import { channelStream } from './exec.ts'
import { podName } from './objects.ts'

const backlog = 511
const connectTimeoutMs = 15_000
/** The channels of a forwarded port. The API begins each with the number of the port. */
const channels = { data: 0 } as const
const portBytes = 2

/** Unix sockets that lead to gateways over connections of the API, for a Chowder outside of the cluster. */
export interface Forwards {
  /** The path of the socket of a sandbox. This process listens there from now on. */
  open(id: string): Promise<string>
  /** Stops listening. Open connections end with their pod. */
  close(id: string): void
}

/** Creates the sockets in a folder. The last process that listens at a socket replaces the former one. */
export function createForwards(client: KubernetesClient, folder: string): Forwards {
  const servers = new Map<string, Promise<Server>>()
  const pathOf = (id: string) => join(folder, id)

  async function forward(id: string, socket: Socket): Promise<void> {
    const started = new Set<number>()
    const stream = await channelStream(
      (onFrame) =>
        client.open(
          `core/pods/${podName(id)}/portforward?ports=${forwarderPort}`,
          onFrame,
          AbortSignal.timeout(connectTimeoutMs),
        ),
      (channel, bytes) => {
        const content = started.has(channel) ? bytes : bytes.subarray(portBytes)
        started.add(channel)
        if (content.length === 0) return undefined
        return channel === channels.data ? content : null // an error: no process listens there
      },
    )
    for (const [from, to] of [
      [socket, stream],
      [stream, socket],
    ] as const) {
      from.on('close', () => to.destroy())
      from.pipe(to)
    }
    if (socket.destroyed) stream.destroy()
  }

  async function listen(id: string): Promise<Server> {
    await mkdir(folder, { recursive: true, mode: 0o700 })
    const server = createServer((socket) => {
      socket.on('error', () => socket.destroy())
      forward(id, socket).catch(() => socket.destroy())
    })
    const temporary = join(folder, randomUUID().slice(0, 8))
    server.listen({ path: temporary, backlog })
    await once(server, 'listening')
    await rename(temporary, pathOf(id))
    return server.unref()
  }

  return {
    async open(id) {
      let server = servers.get(id)
      if (!server) {
        server = listen(id)
        servers.set(id, server)
        server.catch(() => servers.delete(id))
      }
      await server
      return pathOf(id)
    },
    close(id) {
      const server = servers.get(id)
      servers.delete(id)
      // The caller of `open` gets the error.
      server?.then((listening) => listening.close()).catch(() => {})
    },
  }
}
