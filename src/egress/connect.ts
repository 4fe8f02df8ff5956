import { once } from 'node:events'
import { connect, isIP, type LookupFunction, type Socket } from 'node:net'

/** Until the next address of a host is tried as well. */
const nextAddressMs = 1000

/**
 * Connects to one of the addresses, and to no other: the name of the host is not looked up again. Rejects with the
 * reason of the signal, or the error of the last address.
 */
export async function connectTo(
  host: string,
  addresses: readonly string[],
  port: number,
  signal: AbortSignal,
): Promise<Socket> {
  signal.throwIfAborted()
  const entries = addresses.map((address) => ({ address, family: isIP(address) }))
  const lookup: LookupFunction = (_host, _options, done) => done(null, entries)
  const socket = connect({
    host,
    port,
    lookup,
    allowHalfOpen: true,
    noDelay: true,
    autoSelectFamily: true,
    autoSelectFamilyAttemptTimeout: nextAddressMs,
  })
  try {
    await once(socket, 'connect', { signal })
    return socket
  } catch (error) {
    socket.on('error', () => {}).destroy()
    throw signal.aborted ? signal.reason : error
  }
}
