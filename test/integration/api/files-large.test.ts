import { execFile } from 'node:child_process'
import { mkdir, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { describe, expect, test } from 'vitest'
import { LocalHost } from '../../support/local-host.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { formOf, openWorkspaces } from '../../support/workspaces.ts'

const run = promisify(execFile)
const isRoot = process.getuid?.() === 0
const deadline = () => AbortSignal.timeout(20_000)
const mebibyte = 1024 * 1024
const transferClient = fileURLToPath(new URL('../../support/transfer-client.mjs', import.meta.url))

/** Uploads and downloads a file, and measures the memory of the server, which must not hold the file. */
async function transferLarge(bytes: number): Promise<void> {
  const workspaces = await openWorkspaces()
  const { base } = await workspaces.createInstance()
  const transfer = async (action: 'upload' | 'download', bytes: number) => {
    const target = `${workspaces.url}${base}/${action}?path=large.bin`
    const { stdout } = await run(process.execPath, [
      transferClient,
      action,
      target,
      workspaces.organization.key,
      String(bytes),
    ])
    return JSON.parse(stdout)
  }
  await transfer('upload', 16 * mebibyte)
  await transfer('download', 16 * mebibyte)
  const before = process.memoryUsage.rss()
  let peak = before
  const watch = setInterval(() => {
    peak = Math.max(peak, process.memoryUsage.rss())
  }, 20)
  const startedAt = performance.now()
  const up = await transfer('upload', bytes)
  const upMs = performance.now() - startedAt
  const down = await transfer('download', bytes)
  const downMs = performance.now() - startedAt - upMs
  clearInterval(watch)
  console.info(
    `${bytes / mebibyte} MiB: up ${Math.round(upMs)} ms, down ${Math.round(downMs)} ms, ${Math.round((peak - before) / mebibyte)} MiB more memory`,
  )
  await workspaces.close()
  expect(up.status).toBe(204)
  expect(down).toEqual({ status: 200, received: bytes, sha256: up.sha256 })
  expect(peak - before).toBeLessThan(200 * mebibyte) // garbage takes some; a whole body in memory would take 256 MiB
}

const large = 'is uploaded and downloaded whole while the memory of the server stays flat'
test(`a file of 256 MiB ${large}`, { timeout: 300_000 }, () => transferLarge(256 * mebibyte))
test(`a file of 1 GiB ${large}`, { timeout: 300_000, tags: ['long'] }, () => transferLarge(1024 * mebibyte))

describe.skipIf(!isRoot)('a full disk (needs root for a small mount)', () => {
  test('F20: is a 507 with the reason, keeps the old file and no part of the new one, until there is space again', async () => {
    const host = await LocalHost.make()
    const disk = join(host.dataDir, 'sandboxes')
    await mkdir(disk)
    await run('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', disk])
    const chowder = await openTestChowder({ sandboxes: host.driver })
    try {
      const { key } = await chowder.signUp()
      const { body: instance } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'agent' } })
      await host.driver.create(host.specOf(instance.id), deadline())
      const base = `/v1/instances/${instance.id}/files`
      const put = (path: string, content: string) =>
        chowder.call('PUT', `${base}/content`, { key, body: { path, content } })
      expect((await put('file', 'old')).status).toBe(204)
      const form = new Response(formOf([['path', 'file'], ['file', new Blob([Buffer.alloc(8 * mebibyte)])]])) // biome-ignore format: short
      const upload = await chowder.app.inject({
        method: 'POST',
        url: `${base}/upload`,
        headers: { authorization: `Bearer ${key}`, 'content-type': form.headers.get('content-type') ?? '' },
        payload: Buffer.from(await form.arrayBuffer()),
      })
      expect([upload.statusCode, upload.json().detail]).toEqual([507, expect.stringContaining('full')])
      expect(await readdir(host.controlFile(instance.id, 'uploads'))).toEqual([])
      const { body } = await chowder.call('GET', `${base}/content?path=file`, { key })
      expect(body.content).toBe('old')
      for (let index = 0; index < 3; index += 1)
        expect((await put(`full${index}`, 'x'.repeat(mebibyte))).status).toBe(204)
      expect((await put('file', 'x'.repeat(mebibyte))).status).toBe(507)
      expect((await chowder.call('DELETE', `${base}?path=full0`, { key })).status).toBe(204)
      expect((await put('file', 'new')).status).toBe(204)
    } finally {
      await chowder.close()
      await run('umount', ['-l', disk])
      await rm(host.dataDir, { recursive: true, force: true })
    }
  })
})
