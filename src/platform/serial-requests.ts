import type { Server } from 'node:http'
import type { Socket } from 'node:net'

/**
 * The bytes of a connection that are parsed in one turn of the event loop. Node.js parses 64 KiB, which have room for
 * some 2,000 short requests: from 128 connections that takes seconds.
 */
const pieceBytes = 2048

/** Ends the division of a connection into pieces. */
const readWhole = new WeakMap<Socket, () => void>()

/**
 * Makes a server take one request of a connection at a time. It reads a connection in small pieces, and destroys it when
 * a request comes before the answer to the one before: common clients do not pipeline requests. Handlers must ignore a
 * request whose socket is destroyed. The bytes of a tunnel are not divided.
 */
export function takeSerially(server: Server): void {
  const answering = new WeakSet<Socket>()
  server.on('connection', readInPieces)
  server.prependListener('request', ({ socket }, response) => {
    if (answering.has(socket)) return void socket.destroy()
    answering.add(socket)
    response.once('close', () => answering.delete(socket))
  })
  server.prependListener('connect', ({ socket }) => {
    if (answering.has(socket)) socket.destroy()
    else readWhole.get(socket)?.()
  })
}

function readInPieces(socket: Socket): void {
  const push = socket.push.bind(socket)
  let waiting: Buffer[] = []
  let hasEnded = false
  const next = () => {
    const [first] = waiting
    if (!first || socket.destroyed) return
    if (first.length > pieceBytes) waiting[0] = first.subarray(pieceBytes)
    else waiting.shift()
    push(first.subarray(0, pieceBytes))
    if (waiting.length > 0) setImmediate(next)
    else if (hasEnded) push(null)
  }
  socket.push = (chunk: Buffer | null) => {
    if (waiting.length === 0 && (chunk === null || chunk.length <= pieceBytes)) return push(chunk)
    if (chunk === null) hasEnded = true
    else if (waiting.push(chunk) === 1) next()
    return false
  }
  // The parser of Node.js otherwise reads a connection below its stream.
  const viaStream = () => {}
  socket.on('data', viaStream)
  readWhole.set(socket, () => {
    socket.off('data', viaStream)
    socket.push = push
    const rest = waiting
    waiting = []
    for (const chunk of rest) push(chunk)
    if (hasEnded) push(null)
  })
}
