import { readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { api } from '../support/api-client.ts'
import {
  type ChowderProcess,
  makeDataDir,
  removeDataDir,
  runChowder,
  startChowder,
} from '../support/chowder-process.ts'
import { processesIn } from '../support/run-folder.ts'
import { until } from '../support/until.ts'

describe('starting Chowder', () => {
  let dataDir: string
  let chowder: ChowderProcess

  beforeAll(async () => {
    dataDir = await makeDataDir()
    chowder = await startChowder({ dataDir })
  })

  afterAll(async () => {
    await chowder?.kill('SIGTERM')
    await removeDataDir(dataDir)
  })

  it('needs no environment, and shows the next step', async () => {
    expect((await api(chowder.url).get('/healthz')).body).toEqual({ status: 'ok' })
    expect((await api(chowder.url).get('/readyz')).body).toMatchObject({ status: 'ready' })
    expect(chowder.output()).toContain(dataDir)
    const nextStep = `curl -s ${chowder.url}/v1/organization/signup`
    await until('the next step', async () => chowder.output().includes(nextStep))
    expect(chowder.output()).toContain('Each agent is isolated in a jail')
  })

  it('a second one on the same data folder names the holder and ends with 1, and the first lives on', async () => {
    const { code, output } = await runChowder({ dataDir })
    expect(code).toBe(1)
    expect(output).toContain(String(chowder.pid))
    expect(output).toContain('in use by another Chowder')
    expect((await api(chowder.url).get('/readyz')).body).toMatchObject({ status: 'ready' })
  })

  it('a port that is taken is named, and the start ends with 1, nothing left running', async () => {
    const server = createServer()
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const address = server.address()
    const port = typeof address === 'object' && address ? String(address.port) : ''
    const other = await makeDataDir()
    try {
      const { code, output } = await runChowder({ dataDir: other, env: { PORT: port } })
      expect(code).toBe(1)
      expect(output).toContain(`Port ${port} on 127.0.0.1 is taken`)
      expect(output).not.toContain('    at ') // words, not a stack
      expect(await processesIn(other)).toEqual([])
    } finally {
      server.close()
      await removeDataDir(other)
    }
  })

  it('bad variables are all named at once, never with their values, and the start ends with 1', async () => {
    const env = {
      PORT: 'canary-port',
      DATABASE_URL: 'mysql://canary-user:canary-password@host/db',
      CHOWDER_SECRET_KEY: 'canary-key',
      LOG_LEVEL: 'canary-level',
      DATABASE_POOL: '0',
    }
    const { code, output } = await runChowder({ dataDir, env })
    expect(code).toBe(1)
    for (const name of Object.keys(env)) expect(output).toContain(name)
    expect(output).not.toContain('canary')
  })

  it('an unknown command names the known ones, and the start ends with 1', async () => {
    const { code, output } = await runChowder({ dataDir, role: 'serve' })
    expect(code).toBe(1)
    expect(output).toContain('all, api, worker, relay, migrate')
  })

  it('a Ctrl-C that comes twice, as it does under npm, stops everything in order', async () => {
    process.kill(chowder.pid, 'SIGINT')
    expect(await chowder.kill('SIGINT')).toBe(0)
    expect(await processesIn(dataDir)).toEqual([])
    chowder = await startChowder({ dataDir })
  })

  it("after kill -9 of everything, a stale pid file that names somebody else's process does not keep it from starting", async () => {
    const pidFile = join(dataDir, 'postgres/data/postmaster.pid')
    const [pid = '', ...rest] = (await readFile(pidFile, 'utf8')).split('\n')
    await chowder.kill('SIGKILL')
    process.kill(Number(pid), 'SIGKILL')
    await writeFile(pidFile, [String(process.pid), ...rest].join('\n'))
    chowder = await startChowder({ dataDir })
    expect((await api(chowder.url).get('/readyz')).body).toMatchObject({ status: 'ready' })
  })
})
