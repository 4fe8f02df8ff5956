// The product as an operator runs it, `chowder.ts <role>`, on the fake cloud at CLOUD_URL instead of SANDBOX_DRIVER.
import closeWithGrace from 'close-with-grace'
import { type Closers, roles, start } from '#composition/start.ts'
import { loadConfig } from '#platform/config.ts'
import { atMost } from '#platform/deadline.ts'
import { createLog } from '#platform/log.ts'
import { openCloudDriver } from '../support/cloud-driver.ts'

const shutdownTimeoutMs = 120_000
const startEndsMs = 30_000

const role = roles.find((known) => known === process.argv[2])
const { CLOUD_URL: cloudUrl } = process.env
if (!role || !cloudUrl) throw new Error('usage: CLOUD_URL=… chowder.ts <role>')
const config = loadConfig()
const log = createLog(config.LOG_LEVEL, role, false)
const closers: Closers = []
const ending = new AbortController()
const starting = Promise.withResolvers<void>()

async function closeAll(): Promise<void> {
  for (let closer = closers.pop(); closer; closer = closers.pop()) {
    await closer.close({ interrupted: false }).catch((error: unknown) => log.warn({ err: error }, 'closing failed'))
  }
}

closeWithGrace({ delay: shutdownTimeoutMs, logger: log }, async ({ err, signal }) => {
  if (err) log.fatal({ err }, 'crashed')
  else log.info({ signal }, 'shutting down')
  ending.abort(new Error('It was told to end while it started.'))
  await atMost(startEndsMs, starting.promise)
  await closeAll()
})

try {
  await start(config, role, log, closers, ending.signal, async () =>
    openCloudDriver(cloudUrl, `${role} ${process.pid}`),
  )
} catch (error) {
  if (!ending.signal.aborted) {
    log.fatal({ err: error }, 'it could not start')
    await closeAll()
    process.exit(1)
  }
} finally {
  starting.resolve()
}
