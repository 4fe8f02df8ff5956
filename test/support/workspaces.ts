import { execFile } from 'node:child_process'
import { mkdir, readdir, stat, writeFile } from 'node:fs/promises'
import { request as httpRequest } from 'node:http'
import type { AddressInfo } from 'node:net'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { api } from './api-client.ts'
import { LocalHost } from './local-host.ts'
import { openTestChowder, type TestChowderOptions } from './test-chowder.ts'

const run = promisify(execFile)

/** A form with the fields in the given order. */
export function formOf(fields: readonly (readonly [string, string | Blob])[]): FormData {
  const form = new FormData()
  for (const [name, value] of fields) {
    if (typeof value === 'string') form.append(name, value)
    else form.append(name, value, 'any-name')
  }
  return form
}

/** Starts Chowder with local sandboxes and an organization, whose instances have workspaces in the file system. */
export async function openWorkspaces(options: Omit<TestChowderOptions, 'sandboxes'> = {}) {
  const host = await LocalHost.make()
  const chowder = await openTestChowder({ sandboxes: host.driver, ...options })
  await chowder.app.listen({ port: 0, host: '127.0.0.1' })
  const url = `http://127.0.0.1:${(chowder.app.server.address() as AddressInfo).port}`
  const organization = await chowder.signUp()
  const client = api(url, organization.key)
  const deadline = () => AbortSignal.timeout(20_000)

  /** Gives all files of an agent's folder to the agent's user. */
  async function giveToAgent(id: string) {
    const home = host.controlFile(id, 'home')
    const { uid, gid } = await stat(home)
    await run('chown', ['-hR', `${uid}:${gid}`, home])
  }

  /** Creates an instance with a sandbox that does not run; returns the calls of the API for its files. */
  async function createInstance(options: { withSandbox?: boolean } = {}) {
    const { body } = await client.post('/v1/instances', { name: 'agent' })
    const id: string = body.id
    if (options.withSandbox !== false) {
      await host.driver.create(host.specOf(id), deadline())
      await host.driver.files(id).write('state/workspace/.keep', Buffer.alloc(0), {}, deadline())
      await chowder.database.db.$client.query('UPDATE instances SET sandbox_id = $2 WHERE id = $1', [id, 'local-1'])
    }
    const home = host.controlFile(id, 'home')
    const workspace = (path: string) => join(home, 'state/workspace', path)
    const base = `/v1/instances/${id}/files`
    const withPath = (path: string, rest = '') => `?path=${encodeURIComponent(path)}${rest}`
    const headers = { authorization: `Bearer ${organization.key}` }
    return {
      id,
      home,
      workspace,
      base,
      /** Writes a file as the agent would. */
      async plant(path: string, content: string | Buffer) {
        await mkdir(dirname(workspace(path)), { recursive: true })
        await writeFile(workspace(path), content)
        await giveToAgent(id)
      },
      put: (path: string, content: string) =>
        chowder.call('PUT', `${base}/content`, { key: organization.key, body: { path, content } }),
      content: (path: string) => client.get(`${base}/content${withPath(path)}`),
      list: (path?: string) => client.get(base + (path === undefined ? '' : withPath(path))),
      stat: (path: string) => client.get(`${base}/stat${withPath(path)}`),
      move: (body: object) => client.post(`${base}/move`, body),
      mkdir: (path: string) => client.post(`${base}/mkdir`, { path }),
      remove: (path: string, rest = '') => client.delete(base + withPath(path, rest)),
      async upload(body: FormData | string, extraHeaders: Record<string, string> = {}) {
        const answer = await fetch(`${url}${base}/upload`, {
          method: 'POST',
          body,
          headers: { ...headers, ...extraHeaders },
        })
        const text = await answer.text()
        return { status: answer.status, detail: text === '' ? undefined : JSON.parse(text).detail }
      },
      download: (path: string, extraHeaders: Record<string, string> = {}, method = 'GET') =>
        fetch(`${url}${base}/download${withPath(path)}`, { method, headers: { ...headers, ...extraHeaders } }),
      /** The files of uploads that are not finished, or were not removed. */
      temporaryFiles: async () => [
        ...(await readdir(host.controlFile(id, 'uploads'))),
        ...(await readdir(join(home, 'tmp')).catch(() => [])),
      ],
      /** Starts an upload whose file has not ended. */
      startUpload() {
        const upload = httpRequest(`${url}${base}/upload`, {
          method: 'POST',
          headers: { ...headers, 'content-type': 'multipart/form-data; boundary=B' },
        })
        upload.write('--B\r\ncontent-disposition: form-data; name="path"\r\n\r\nnew.bin\r\n')
        upload.write('--B\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nbegin')
        return upload
      },
    }
  }

  return {
    host,
    chowder,
    url,
    organization,
    client,
    createInstance,
    async close() {
      await chowder.close()
      await host.remove()
    },
  }
}
