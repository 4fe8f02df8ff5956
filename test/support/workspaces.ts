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

/** A form in the order that is given: text, or a file's bytes. */
export function formOf(fields: readonly (readonly [string, string | Blob])[]): FormData {
  const form = new FormData()
  for (const [name, value] of fields) {
    if (typeof value === 'string') form.append(name, value)
    else form.append(name, value, 'any-name')
  }
  return form
}

/** Chowder with local sandboxes, listening, and an organization of it whose instances have workspaces to look into. */
export async function openWorkspaces(options: Omit<TestChowderOptions, 'sandboxes'> = {}) {
  const host = await LocalHost.make()
  const chowder = await openTestChowder({ sandboxes: host.driver, ...options })
  await chowder.app.listen({ port: 0, host: '127.0.0.1' })
  const url = `http://127.0.0.1:${(chowder.app.server.address() as AddressInfo).port}`
  const organization = await chowder.signUp()
  const client = api(url, organization.key)
  const within = () => AbortSignal.timeout(20_000)

  /** All in an agent's folder is the agent's. */
  async function own(id: string) {
    const home = host.controlFile(id, 'home')
    const { uid, gid } = await stat(home)
    await run('chown', ['-hR', `${uid}:${gid}`, home])
  }

  /** An instance with a sandbox that does not run, and what the agent could do in it. */
  async function made(options: { withSandbox?: boolean } = {}) {
    const { body } = await client.post('/v1/instances', { name: 'agent' })
    const id: string = body.id
    if (options.withSandbox !== false) {
      await host.driver.create(host.specOf(id), within())
      await host.driver.files(id).write('state/workspace/.keep', Buffer.alloc(0), {}, within())
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
      async plant(path: string, content: string | Buffer) {
        await mkdir(dirname(workspace(path)), { recursive: true })
        await writeFile(workspace(path), content)
        await own(id)
      },
      put: (path: string, content: string) =>
        chowder.call('PUT', `${base}/content`, { key: organization.key, body: { path, content } }),
      content: (path: string) => client.get(`${base}/content${withPath(path)}`),
      list: (path?: string) => client.get(base + (path === undefined ? '' : withPath(path))),
      stat: (path: string) => client.get(`${base}/stat${withPath(path)}`),
      move: (body: object) => client.post(`${base}/move`, body),
      mkdir: (path: string) => client.post(`${base}/mkdir`, { path }),
      remove: (path: string, rest = '') => client.delete(base + withPath(path, rest)),
      async upload(body: FormData | string, more: Record<string, string> = {}) {
        const answer = await fetch(`${url}${base}/upload`, { method: 'POST', body, headers: { ...headers, ...more } })
        const said = await answer.text()
        return { status: answer.status, detail: said === '' ? undefined : JSON.parse(said).detail }
      },
      download: (path: string, more: Record<string, string> = {}, method = 'GET') =>
        fetch(`${url}${base}/download${withPath(path)}`, { method, headers: { ...headers, ...more } }),
      /** What is on its way into the sandbox, or was left there. */
      leftOvers: async () => [
        ...(await readdir(host.controlFile(id, 'uploads'))),
        ...(await readdir(join(home, 'tmp')).catch(() => [])),
      ],
      /** Begins to send a form whose file has no end yet. */
      begin(headersOfForm: Record<string, string | number> = {}) {
        const sending = httpRequest(`${url}${base}/upload`, {
          method: 'POST',
          headers: { ...headers, 'content-type': 'multipart/form-data; boundary=B', ...headersOfForm },
        })
        sending.write('--B\r\ncontent-disposition: form-data; name="path"\r\n\r\nnew.bin\r\n')
        sending.write('--B\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nbegin')
        return sending
      },
    }
  }

  return {
    host,
    chowder,
    url,
    organization,
    client,
    made,
    async close() {
      await chowder.close()
      await host.remove()
    },
  }
}
