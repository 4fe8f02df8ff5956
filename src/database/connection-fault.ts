import pg from 'pg'
import { StartupError } from '#errors/startup-error.ts'

/** The target of a connection, without its password. */
interface Target {
  address: string
  user: string
  database: string
}

function targetOf(connectionString: string): Target | null {
  try {
    const { host, port, user = '', database = '' } = new pg.Client({ connectionString })
    return { address: host.startsWith('/') ? `the socket in ${host}` : `${host}:${port}`, user, database }
  } catch {
    return null
  }
}

const refusals: Record<string, string> = {
  ECONNREFUSED: 'connection refused',
  ECONNRESET: 'connection reset',
  EHOSTUNREACH: 'no route to the host',
  ENETUNREACH: 'no route to the network',
  ENOENT: 'there is no such socket',
  EACCES: 'permission denied',
  ETIMEDOUT: 'no answer',
}

const untrusted = /CERT|SELF_SIGNED|UNABLE_TO_(GET|VERIFY)/

type Connecting = Error & { code?: string; syscall?: string }

/** The sentence about one error; undefined when it is not about the connection. */
function describe(
  { code = '', syscall, message }: Connecting,
  { address, user, database }: Target,
): string | undefined {
  const at = `${address} (DATABASE_URL)`
  if (syscall === 'getaddrinfo')
    return `The host of ${at} is not known: ${code}. Correct the host in DATABASE_URL, or see to the name service.`
  if (syscall === 'connect' && code in refusals)
    return `No PostgreSQL answers at ${at}: ${refusals[code]}. Start it, or correct host and port in DATABASE_URL.`
  if (/timeout/.test(message))
    return `What listens at ${at} does not answer as PostgreSQL does. See that PostgreSQL runs there and no firewall is in between, or correct host and port in DATABASE_URL.`
  if (/Connection terminated|establishing an SSL connection/.test(message))
    return `What listens at ${at} ended the connection: it is not PostgreSQL, or is just stopping. Correct host and port in DATABASE_URL.`
  if (/does not support SSL/.test(message))
    return `The PostgreSQL at ${at} has no TLS. Remove sslmode from DATABASE_URL, or turn TLS on in PostgreSQL.`
  if (untrusted.test(code))
    return `The certificate of the PostgreSQL at ${at} is not trusted: ${message}. Name the file of its CA in DATABASE_URL with ?sslrootcert=/path/of/ca.pem.`
  if (code === '28000' && /no encryption/.test(message))
    return `The PostgreSQL at ${at} demands TLS. Add ?sslmode=require to DATABASE_URL.`
  if (code.startsWith('28') || /client password must be a string/.test(message))
    return `The PostgreSQL at ${at} refused the user ${user}: the user or the password in DATABASE_URL is wrong.`
  if (code === '3D000')
    return `The PostgreSQL at ${at} has no database ${database}. Create it with createdb ${database}, or correct the end of DATABASE_URL.`
  if (code === '42501')
    return `The user ${user} may not change the database ${database} at ${at}: ${message}. Make it the owner: ALTER DATABASE ${database} OWNER TO ${user}.`
  if (code === '57P03' || code === '53300')
    return `The PostgreSQL at ${at} takes no connection now: ${message}. Try again in a moment.`
  return undefined
}

/**
 * Explains in one sentence why a command's first statements on the database of DATABASE_URL failed, and the remedy.
 * Returns an unrelated error unchanged. No text has the password.
 */
export function explainConnection(error: unknown, connectionString: string): unknown {
  const target = targetOf(connectionString)
  if (!target)
    return new StartupError(
      'DATABASE_URL cannot be read. It has the form postgres://user:password@host:5432/database, with special characters of the password percent-encoded, and the files that it names must exist.',
    )
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const failures = cause instanceof AggregateError ? cause.errors : [cause]
    for (const failure of failures) {
      const sentence = describe(failure, target)
      if (sentence) return new StartupError(sentence, { cause: error })
    }
  }
  return error
}
