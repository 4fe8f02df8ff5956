import { once } from 'node:events'
import { readdir } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'
import { json } from 'node:stream/consumers'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { until } from '../../support/until.ts'
import { formOf, openWorkspaces } from '../../support/workspaces.ts'

const mebibyte = 1024 * 1024
const block = 4096
let isLow = false
/** The reads of the state of the disk after which it is low. */
let readsUntilLow = Number.POSITIVE_INFINITY
const hostDisk = {
  read: async () => {
    readsUntilLow -= 1
    return { freeBytes: 1, floorBytes: 10, freeFiles: null, isLow: isLow || readsUntilLow < 0 }
  },
}
const hostFull = { status: 507, body: { error: { code: 'host_disk_full' } } }
const noSpace = { status: 507, body: { error: { code: 'no_space' } } }

let workspaces: Awaited<ReturnType<typeof openWorkspaces>>
beforeAll(async () => {
  workspaces = await openWorkspaces({ hostDisk })
})
afterAll(() => workspaces.close())
beforeEach(() => {
  isLow = false
  readsUntilLow = Number.POSITIVE_INFINITY
})

/** An instance that does not run, and has 100 MB of disk. */
async function createInstance() {
  const files = await workspaces.createInstance()
  const { $client } = workspaces.chowder.database.db
  await $client.query(`UPDATE instances SET resources = '{"disk_mb": 100}' WHERE id = $1`, [files.id])
  return {
    ...files,
    /** The size that is stored, and whether a worker is to measure it again. */
    async stored(): Promise<{ bytes: number; isFull: boolean }> {
      const { rows } = await $client.query('SELECT disk_bytes, is_full FROM instance_use WHERE instance_id = $1', [
        files.id,
      ])
      return { bytes: Number(rows[0]?.disk_bytes ?? 0), isFull: rows[0]?.is_full ?? false }
    },
    /** Uploads a file without a Content-Length. */
    async stream(megabytes: number): Promise<{ status: number; body: unknown }> {
      const upload = files.startUpload()
      let isOver = false
      const answer = once(upload, 'response').then(async ([response]) => {
        isOver = true
        const { statusCode = 0 } = response as IncomingMessage
        return { status: statusCode, body: statusCode === 204 ? null : await json(response) }
      })
      upload.on('error', () => {}) // what is sent after the answer
      for (let sent = 0; sent < megabytes && !isOver; sent += 1) {
        const isFlushed = upload.write(Buffer.alloc(mebibyte, 1))
        if (!isFlushed) await Promise.race([once(upload, 'drain'), answer])
      }
      upload.end('\r\n--B--\r\n')
      return answer
    },
    shown: () => readdir(files.workspace('.')),
  }
}
type Files = Awaited<ReturnType<typeof createInstance>>

async function expectNothingLeft(files: Files): Promise<void> {
  expect(await files.shown()).toEqual(['.keep'])
  await until('the part of the file to be removed', async () => (await files.temporaryFiles()).length === 0)
}

test('F20: while the disk of the host is low no call writes, and each does so afterwards', async () => {
  const files = await createInstance()
  await files.plant('file', 'x')
  isLow = true
  const form = () => formOf([['path', 'uploaded'], ['file', new Blob(['x'])]]) // biome-ignore format: short
  const formFileFirst = () => formOf([['file', new Blob(['x'])], ['path', 'late']]) // biome-ignore format: short
  expect(await files.put('written', 'x')).toMatchObject(hostFull)
  expect(await files.mkdir('made')).toMatchObject(hostFull)
  expect(await files.move({ source: 'file', destination: 'in/moved' })).toMatchObject(hostFull)
  expect((await files.upload(form())).status).toBe(507)
  expect((await files.upload(formFileFirst())).status).toBe(507)
  expect(await files.stream(64)).toMatchObject(hostFull)
  expect(await files.stored()).toEqual({ bytes: 0, isFull: false })
  expect((await files.content('file')).status).toBe(200)
  expect((await files.remove('file')).status).toBe(204)
  await expectNothingLeft(files)

  isLow = false
  expect((await files.put('written', 'x')).status).toBe(204)
  expect((await files.mkdir('made')).status).toBe(204)
  expect((await files.move({ source: 'written', destination: 'in/moved' })).status).toBe(204)
  expect((await files.upload(form())).status).toBe(204)
  expect((await files.upload(formFileFirst())).status).toBe(204)
  expect((await files.stream(8)).status).toBe(204)
  expect((await files.shown()).sort()).toEqual(['.keep', 'in', 'late', 'made', 'new.bin', 'uploaded'])
})

