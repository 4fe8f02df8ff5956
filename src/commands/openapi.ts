import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import { pino } from 'pino'
import { apiSettings, createApi } from '#composition/api.ts'
import { loadConfig } from '#settings/config.ts'

const fail = (): never => {
  throw new Error('The document is made without a server.')
}

/** A placeholder for a part of the server: every property of it is a function that throws. */
const absent = new Proxy(fail, { get: () => fail }) as never

/** The whole API without database, sockets and environment, for its routes only. */
export async function createRoutes(): Promise<FastifyInstance> {
  const parts = {
    db: absent,
    processId: '',
    vault: absent,
    queue: absent,
    regions: absent,
    billing: null,
    hostDisk: absent,
    publicUrl: fail,
    areWorkersMissing: fail,
    isDraining: fail,
  }
  const { app } = await createApi({ ...parts, log: pino({ level: 'silent' }) }, apiSettings(loadConfig({})))
  await app.ready()
  return app
}

/** The committed form of the OpenAPI document: the same text for the same routes. */
export const documentText = (app: Pick<FastifyInstance, 'swagger'>): string =>
  `${JSON.stringify(app.swagger(), null, 2)}\n`

if (import.meta.main) {
  await writeFile(join(import.meta.dirname, '../../openapi.json'), documentText(await createRoutes()))
}
