import type { Server } from 'node:http'
import type { Socket } from 'node:net'

/** The bounds of the connections of clients. */
export interface ConnectionLimits {
  /** Beyond this many, those make room that have had no call for longest: no agent can take all of them. */
  max: number
  /** A connection without a byte either way for so long is cut: its client does not read. */
  silentMs: number
}

/**
 * Holds a server to the limits. Returns what marks a connection as one that is used until it ends, such as that of a
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
