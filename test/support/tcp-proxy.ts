import { once } from 'node:events'
import { createConnection, createServer, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

type Direction = 'to server' | 'to client'

export interface Hold {
  /** Resolves once a connection is held. */
  held: Promise<void>
  /** Passes what was held and everything after it; before anything was held, gives the hold up. */
  release(): void
  /** Resets the held connection: what was held never arrives. */
  drop(): void
}

export interface HoldOptions {
  /**
   * `request`: the chunk with the text still passes, and what is held is everything that comes back on that
   * connection afterwards. The text is looked for on its way to the server then.
   */
  after?: 'request'
}

export interface TcpProxy {
  host: string
  port: number
  /** How many connections are open through it. */
  connections(): number
  /** Resets all connections, and each new one right after it was accepted, until `heal`. */
  cut(): void
  /** Half-open: connections are accepted and stay, but nothing passes and no end is told on, until `heal`. */
  freeze(): void
  /** Ends `cut` and `freeze`; what was frozen then passes. Latency and holds stay. */
  heal(): void
  /**
   * Holds the first connection on which a chunk with the text is to pass, before that chunk and in that direction. One
   * connection for each call; the others go on. With several texts the chunk has all of them.
   */
  holdWhen(text: string | readonly string[], direction: Direction, options?: HoldOptions): Hold
  /** Resets everything and ends. */
  close(): Promise<void>
}

interface OpenHold extends HoldOptions {
  texts: readonly string[]
  direction: Direction
  caught(connection: Connection): void
}

interface Connection {
  client: Socket
  server: Socket
  /** What stops a direction; none is resolved. */
  gates: Record<Direction, Promise<void>>
  /** Aborted when it has ended: nobody waits for its sockets any more. */
  gone: AbortController
}

const connectTimeoutMs = 10_000

/**
 * A TCP proxy on a loopback port whose faults are the test's. It reads no faster than the other side takes, and keeps
 * of a connection at most what the sockets' buffers hold.
 */
export async function openProxy(target: { host: string; port: number } | { path: string }): Promise<TcpProxy> {
  const connections = new Set<Connection>()
  const holds = new Set<OpenHold>()
  const open = Promise.resolve()
  const latencyMs = 0
  let isCut = false
  let frozen = { until: open, thaw: () => {} }

  const findHold = (chunk: Buffer, direction: Direction) => {
    for (const hold of holds)
      if (hold.direction === direction && hold.texts.every((text) => chunk.includes(text))) return hold
    return undefined
  }

  /** Passes one direction to its end. Throws when a side is gone. */
  async function pass(connection: Connection, direction: Direction): Promise<void> {
    const [from, to] =
      direction === 'to server' ? [connection.client, connection.server] : [connection.server, connection.client]
    const mayPass = async () => {
      // A connection may be frozen while it is held, and the other way round.
      for (let gate: Promise<void> | undefined; gate !== connection.gates[direction]; ) {
        gate = connection.gates[direction]
        await gate
        await frozen.until
      }
    }
    for await (const chunk of from as AsyncIterable<Buffer>) {
      findHold(chunk, direction)?.caught(connection)
      if (latencyMs > 0) await sleep(latencyMs, undefined, { signal: connection.gone.signal })
      await mayPass()
      if (to.destroyed) throw new Error('the other side is gone')
      if (!to.write(chunk)) await once(to, 'drain', { signal: connection.gone.signal })
    }
    await mayPass()
    to.end()
  }

  const reset = ({ client, server, gone }: Connection) => {
    gone.abort()
    client.resetAndDestroy()
    // A UNIX socket has no reset.
    if ('path' in target) server.destroy()
    else server.resetAndDestroy()
  }

  async function serve(connection: Connection): Promise<void> {
    connections.add(connection)
    try {
      await Promise.all([pass(connection, 'to server'), pass(connection, 'to client')])
    } catch {
      // One side gone is the other side gone, but not while it is frozen: nobody is told then.
      await frozen.until
    }
    connections.delete(connection)
    connection.gone.abort()
    connection.client.destroy()
    connection.server.destroy()
  }

  const listener = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    client.on('error', () => {})
    if (isCut) return void client.resetAndDestroy()
    const server = createConnection({ ...target, allowHalfOpen: true, noDelay: true })
    server.on('error', () => {})
    server.setTimeout(connectTimeoutMs, () => server.destroy())
    server.once('connect', () => server.setTimeout(0))
    void serve({ client, server, gates: { 'to server': open, 'to client': open }, gone: new AbortController() })
  })
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const address = listener.address()
  if (typeof address !== 'object' || !address) throw new Error('the proxy has no port')

  const thaw = () => {
    frozen.thaw()
    frozen = { until: open, thaw: () => {} }
  }

  return {
    host: '127.0.0.1',
    port: address.port,
    connections: () => connections.size,
    cut() {
      isCut = true
      thaw()
      for (const connection of connections) reset(connection)
    },
    freeze() {
      thaw()
      const { promise: until, resolve: thawed } = Promise.withResolvers<void>()
      frozen = { until, thaw: thawed }
    },
    heal() {
      isCut = false
      thaw()
    },
    holdWhen(text, direction, { after } = {}) {
      const caught = Promise.withResolvers<void>()
      const released = Promise.withResolvers<void>()
      let caughtOn: Connection | undefined
      const hold: OpenHold = {
        texts: [text].flat(),
        direction,
        caught(connection) {
          holds.delete(hold)
          caughtOn = connection
          connection.gates[after === 'request' ? 'to client' : direction] = released.promise
          caught.resolve()
        },
      }
      holds.add(hold)
      const release = () => {
        holds.delete(hold)
        released.resolve()
      }
      return {
        held: caught.promise,
        release,
        drop() {
          // Reset first: what was held is then written nowhere.
          if (caughtOn) reset(caughtOn)
          release()
        },
      }
    },
    async close() {
      thaw()
      for (const connection of connections) reset(connection)
      await new Promise((resolve) => listener.close(resolve))
    },
  }
}