test('F20: an upload without a length ends where the disk of the host becomes low, and leaves nothing', async () => {
  const files = await createInstance()
  readsUntilLow = 3
  expect(await files.stream(64)).toMatchObject(hostFull)
  expect(await files.stored()).toEqual({ bytes: 0, isFull: false })
  await expectNothingLeft(files)
})

test('A7: an upload without a length ends at the limit of the instance, also one that is stopped', async () => {
  const files = await createInstance()
  expect((await files.stream(60)).status).toBe(204)
  const { bytes } = await files.stored()
  expect(bytes).toBeGreaterThan(60 * mebibyte)
  expect(bytes).toBeLessThan(60 * mebibyte + 10 * block)
  expect((await files.remove('new.bin')).status).toBe(204)
  expect(await files.stream(60)).toMatchObject(noSpace)
  expect(await files.stored()).toEqual({ bytes, isFull: true })
  await expectNothingLeft(files)
  expect((await files.stream(30)).status).toBe(204)
})

test('A7: uploads at the same time share the limit of the instance', async () => {
  const files = await createInstance()
  const answers = await Promise.all([files.stream(60), files.stream(60)])
  const refused = answers.filter(({ status }) => status === 507)
  expect(refused.length).toBeGreaterThanOrEqual(1)
  expect((await files.stored()).bytes).toBeLessThan(61 * mebibyte)
})

test('A8: a path that is written has 64 levels at most, and each folder counts 4 KiB', async () => {
  const files = await createInstance()
  const levels = (count: number) => Array.from({ length: count }, () => 'd').join('/')
  await files.plant('file', 'x')
  const tooDeep = (param: string) => ({
    status: 400,
    body: {
      detail: expect.stringContaining(`${param} must not have more than 64 levels`),
      error: { code: 'invalid_path', param },
    },
  })
  expect(await files.mkdir(levels(65))).toMatchObject(tooDeep('path'))
  expect(await files.put(levels(65), 'x')).toMatchObject(tooDeep('path'))
  expect(await files.move({ source: 'file', destination: levels(65) })).toMatchObject(tooDeep('destination'))
  const form = formOf([['path', levels(65)], ['file', new Blob(['x'])]]) // biome-ignore format: short
  expect((await files.upload(form)).status).toBe(400)
  expect((await files.stored()).bytes).toBe(0)
  expect((await files.shown()).sort()).toEqual(['.keep', 'file'])

  expect((await files.mkdir(`./${levels(64)}//`)).status).toBe(204)
  const { bytes } = await files.stored()
  expect(bytes).toBeGreaterThanOrEqual(64 * block)
  expect(bytes).toBeLessThanOrEqual(66 * block)
  expect((await files.put(`${levels(63)}/file`, 'x')).status).toBe(204)
  // The agent may go deeper: its files are read and deleted as others are.
  await files.plant(`${levels(70)}/file`, 'mine')
  expect((await files.content(`${levels(70)}/file`)).body.content).toBe('mine')
  expect((await files.move({ source: `${levels(70)}/file`, destination: 'moved' })).status).toBe(204)
  expect((await files.remove(levels(1), '&recursive=true')).status).toBe(204)
})
