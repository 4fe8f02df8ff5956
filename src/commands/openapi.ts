import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import { pino } from 'pino'
import { type AppDeps, buildApp } from '#app.ts'

const absent = (): never => {
  throw new Error('the document is made without a server')
}

/** A part of the server that the document needs to be there and never to work. */
const standIn = new Proxy(absent, { get: absent }) as never

/** What the API needs to be there to have its routes, without anything behind them. */
export const nothingBehind: AppDeps = {
  db: standIn,
  vault: standIn,
  queue: standIn,
  log: pino({ level: 'silent' }),
  limits: { requestsPerMinute: 1, signupsPerHour: 1, failedAuthPerMinute: 1, redis: null },
  trustedProxies: 0,
  filesMaxBytes: 0,
  sandboxes: standIn,
  baseUrls: standIn,
  sandboxDriver: 'local',
  defaultTier: 'shrimp',
  billing: null,
  publicUrl: absent,
  findCaller: absent,
  forgetCaller: absent,
  findSummary: absent,
  gatewayOf: absent,
  askGateway: absent,
  forgetGateway: absent,
  clawhubUrl: undefined,
  readiness: absent,
}

/** The whole API without a server behind it: it has all routes, and answers none. Needs no database, sockets or environment. */
export async function routesOnly() {
  const app = await buildApp(nothingBehind)
  await app.ready()
  return app
}

/** The OpenAPI document as it is committed: the same text for the same routes. */
export const documentText = (app: Pick<FastifyInstance, 'swagger'>): string =>
  `${JSON.stringify(app.swagger(), null, 2)}\n`

if (import.meta.main) {
  await writeFile(join(import.meta.dirname, '..', '..', 'openapi.json'), documentText(await routesOnly()))
}
