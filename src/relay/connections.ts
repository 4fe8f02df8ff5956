import type { Server } from 'node:http'
import type { Socket } from 'node:net'

/** The bounds of the connections of clients. */
export interface ConnectionLimits {
  /** Above this limit, the longest-idle connections are closed, so that no agent can use up all of them. */
  max: number
  /** A connection without a byte in either direction for this long is cut: its client does not read. */
  silentMs: number
}

/**
 * Enforces the limits on a server. Returns a function that marks a connection as used until it ends, such as that of a
 * tunnel.
 */
export function boundConnections(server: Server, { max, silentMs }: ConnectionLimits): (used: Socket) => void {
  let count = 0
  const unused = new Set<Socket>()
  server.setTimeout(silentMs)
  server.on('connection', (socket) => {
    count += 1
    unused.add(socket)
    socket.once('close', () => {
      count -= 1
      unused.delete(socket)
    })
    if (count <= max) return
    const [longest] = unused
    if (longest) unused.delete(longest.destroy())
  })
  server.on('request', ({ socket }, response) => {
    unused.delete(socket)
    response.once('close', () => {
      if (!socket.destroyed) unused.add(socket)
    })
  })
  return (used) => void unused.delete(used)
}
