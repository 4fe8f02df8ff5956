import type { Endpoint } from '#sandbox/driver.ts'
import { connectGateway, type GatewayClient } from './gateway.ts'
import type { OnRunEvent } from './gateway-socket.ts'

const connectTimeoutMs = 20_000

/** A share of the kept connection to a gateway. */
interface Watch {
  gateway: GatewayClient
  /** Gives the share back. The connection closes with the last one. */
  release(): void
}

/** The kept connections of a process: one for each gateway that has something to watch, however many watch it. */
export interface Watches {
  /**
   * Passes the events of all runs of a gateway to `onRunEvent` until the watch is released or the connection breaks.
   * While one of an agent that `asks` is open, commands of the agent wait for an approval. Throws the errors of
   * `connectGateway`.
   */
  open(gateway: WatchedGateway, onRunEvent: OnRunEvent): Promise<Watch>
  close(): void
}

interface WatchedGateway {
  endpoint: Endpoint
  token: string
  asks: boolean
}

interface Connection {
  listeners: Set<OnRunEvent>
  opened: Promise<GatewayClient>
}

export function createWatches(): Watches {
  const closing = new AbortController()
  const connections = new Map<string, Connection>()

  function connect(key: string, { endpoint, token, asks }: WatchedGateway): Connection {
    const listeners = new Set<OnRunEvent>()
    const onRunEvent: OnRunEvent = (event) => {
      for (const listener of listeners) listener(event)
    }
    const opened = connectGateway(endpoint, token, {
      signal: closing.signal,
      timeoutMs: connectTimeoutMs,
      onRunEvent,
      answersApprovals: asks,
    })
    const connection = { listeners, opened }
    connections.set(key, connection)
    const forget = () => {
      if (connections.get(key) === connection) connections.delete(key)
    }
    opened.then(({ closed }) => closed.then(forget), forget)
    return connection
  }

  return {
    async open(gateway, onRunEvent) {
      const key = JSON.stringify([gateway.endpoint, gateway.token, gateway.asks])
      const connection = connections.get(key) ?? connect(key, gateway)
      connection.listeners.add(onRunEvent)
      const release = async () => {
        connection.listeners.delete(onRunEvent)
        if (connection.listeners.size > 0) return
        if (connections.get(key) === connection) connections.delete(key)
        await connection.opened.then((client) => client.close()).catch(() => {})
      }
      try {
        return { gateway: await connection.opened, release: () => void release() }
      } catch (error) {
        void release()
        throw error
      }
    },
    close: () => closing.abort(),
  }
}
