import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { readdir, readFile, stat, truncate } from 'node:fs/promises'
import type { ClientRequest, IncomingMessage } from 'node:http'
import { createConnection } from 'node:net'
import { text } from 'node:stream/consumers'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { errorBody } from '../../support/error-body.ts'
import { until } from '../../support/until.ts'
import { formOf, openWorkspaces } from '../../support/workspaces.ts'

const run = promisify(execFile)
const mebibyte = 1024 * 1024
const filesMaxBytes = 3 * mebibyte
/** Shorter than in production, so that the tests reach them. */
const bodyTimes = { whole: 4000, linger: 10_000 }

describe('the files of an instance,', () => {
  let workspaces: Awaited<ReturnType<typeof openWorkspaces>>
  const createInstance = () => workspaces.createInstance()

  beforeAll(async () => {
    workspaces = await openWorkspaces({ filesMaxBytes, bodyTimes })
  })
  afterAll(() => workspaces.close())

  async function readAnswer(request: ClientRequest): Promise<{ status: number; body: { detail: unknown } }> {
    const [answer] = (await once(request, 'response')) as [IncomingMessage]
    return { status: answer.statusCode ?? 0, body: JSON.parse(await text(answer)) }
  }

  describe('uploaded', () => {
    const bytes = Buffer.alloc(100_000, 'bytes\r\n--')

    test.each(['path first', 'file first'])('arrive with the %s and replace an existing file', async (order) => {
      const files = await createInstance()
      await files.plant('deep/target.bin', 'old')
      const fields = [['path', 'deep/target.bin'], ['file', new Blob([bytes])]] as const // biome-ignore format: short
      const form = formOf(order === 'path first' ? fields : fields.toReversed())
      expect(await files.upload(form)).toEqual({ status: 204, detail: undefined })
      expect(await readFile(files.workspace('deep/target.bin'))).toEqual(bytes)
      expect((await stat(files.workspace('deep/target.bin'))).uid).toBe((await stat(files.home)).uid)
      expect(await files.temporaryFiles()).toEqual([])
    })

    test('are refused, and leave nothing behind, unless the form is complete and has both fields once', async () => {
      const files = await createInstance()
      const file = new Blob(['x'])
      const formType = { 'content-type': 'multipart/form-data; boundary=B' }
      const head = '--B\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nhalf'
      const path = '--B\r\ncontent-disposition: form-data; name="path"\r\n\r\nx\r\n'
      const answers = [
        await files.upload(formOf([['path', 'x']])),
        await files.upload(formOf([['file', file]])),
        await files.upload(formOf([['path', 'x'], ['file', 'text, no file']])), // biome-ignore format: short
        await files.upload(formOf([['path', 'x'], ['path', 'y'], ['file', file]])), // biome-ignore format: short
        await files.upload(formOf([['path', 'x'], ['file', file], ['file', file]])), // biome-ignore format: short
        await files.upload(formOf([['file', file], ['other', 'x']])), // biome-ignore format: short
        await files.upload(formOf([['__proto__', 'x'], ['path', 'x'], ['file', file]])), // biome-ignore format: short
        await files.upload(head, formType),
        await files.upload(path + head, formType),
        await files.upload(head, { 'content-type': 'multipart/form-data' }),
        await files.upload('', formType),
        await files.upload('no form', formType),
      ]
      for (const answer of answers) expect(answer).toEqual({ status: 400, detail: expect.stringContaining('form') })
      expect(await files.upload('{"path":"x"}', { 'content-type': 'application/json' })).toEqual({
        status: 415,
        detail: expect.stringContaining('multipart/form-data'),
      })
      expect((await files.upload('x', { 'content-type': 'text/plain' })).status).toBe(415)
      expect(await files.temporaryFiles()).toEqual([])
    })

    test('are a 413 when they are too large, with and without a Content-Length, also while the client still sends', async () => {
      const files = await createInstance()
      await files.plant('target', 'old')
      const most = new Blob([Buffer.alloc(filesMaxBytes)])
      expect((await files.upload(formOf([['path', 'most'], ['file', most]]))).status).toBe(204) // biome-ignore format: short
      const more = new Blob([Buffer.alloc(filesMaxBytes + 1)])
      const tooLarge = { status: 413, detail: expect.stringContaining(String(filesMaxBytes)) }
      expect(await files.upload(formOf([['path', 'target'], ['file', more]]))).toEqual(tooLarge) // biome-ignore format: short
      expect(await files.upload(formOf([['file', more], ['path', 'target']]))).toEqual(tooLarge) // biome-ignore format: short
      const far = new Blob([Buffer.alloc(20 * filesMaxBytes)])
      expect(await files.upload(formOf([['path', 'target'], ['file', far]]))).toEqual(tooLarge) // biome-ignore format: short

      const socket = createConnection(Number(new URL(workspaces.url).port), '127.0.0.1').pause()
      socket.write(
        `POST ${files.base}/upload HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${workspaces.organization.key}\r\ncontent-type: multipart/form-data; boundary=B\r\ntransfer-encoding: chunked\r\n\r\n`,
      )
      socket.write('42\r\n--B\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n\r\n')
      const block = Buffer.concat([Buffer.from('100000\r\n'), Buffer.alloc(mebibyte), Buffer.from('\r\n')])
      for (let sent = 0; sent < 20; sent += 1) await new Promise((done) => socket.write(block, done))
      socket.end('0\r\n\r\n')
      expect(await text(socket)).toMatch(/^HTTP\/1\.1 413 /)
      expect(await readFile(files.workspace('target'), 'utf8')).toBe('old')
      expect((await readdir(files.workspace('.'))).sort()).toEqual(['.keep', 'most', 'target'])
      expect(await files.temporaryFiles()).toEqual([])
    })

    test('are removed from the disk when the client leaves half-way', async () => {
      const files = await createInstance()
      const upload = files.startUpload()
      upload.on('error', () => {})
      await until('the upload to be on the disk', async () => (await files.temporaryFiles()).length === 1)
      upload.destroy()
      await until('the upload to be removed', async () => (await files.temporaryFiles()).length === 0)
      expect(await readdir(files.workspace('.'))).toEqual(['.keep'])
      const lines = workspaces.chowder.logged.filter((line) => line.includes(files.id))
      expect(lines.filter((line) => line.includes('request failed'))).toEqual([])
    })

    test('may take longer than other bodies while bytes arrive, and are a 408 when they stall', {
      timeout: 60_000,
    }, async () => {
      const files = await createInstance()
      const upload = files.startUpload()
      const answer = readAnswer(upload)
      const startedAt = performance.now()
      while (performance.now() - startedAt < 2.5 * bodyTimes.whole) {
        await new Promise((resolve) => setTimeout(resolve, bodyTimes.whole / 8))
        upload.write('on')
      }
      expect(await files.temporaryFiles()).toHaveLength(1)
      expect(await answer).toEqual({
        status: 408,
        body: errorBody('timed_out', 'No bytes of the upload arrived for 4 seconds. Send it again.'),
      })
      await until('the upload to be removed', async () => (await files.temporaryFiles()).length === 0)
    })
  })

  test('F19: a JSON body that arrives too slowly is a 408, however steadily it arrives', {
    timeout: 60_000,
  }, async () => {
    const files = await createInstance()
    const socket = createConnection(Number(new URL(workspaces.url).port), '127.0.0.1')
    socket.write(
      `PUT ${files.base}/content HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${workspaces.organization.key}\r\nx-request-id: trickle\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{`,
    )
    const trickle = setInterval(() => socket.write(' '), 50)
    const startedAt = performance.now()
    let answer = ''
    socket.setEncoding('utf8').on('data', (part) => {
      clearInterval(trickle)
      answer += part
    })
    socket.on('error', () => {}) // what was sent after the answer
    await once(socket, 'close')
    expect(answer).toMatch(/^HTTP\/1\.1 408 /)
    expect(answer).toContain('x-request-id: trickle')
    expect(answer).toContain('The body did not arrive within 4 seconds. Send it faster.')
    expect(performance.now() - startedAt).toBeLessThan(bodyTimes.whole * 4)
  })

  test('a connection takes the next requests after the deadline of a body that was read', async () => {
    const files = await createInstance()
    for (const name of ['a', 'b', 'c']) expect((await files.put(name, 'x')).status).toBe(204)
    await new Promise((resolve) => setTimeout(resolve, bodyTimes.whole * 1.5))
    expect((await files.list()).body.entries).toHaveLength(3)
  })

  describe('downloaded', () => {
    test('are sent in ranges on request, with the name and the type of any file name', async () => {
      const files = await createInstance()
      await files.plant('dir/zehn ü".txt', '0123456789')
      const get = async (range: string, headers = {}) => {
        const answer = await files.download('dir/zehn ü".txt', { range, ...headers })
        return [answer.status, answer.headers.get('content-range'), await answer.text()]
      }
      expect(await get('bytes=2-4')).toEqual([206, 'bytes 2-4/10', '234'])
      expect(await get('bytes=8-')).toEqual([206, 'bytes 8-9/10', '89'])
      expect(await get('bytes=-3')).toEqual([206, 'bytes 7-9/10', '789'])
      expect(await get('bytes=0-99')).toEqual([206, 'bytes 0-9/10', '0123456789'])
      expect(await get('bytes=5-2')).toEqual([200, null, '0123456789'])
      expect(await get('bytes=0-1,3-4')).toEqual([200, null, '0123456789'])
      expect((await get('bytes=10-')).slice(0, 2)).toEqual([416, 'bytes */10'])
      const whole = await files.download('dir/zehn ü".txt')
      expect(whole.headers.get('content-disposition')).toBe(
        `attachment; filename="zehn ?\\".txt"; filename*=UTF-8''zehn%20%C3%BC%22.txt`,
      )
      expect(whole.headers.get('content-type')).toBe('text/plain')
      const etag = whole.headers.get('etag') ?? ''
      expect(await get('bytes=2-4', { 'if-range': etag })).toEqual([206, 'bytes 2-4/10', '234'])
      expect(await get('bytes=2-4', { 'if-range': '"other"' })).toEqual([200, null, '0123456789'])
      expect((await files.download('dir/zehn ü".txt', { 'if-none-match': etag })).status).toBe(304)
      await files.put('dir/zehn ü".txt', 'changed')
      expect((await files.download('dir/zehn ü".txt', { 'if-none-match': etag })).status).toBe(200)
    })

    test('are described by HEAD without a read of the file', async () => {
      const files = await createInstance()
      await files.plant('sparse', '')
      await truncate(files.workspace('sparse'), 10 * 1024 ** 3)
      const startedAt = performance.now()
      const head = await files.download('sparse', {}, 'HEAD')
      expect([head.status, head.headers.get('content-length')]).toEqual([200, String(10 * 1024 ** 3)])
      expect(performance.now() - startedAt).toBeLessThan(3000)
    })

    test('close the file when the client leaves half-way', async () => {
      const files = await createInstance()
      await files.plant('sparse', '')
      await truncate(files.workspace('sparse'), 10 * 1024 ** 3)
      const openFiles = async () => {
        const links = await run('readlink', ['-f', `/proc/${process.pid}/fd/`]).then(() =>
          readdir(`/proc/${process.pid}/fd`),
        )
        const targets = await Promise.all(
          links.map((fd) =>
            run('readlink', [`/proc/${process.pid}/fd/${fd}`]).then(
              ({ stdout }) => stdout,
              () => '',
            ),
          ),
        )
        return targets.filter((target) => target.includes(files.id)).length
      }
      const abort = new AbortController()
      const download = await fetch(`${workspaces.url}${files.base}/download?path=sparse`, {
        headers: { authorization: `Bearer ${workspaces.organization.key}` },
        signal: abort.signal,
      })
      await download.body?.getReader().read()
      expect(await openFiles()).toBe(1)
      abort.abort()
      await until('the file to be closed', async () => (await openFiles()) === 0)
    })

    test('end with a broken connection, not with a short answer, when the file becomes shorter during the download', async () => {
      const files = await createInstance()
      await files.plant('shrinking', '')
      await truncate(files.workspace('shrinking'), 1024 ** 3)
      const answer = await files.download('shrinking')
      const reader = answer.body?.getReader()
      await reader?.read()
      await truncate(files.workspace('shrinking'), 10)
      const drain = async () => {
        while (!(await reader?.read())?.done);
      }
      await expect(drain()).rejects.toThrow()
    })
  })
})
