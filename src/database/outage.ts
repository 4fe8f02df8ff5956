/** SQLSTATEs of a database that is shutting down, starting, read-only, full or overloaded. */
const outageCodes = new Set('57P01 57P02 57P03 08000 08003 08006 25006 53100 53300 55P03 57014'.split(' '))

/** The database client's messages for a connection that broke or could not be opened. */
const connectionEnded =
  /^(Connection terminated|timeout exceeded when trying to connect|Query read timeout|Client (was closed|has encountered))/

/** Codes of failed system calls. The host name of a stopped container does not resolve. */
const connectionCodes = new Set(
  'ECONNREFUSED ECONNRESET EHOSTUNREACH ENETUNREACH ENOENT ENOTFOUND EAI_AGAIN EPIPE ETIMEDOUT'.split(' '),
)
/** System calls of sockets. Failed system calls on files have the same codes. */
const socketCalls = new Set(['connect', 'getaddrinfo', 'read', 'write'])

/** Whether an error, or one of its causes, means that the database is down or unreachable. */
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
