import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { chmod, mkdir, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { texts } from '#errors/texts.ts'
import { errorBody } from '../../support/error-body.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { formOf, openWorkspaces } from '../../support/workspaces.ts'

const run = promisify(execFile)
const mebibyte = 1024 * 1024

describe('the files of an instance', () => {
  let workspaces: Awaited<ReturnType<typeof openWorkspaces>>
  const createInstance = (options?: { withSandbox?: boolean }) => workspaces.createInstance(options)

  beforeAll(async () => {
    workspaces = await openWorkspaces()
  })
  afterAll(() => workspaces.close())

  test('are written, read, listed, described, moved, uploaded, downloaded and deleted', async () => {
    const files = await createInstance()
    expect((await files.mkdir('reports/2026')).status).toBe(204)
    expect((await files.put('config/custom.json', '{\n  "key": "wört"\n}')).status).toBe(204)
    expect(await files.content('config/custom.json')).toMatchObject({
      status: 200,
      body: { path: 'config/custom.json', content: '{\n  "key": "wört"\n}' },
    })
    expect((await files.move({ source: 'config/custom.json', destination: 'new/place.json' })).status).toBe(204)
    const logo = Buffer.from([0x89, 0x50, 0, 255])
    expect((await files.upload(formOf([['path', 'assets/logo.png'], ['file', new Blob([logo])]]))).status).toBe(204) // biome-ignore format: short
    const downloaded = await files.download('assets/logo.png')
    expect(Object.fromEntries(downloaded.headers)).toMatchObject({
      'content-type': 'image/png',
      'content-disposition': 'attachment; filename="logo.png"',
      'content-length': '4',
      'x-content-type-options': 'nosniff',
      'accept-ranges': 'bytes',
      'x-request-id': expect.any(String),
    })
    expect(Buffer.from(await downloaded.arrayBuffer())).toEqual(logo)
    expect((await files.stat('assets/logo.png')).body).toMatchObject({
      name: 'logo.png',
      path: 'assets/logo.png',
      is_dir: false,
      size: 4,
    })
    const root = await files.list()
    expect(root.body).toMatchObject({ path: '.', truncated: false })
    expect(root.body.entries.map(({ path }: { path: string }) => path)).toEqual(['assets', 'config', 'new', 'reports'])
    expect((await files.remove('new', '&recursive=true')).status).toBe(204)
    expect((await files.stat('new')).status).toBe(404)
  })

  test('are listed by name, with hidden files, times, sizes and permissions in the format of ls', async () => {
    const files = await createInstance()
    await files.plant('b/file', 'x')
    await files.plant('.hidden', 'four')
    await files.plant('a.sh', 'x')
    await chmod(files.workspace('a.sh'), 0o751)
    await chmod(files.workspace('b'), 0o755)
    await symlink('a.sh', files.workspace('link'))
    const { entries } = (await files.list('.')).body
    expect(
      entries.map(({ name, is_dir, size, permissions }: Record<string, unknown>) => [name, is_dir, size, permissions]),
    ).toEqual([
      ['.hidden', false, 4, '-rw-r--r--'],
      ['a.sh', false, 1, '-rwxr-x--x'],
      ['b', true, 0, 'drwxr-xr-x'],
      ['link', false, 4, 'lrwxrwxrwx'],
    ])
    for (const { mod_time } of entries) expect(mod_time).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/)
    expect((await files.list('./b//')).body.entries).toMatchObject([{ name: 'file', path: 'b/file' }])
    expect((await files.stat('.')).body).toMatchObject({ name: '.', path: '.', is_dir: true, size: 0 })
  })

  test('give the same 404 for an instance of another organization and for an unknown one', async () => {
    const files = await createInstance()
    await files.plant('secret', 'x')
    const other = await workspaces.chowder.signUp()
    const foreign = await workspaces.chowder.call('GET', `${files.base}/content?path=secret`, { key: other.key })
    const unknown = `/v1/instances/${randomUUID()}/files/content?path=secret`
    const missing = await workspaces.chowder.call('GET', unknown, { key: other.key })
    const refused = errorBody('instance_not_found', 'Instance not found.')
    expect([foreign, missing]).toMatchObject([
      { status: 404, body: refused },
      { status: 404, body: refused },
    ])
  })

  test.each([
    ['/etc/passwd', 'begin with /'],
    ['../openclaw.json', '".."'],
    ['a/../../openclaw.json', '".."'],
    ['a/..', '".."'],
    ['a\\b', 'backslash'],
    ['a\0b', 'NUL'],
  ])('are refused by every call, with the rule, for the path %j', async (path, rule) => {
    const files = await createInstance()
    await files.plant('real', 'x')
    const answers = [
      await files.list(path),
      await files.stat(path),
      await files.content(path),
      await files.put(path, 'x'),
      await files.move({ source: path, destination: 'stolen' }),
      await files.move({ source: 'real', destination: path }),
      await files.mkdir(path),
      await files.remove(path, '&recursive=true'),
    ].map(({ status, body }) => [status, body.detail])
    const download = await files.download(path)
    answers.push([download.status, ((await download.json()) as { detail: string }).detail])
    const upload = await files.upload(formOf([['path', path], ['file', new Blob(['x'])]])) // biome-ignore format: short
    answers.push([upload.status, upload.detail])
    for (const [status, detail] of answers) expect([status, detail]).toEqual([400, expect.stringContaining(rule)])
    expect(await readdir(files.workspace('.'))).toEqual(['.keep', 'real'])
    expect(await files.temporaryFiles()).toEqual([])
  })

  test('that are in the way of a call are named by what they are', async () => {
    const files = await createInstance()
    await files.plant('file', 'x')
    await files.plant('folder/file', 'x')
    await symlink('file', files.workspace('link'))
    await run('mkfifo', [files.workspace('pipe')])
    const noFolder = 'The path, or a part of it, names a file. A directory is needed there.'
    const refusals: [string, { status: number; body: { error: { code: string }; detail: unknown } }[]][] = [
      [noFolder, [await files.list('file'), await files.mkdir('file'), await files.put('file/below', 'x')]],
      [texts.moveIntoItself, [await files.move({ source: 'folder', destination: 'folder/below' })]],
      [texts.nameTooLong, [await files.put('x'.repeat(256), 'x')]],
      [texts.pathIsLink, [await files.content('link'), await files.list('link')]],
      [texts.pathIsSpecial, [await files.content('pipe')]],
    ]
    for (const [rule, answers] of refusals) {
      for (const { status, body } of answers) {
        expect([status, body.error.code, body.detail]).toEqual([400, 'invalid_path', rule])
      }
    }
  })

  test('are an empty list before the workspace is made', async () => {
    const files = await createInstance()
    await rm(files.workspace('.'), { recursive: true })
    expect(await files.list()).toMatchObject({ status: 200, body: { path: '.', entries: [] } })
    expect((await files.list('folder')).status).toBe(404)
  })

  test('A8: end at the workspace: neither a path nor a link of the agent leads to the configuration', async () => {
    const files = await createInstance()
    await writeFile(join(files.home, 'state/openclaw.json'), '{"token":"secret"}')
    expect((await files.content('openclaw.json')).status).toBe(404)
    await files.plant('real', 'mine')
    await symlink('../openclaw.json', files.workspace('config'))
    await symlink('..', files.workspace('up'))
    await symlink('/etc', files.workspace('etc'))
    await symlink('real', files.workspace('inner'))
    await run('mkfifo', [files.workspace('pipe')])
    for (const path of ['config', 'up/openclaw.json', 'etc/passwd', 'inner', 'pipe', 'pipe/x']) {
      const answers = [await files.content(path), await files.list(path)].map(({ status }) => status)
      answers.push((await files.download(path)).status)
      expect([path, ...answers]).toEqual([path, 400, 400, 400])
    }
    for (const path of ['up/openclaw.json', 'etc/passwd']) {
      const answers = [
        await files.stat(path),
        await files.put(path, 'x'),
        await files.move({ source: path, destination: 'stolen' }),
        await files.move({ source: 'real', destination: path, overwrite: true }),
        await files.remove(path),
      ].map(({ status }) => status)
      answers.push((await files.upload(formOf([['path', path], ['file', new Blob(['x'])]]))).status) // biome-ignore format: short
      expect([path, ...answers]).toEqual([path, 400, 400, 400, 400, 400, 400])
    }
    expect((await files.put('config', 'mine')).status).toBe(204)
    expect((await files.remove('up', '&recursive=true')).status).toBe(204)
    expect(await readFile(join(files.home, 'state/openclaw.json'), 'utf8')).toBe('{"token":"secret"}')
  })

  test('keep the hidden file .keep and the workspace itself', async () => {
    const files = await createInstance()
    await files.plant('other', 'x')
    expect((await files.list()).body.entries.map(({ name }: { name: string }) => name)).toEqual(['other'])
    for (const path of ['.keep', './/.keep']) {
      expect((await files.stat(path)).status).toBe(404)
      expect((await files.content(path)).status).toBe(404)
      expect((await files.download(path)).status).toBe(404)
      expect((await files.remove(path)).status).toBe(404)
      expect((await files.move({ source: path, destination: 'x' })).status).toBe(404)
      expect((await files.move({ source: 'other', destination: path, overwrite: true })).status).toBe(400)
      expect((await files.put(path, 'x')).status).toBe(400)
      expect((await files.upload(formOf([['file', new Blob(['x'])], ['path', path]]))).status).toBe(400) // biome-ignore format: short
    }
    for (const path of ['.', './', './/.']) {
      expect((await files.remove(path, '&recursive=true')).status).toBe(400)
      expect((await files.move({ source: path, destination: 'x' })).status).toBe(400)
    }
    expect((await stat(files.workspace('.keep'))).size).toBe(0)
    expect(await files.temporaryFiles()).toEqual([])
    await files.plant('folder/.keep', 'an ordinary file')
    expect((await files.content('folder/.keep')).body.content).toBe('an ordinary file')
  })

  test('are a 404 when they do not exist and a 400 for a directory in place of a file, and nothing is created', async () => {
    const files = await createInstance()
    await files.plant('folder/file', 'x')
    for (const path of ['nothing', 'folder/nothing', 'no/where']) {
      const answers = [
        await files.list(path),
        await files.stat(path),
        await files.content(path),
        await files.move({ source: path, destination: 'made/x' }),
        await files.remove(path),
        await files.download(path),
      ]
      expect([path, ...answers.map(({ status }) => status)]).toEqual([path, 404, 404, 404, 404, 404, 404])
    }
    for (const path of ['folder', 'folder/', '.']) {
      const upload = await files.upload(formOf([['path', path], ['file', new Blob(['x'])]])) // biome-ignore format: short
      const answers = [await files.content(path), await files.download(path), await files.put(path, 'x'), upload]
      expect([path, ...answers.map(({ status }) => status)]).toEqual([path, 400, 400, 400, 400])
    }
    expect((await files.put('folder/file/below', 'x')).status).toBe(400)
    expect((await files.list('folder/file')).status).toBe(400)
    expect((await files.put('x'.repeat(300), 'x')).status).toBe(400)
    expect((await files.put('x'.repeat(5000), 'x')).status).toBe(422)
    expect((await files.put('', 'x')).status).toBe(422)
    expect((await readdir(files.workspace('.'))).sort()).toEqual(['.keep', 'folder'])
  })

  test('are moved; a move replaces a file only with overwrite, and never a directory', async () => {
    const files = await createInstance()
    for (const path of ['one', 'two', 'folder/file', 'other/file']) await files.plant(path, path)
    const refusals = [
      [{ source: 'one', destination: 'two' }, 409],
      [{ source: 'one', destination: 'one' }, 409],
      [{ source: 'one', destination: 'folder' }, 409],
      [{ source: 'one', destination: 'folder', overwrite: true }, 400],
      [{ source: 'folder', destination: 'other', overwrite: true }, 409],
      [{ source: 'folder', destination: 'two', overwrite: true }, 409],
      [{ source: 'folder', destination: 'folder/in/itself' }, 400],
      [{ source: 'one', destination: 'two/below' }, 400],
      [{ source: 'one', destination: '.' }, 409],
    ] as const
    for (const [body, status] of refusals) expect([body, (await files.move(body)).status]).toEqual([body, status])
    expect((await files.move({ source: 'one', destination: 'two', overwrite: true })).status).toBe(204)
    expect((await files.content('two')).body.content).toBe('one')
    expect((await files.move({ source: 'folder', destination: 'made/for/it' })).status).toBe(204)
    expect((await files.content('made/for/it/file')).body.content).toBe('folder/file')
  })

  test('are deleted with their directory only with recursive', async () => {
    const files = await createInstance()
    await files.plant('folder/sub/file', 'x')
    await files.mkdir('empty')
    expect(await files.remove('folder')).toMatchObject({
      status: 409,
      body: { detail: expect.stringContaining('recursive=true') },
    })
    expect((await files.remove('folder/sub/file')).status).toBe(204)
    expect((await files.remove('empty')).status).toBe(204)
    expect((await files.remove('folder', '&recursive=true')).status).toBe(204)
    expect(await readdir(files.workspace('.'))).toEqual(['.keep'])
  })

  test('are read as UTF-8 up to 1 MiB; larger and other files are an error that names the download', async () => {
    const files = await createInstance()
    const all = '"\n'.repeat(mebibyte / 2)
    expect((await files.put('all', all)).status).toBe(204)
    expect((await files.content('all')).body.content).toBe(all)
    expect((await files.put('more', `${all}x`)).status).toBe(413)
    await files.plant('more', `${all}x`)
    expect(await files.content('more')).toMatchObject({
      status: 413,
      body: { detail: expect.stringContaining('files/download') },
    })
    await files.plant('binary', Buffer.from([0xff, 0xfe, 0x00]))
    expect(await files.content('binary')).toMatchObject({
      status: 400,
      body: { detail: expect.stringContaining('files/download') },
    })
    await files.plant('bom', '\ufefftext')
    expect((await files.content('bom')).body.content).toBe('\ufefftext')
    await files.plant('empty', '')
    expect((await files.content('empty')).body.content).toBe('')
  })

  test('keep their permissions and their owner when they are replaced', async () => {
    const files = await createInstance()
    await files.put('run.sh', 'old')
    await chmod(files.workspace('run.sh'), 0o755)
    await files.put('run.sh', 'new')
    const { mode, uid } = await stat(files.workspace('run.sh'))
    expect([mode & 0o777, uid]).toEqual([0o755, (await stat(files.home)).uid])
  })

  test('are a 409 before the sandbox is created and after a delete, and a 502 when the sandbox is missing', async () => {
    const early = await createInstance({ withSandbox: false })
    expect(await early.list()).toMatchObject({ status: 409, body: { detail: expect.stringContaining('provisioning') } })
    expect((await early.put('x', 'x')).status).toBe(409)
    expect((await early.upload(formOf([['path', 'x'], ['file', new Blob(['x'])]]))).status).toBe(409) // biome-ignore format: short
    expect((await early.download('x')).status).toBe(409)

    const lost = await createInstance()
    await workspaces.host.driver.destroy(lost.id, AbortSignal.timeout(20_000))
    const unavailable = { detail: { error: expect.stringContaining('Gateway unavailable') } }
    expect(await lost.content('x')).toMatchObject({ status: 502, body: unavailable })
    expect(await lost.put('x', 'x')).toMatchObject({ status: 502, body: unavailable })

    const terminated = await createInstance()
    await workspaces.client.delete(`/v1/instances/${terminated.id}`)
    expect(await terminated.list()).toMatchObject({
      status: 409,
      body: { detail: expect.stringContaining('terminated') },
    })
  })

  test('are available while the instance is stopped', async () => {
    const files = await createInstance()
    await workspaces.chowder.database.db.$client.query(
      `UPDATE instances SET desired_state = 'stopped', observed_generation = generation WHERE id = $1`,
      [files.id],
    )
    expect((await files.put('note', 'x')).status).toBe(204)
    expect((await files.content('note')).body.content).toBe('x')
  })

  test('are a 504 when the sandbox does not answer in time', async () => {
    const { host } = workspaces
    const late = async () => {
      throw new DOMException('late', 'TimeoutError')
    }
    const files = (id: string) => ({ ...host.driver.files(id), stat: late })
    const slow = await openTestChowder({ sandboxes: { ...host.driver, files } })
    const { key } = await slow.signUp()
    const { body } = await slow.call('POST', '/v1/instances', { key, body: { name: 'agent' } })
    expect(await slow.call('GET', `/v1/instances/${body.id}/files/stat?path=x`, { key })).toMatchObject({
      status: 504,
      body: { detail: { error: expect.stringContaining('in time') } },
    })
    await slow.close()
  })

  test('are listed also with a name that is not UTF-8, which no call finds', async () => {
    const files = await createInstance()
    await files.plant('odd/plain-ü', 'x')
    await run('bash', ['-c', `printf 123 > $'caf\\xe9'`], { cwd: files.workspace('odd') })
    const { entries, truncated } = (await files.list('odd')).body
    expect(entries).toMatchObject([{ name: 'caf\ufffd', path: 'odd/caf\ufffd', size: 3 }, { name: 'plain-ü' }])
    expect(truncated).toBe(false)
    expect((await files.stat('odd/caf\ufffd')).status).toBe(404)
    expect((await files.remove('odd', '&recursive=true')).status).toBe(204)
  })

  test('are listed in part, with truncated, when a directory has too many', async () => {
    const files = await createInstance()
    await mkdir(files.workspace('many'))
    await run('bash', ['-c', 'seq 10001 | xargs touch'], { cwd: files.workspace('many') })
    const { body } = await files.list('many')
    expect([body.entries.length, body.truncated]).toEqual([10_000, true])
  })
})
