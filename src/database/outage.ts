/** SQLSTATEs of a database that is shutting down, starting, read-only, full or overloaded: the statement was fine. */
const outageCodes = new Set('57P01 57P02 57P03 08000 08003 08006 25006 53100 53300 55P03 57014'.split(' '))

/** Messages of the database client for a connection that ended, or that it could not get. */
const connectionEnded =
  /^(Connection terminated|timeout exceeded when trying to connect|Query read timeout|Client (was closed|has encountered))/

/** Codes of failed system calls. A database in a container that is down has no address. */
const connectionCodes = new Set(
  'ECONNREFUSED ECONNRESET EHOSTUNREACH ENETUNREACH ENOENT ENOTFOUND EAI_AGAIN EPIPE ETIMEDOUT'.split(' '),
)
/** The calls of sockets: a file that is missing has the same codes. */
const socketCalls = new Set(['connect', 'getaddrinfo', 'read', 'write'])

/** Whether an error, or one of its causes, says that the database is down or cannot be reached. */
export function isDatabaseDown(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const code = 'code' in cause ? String(cause.code) : ''
    if (outageCodes.has(code)) return true
    if (connectionCodes.has(code) && 'syscall' in cause && socketCalls.has(String(cause.syscall))) return true
    if (connectionEnded.test(cause.message)) return true
    if (cause instanceof AggregateError && cause.errors.some(isDatabaseDown)) return true
  }
  return false
}
