import { Readable } from 'node:stream'
import { buffer, text } from 'node:stream/consumers'
import { expect, test } from 'vitest'
import { type ExecResult, type SandboxFiles, SandboxPathError } from '#sandbox/driver.ts'
import { present } from './present.ts'

/** A driver's files under test. */
interface FilesUnderTest {
  files(id: string): SandboxFiles
  /** Makes a sandbox that does not run, or one that does; gives its id. */
  created(): Promise<string>
  started(): Promise<string>
  /** Runs a shell script as the sandbox's user. */
  exec(id: string, script: string, timeoutMs: number): Promise<ExecResult>
  /** Whether `exec` really runs programs. */
  runsPrograms(): boolean
}

const deadlineMs = 45_000
const within = () => AbortSignal.timeout(deadlineMs)

/** What every sandbox's files promise. */
export function describeFiles({ files: filesOfId, created, started, exec, runsPrograms }: FilesUnderTest): void {
  const filesOf = (id: string) => {
    const files = filesOfId(id)
    const textOf = async (path: string) => {
      const file = await files.read(path, { maxBytes: 1024 }, within())
      return file && text(file.content())
    }
    return { files, textOf }
  }

  test('files are read as they were written, in folders that are made for them', async () => {
    const { files, textOf } = filesOf(await created())
    await files.write('a/b/one', Buffer.from([0, 255, 10]), { mode: 0o600 }, within())
    await files.write('a/two', Readable.from([Buffer.from('st'), Buffer.from('ream')]), { mode: 0o640 }, within())
    const one = await files.read('a/b/one', { maxBytes: 3 }, within())
    expect(one).toMatchObject({ size: 3, modifiedAt: expect.any(Date) })
    expect(await buffer(present(one).content())).toEqual(Buffer.from([0, 255, 10]))
    expect(await textOf('./a//two')).toBe('stream')
    expect(await files.stat('a/two', within())).toMatchObject({ name: 'two', kind: 'file', size: 6, mode: 0o640 })
    const { entries, isWhole } = await files.list('a', { maxEntries: 2 }, within())
    expect(entries.map(({ name, kind }) => [name, kind])).toEqual([
      ['b', 'directory'],
      ['two', 'file'],
    ])
    expect(isWhole).toBe(true)
    const part = await files.list('a', { maxEntries: 1 }, within())
    expect([part.entries.length, part.isWhole]).toEqual([1, false])
    await files.write('a/two', Buffer.from('new'), { mode: 0o600 }, within())
    await files.move('a/two', 'c/moved', { overwrite: false }, within())
    expect(await textOf('c/moved')).toBe('new')
    expect(await textOf('a/two')).toBeNull()
    expect(await files.remove('a', { recursive: true }, within())).toBe(true)
    expect(await files.remove('a', { recursive: true }, within())).toBe(false)
    expect(await files.stat('a/b/one', within())).toBeNull()
    expect((await files.list('.', { maxEntries: 10 }, within())).entries.map(({ name }) => name)).toEqual(['c'])
  })

  test('a file keeps its mode when it is replaced, and only its owner may use a new one', async () => {
    const { files } = filesOf(await created())
    const modeOf = async (path: string) => (await files.stat(path, within()))?.mode
    await files.write('script', Buffer.from('old'), { mode: 0o750 }, within())
    await files.write('script', Buffer.from('new'), {}, within())
    await files.write('new', Buffer.from('new'), {}, within())
    expect([await modeOf('script'), await modeOf('new')]).toEqual([0o750, 0o600])
  })

  test('a part of a file is read alone, and a file that was replaced meanwhile is read as it was', async () => {
    const { files } = filesOf(await created())
    await files.write('file', Buffer.from('0123456789'), {}, within())
    const [part, empty, all, unread] = await Promise.all(
      [1, 2, 3, 4].map(() => files.read('file', { maxBytes: 10 }, within())),
    )
    await files.write('file', Buffer.from('another'), {}, within())
    expect(await text(present(part).content({ start: 2, end: 5 }))).toBe('234')
    expect(await text(present(empty).content({ start: 5, end: 5 }))).toBe('')
    expect(await text(present(all).content())).toBe('0123456789')
    await present(unread).close()
    await present(unread).close()
  })

  test('a write that is too large, fails or is aborted half-way leaves the old file and no new folder', async () => {
    const { files, textOf } = filesOf(await created())
    await files.write('file', Buffer.from('old'), {}, within())
    await files.write('file', Buffer.from('olds'), { maxBytes: 4 }, within())
    const abort = new AbortController()
    const cut = async function* (end: () => void) {
      yield Buffer.from('new')
      end()
      yield Buffer.from('er')
    }
    const broken = new Error('the sender is gone')
    const fail = () => {
      throw broken
    }
    const half = (end: () => void) => Readable.from(cut(end), { objectMode: false })
    const stalled = new Readable({ read() {} })
    stalled.push(Buffer.from('new'))
    const refusals = await Promise.allSettled([
      files.write(
        'file',
        half(() => {}),
        { maxBytes: 4 },
        within(),
      ),
      files.write(
        'folder/file',
        half(() => {}),
        { maxBytes: 4 },
        within(),
      ),
      files.write('folder/file', half(fail), {}, within()),
      files.write(
        'folder/file',
        half(() => abort.abort(broken)),
        {},
        abort.signal,
      ),
      files.write('file', stalled, {}, abort.signal),
    ])
    const tooLarge = { status: 'rejected', reason: expect.objectContaining({ fault: 'too_large' }) }
    const isBroken = { status: 'rejected', reason: broken }
    expect(refusals).toEqual([tooLarge, tooLarge, isBroken, isBroken, isBroken])
    expect(await textOf('file')).toBe('olds')
    expect((await files.list('.', { maxEntries: 10 }, within())).entries.map(({ name }) => name)).toEqual(['file'])
  })

  test('an abort ends a content that is being read', async () => {
    const { files } = filesOf(await created())
    await files.write('file', Buffer.alloc(2 * 1024 * 1024), {}, within())
    const abort = new AbortController()
    const file = await files.read('file', { maxBytes: 1e9 }, abort.signal)
    const content = present(file).content()
    const reading = buffer(content)
    abort.abort()
    await expect(reading).rejects.toThrow('aborted')
    expect(content.destroyed).toBe(true)
  })

  test('a missing path is null to read and stat, false to remove, and an error to list and move', async () => {
    const { files } = filesOf(await created())
    expect(await files.read('no/where', { maxBytes: 1 }, within())).toBeNull()
    expect(await files.stat('no/where', within())).toBeNull()
    expect(await files.remove('no/where', { recursive: false }, within())).toBe(false)
    await expect(files.list('no', { maxEntries: 1 }, within())).rejects.toMatchObject({ fault: 'missing' })
    await expect(files.move('no', 'there', { overwrite: true }, within())).rejects.toMatchObject({ fault: 'missing' })
  })

  test('folders are made with those above them, and removed when they are empty or the call is recursive', async () => {
    const { files } = filesOf(await created())
    await files.mkdir('a/b/c', within())
    await files.mkdir('a/b', within())
    expect(await files.stat('a/b/c', within())).toMatchObject({ kind: 'directory' })
    await expect(files.remove('a/b', { recursive: false }, within())).rejects.toMatchObject({ fault: 'not_empty' })
    expect(await files.remove('a/b/c', { recursive: false }, within())).toBe(true)
    expect(await files.remove('a', { recursive: true }, within())).toBe(true)
    await files.write('file', Buffer.from('x'), {}, within())
    await expect(files.mkdir('file', within())).rejects.toMatchObject({ fault: 'not_directory' })
  })

  test('a folder with files that their owner may not remove stays, and the call says so', async ({ skip }) => {
    if (!runsPrograms()) skip('its exec runs nothing')
    const id = await started()
    const { files } = filesOf(id)
    await files.write('work/kept/folder/file', Buffer.from('x'), {}, within())
    const setMode = (mode: string) => exec(id, `chmod ${mode} work/kept/folder`, 5000)
    const remove = () => files.remove('work/kept', { recursive: true }, within())
    expect(await setMode('500')).toMatchObject({ exitCode: 0 })
    await expect(remove()).rejects.toMatchObject({ fault: 'forbidden' })
    expect(await files.stat('work/kept/folder/file', within())).toMatchObject({ kind: 'file' })
    expect(await setMode('700')).toMatchObject({ exitCode: 0 })
    expect(await remove()).toBe(true)
  })

  test('a move replaces a file only with overwrite, never a folder, and puts no folder into itself', async () => {
    const { files, textOf } = filesOf(await created())
    for (const path of ['one', 'two', 'folder/file', 'other/file'])
      await files.write(path, Buffer.from(path), {}, within())
    const move = (from: string, to: string, overwrite: boolean) => files.move(from, to, { overwrite }, within())
    const outcomes = await Promise.allSettled([
      move('one', 'two', false),
      move('one', 'folder', false),
      move('one', 'folder', true),
      move('folder', 'other', true),
      move('folder', 'two', true),
      move('folder', 'folder/below', true),
      move('one', 'two/below', true),
    ])
    const faults = outcomes.map((outcome) => (outcome.status === 'rejected' ? outcome.reason.fault : 'none'))
    expect(faults).toEqual(['exists', 'exists', 'directory', 'exists', 'exists', 'into_itself', 'not_directory'])
    const long = 'x'.repeat(256)
    await expect(files.mkdir(long, within())).rejects.toMatchObject({ fault: 'name_too_long' })
    await expect(files.list('one', { maxEntries: 10 }, within())).rejects.toMatchObject({ fault: 'not_directory' })
    await move('one', 'two', true)
    expect([await textOf('one'), await textOf('two')]).toEqual([null, 'one'])
    await move('folder/', 'made/for/it', false)
    expect([await textOf('made/for/it/file'), await textOf('other/file')]).toEqual(['folder/file', 'other/file'])
  })

  let refusing: Promise<string> | undefined
  test.each(['../x', '/etc/passwd', 'a/../../x', '..', 'a\0b', 'file/x', '.', '', `${'x'.repeat(300)}`])(
    'A8: the path %j is refused',
    async (path) => {
      refusing ??= created()
      const { files, textOf } = filesOf(await refusing)
      await files.write('file', Buffer.from('x'), {}, within())
      const refused = [
        files.read(path, { maxBytes: 10 }, within()),
        files.write(path, Buffer.from('y'), {}, within()),
        files.mkdir(path, within()),
        files.remove(path, { recursive: true }, within()),
        files.move('file', path, { overwrite: true }, within()),
        files.move(path, 'moved', { overwrite: true }, within()),
      ]
      for (const outcome of await Promise.allSettled(refused)) {
        expect(outcome).toMatchObject({ status: 'rejected', reason: expect.any(SandboxPathError) })
      }
      expect(await textOf('file')).toBe('x')
    },
  )

  test('a file that became shorter after it was opened is an error, not short content', async ({ skip }) => {
    if (!runsPrograms()) skip('its exec runs nothing')
    const id = await started()
    const { files } = filesOf(id)
    await files.write('work/file', Buffer.from('0123456789'), {}, within())
    const file = await files.read('work/file', { maxBytes: 10 }, within())
    expect(await exec(id, 'echo -n 012 > work/file', 5000)).toMatchObject({ exitCode: 0 })
    await expect(buffer(present(file).content())).rejects.toMatchObject({ name: 'SandboxPathError', fault: 'changed' })
  })

  test('A8: a file larger than the caller’s limit, and a folder read as a file, are refused', async () => {
    const { files } = filesOf(await created())
    await files.write('a/file', Buffer.alloc(11), {}, within())
    await expect(files.read('a/file', { maxBytes: 10 }, within())).rejects.toMatchObject({ fault: 'too_large' })
    await expect(files.read('a', { maxBytes: 10 }, within())).rejects.toMatchObject({ fault: 'directory' })
    await expect(files.write('a', Buffer.alloc(1), {}, within())).rejects.toMatchObject({ fault: 'directory' })
  })

  test('A8: no link is followed, wherever it points, and no call waits for a pipe, socket or device', async ({
    skip,
  }) => {
    if (!runsPrograms()) skip('its exec runs nothing')
    const id = await started()
    const { files, textOf } = filesOf(id)
    await files.write('state/secret.json', Buffer.from('secret'), {}, within())
    await files.write('work/real/file', Buffer.from('mine'), {}, within())
    const plant = `cd work; ln -s ../state/secret.json up; ln -s ../state out; ln -s /etc root; ln -s real in; ln -s . self
        ln -s real/file near; ln -s nowhere dangling; mkfifo pipe`
    expect(await exec(id, plant, 5000)).toMatchObject({ exitCode: 0 })
    const one = { maxBytes: 1000 }
    const links = ['up', 'near', 'dangling', 'out', 'root', 'in', 'self', 'pipe']
    const through = ['out/secret.json', 'root/passwd', 'in/file', 'self/real/file', 'dangling/x', 'pipe/x', 'up/x']
    const refused = [
      ...[...links, ...through].map((path) => files.read(`work/${path}`, one, within())),
      ...links.map((path) => files.list(`work/${path}`, { maxEntries: 10 }, within())),
      ...links.map((path) => files.mkdir(`work/${path}/new`, within())),
      ...through.flatMap((path) => [
        files.stat(`work/${path}`, within()),
        files.write(`work/${path}`, Buffer.from('x'), {}, within()),
        files.remove(`work/${path}`, { recursive: true }, within()),
        files.move(`work/${path}`, 'work/stolen', { overwrite: true }, within()),
        files.move('work/real/file', `work/${path}`, { overwrite: true }, within()),
      ]),
    ]
    const outcomes = await Promise.allSettled(refused)
    for (const [index, outcome] of outcomes.entries()) {
      expect(outcome, String(index)).toMatchObject({
        status: 'rejected',
        reason: { fault: expect.stringMatching(/^(link|not_directory|special)$/) },
      })
    }
    const faultOf = (call: Promise<unknown>) => call.catch(({ fault }) => fault)
    expect(await faultOf(files.read('work/in/file', one, within()))).toBe('link')
    expect(await faultOf(files.read('work/near', one, within()))).toBe('link')
    expect(await faultOf(files.read('work/pipe', one, within()))).toBe('special')
    const { entries } = await files.list('work', { maxEntries: 100 }, within())
    expect(Object.fromEntries(entries.map(({ name, kind }) => [name, kind]))).toEqual({
      ...Object.fromEntries(links.map((name) => [name, 'link'])),
      pipe: 'other',
      real: 'directory',
    })
    await files.write('work/up', Buffer.from('mine'), {}, within())
    await files.write('work/pipe', Buffer.from('mine'), {}, within())
    await files.move('work/out', 'work/moved', { overwrite: false }, within())
    await files.remove('work/moved', { recursive: true }, within())
    await files.remove('work/self', { recursive: false }, within())
    expect([await textOf('state/secret.json'), await textOf('work/up'), await textOf('work/pipe')]).toEqual([
      'secret',
      'mine',
      'mine',
    ])
  })

  test('A8: no call leaves the folder while an agent replaces a folder by a link again and again', async ({ skip }) => {
    if (!runsPrograms()) skip('its exec runs nothing')
    const id = await started()
    const { files, textOf } = filesOf(id)
    await files.write('state/secret', Buffer.from('secret'), {}, within())
    await files.write('work/a/secret', Buffer.from('mine'), {}, within())
    const swap = `cd work; until [ -e ../over ]; do mv a b; ln -s ../state a; rm a; mv b a; done`
    const swapping = exec(id, swap, 30_000)
    const startedAt = performance.now()
    let isSwapping = true
    const swapped = swapping.finally(() => {
      isSwapping = false
    })
    const seen = new Set<unknown>()
    while (isSwapping) {
      const calls = [
        textOf('work/a/secret'),
        files.write('work/a/secret', Buffer.from('mine'), {}, within()).then(() => 'done'),
        files.write('work/a/new', Buffer.from('mine'), {}, within()).then(() => 'done'),
        files.move('work/a/new', 'work/a/newer', { overwrite: true }, within()).then(() => 'done'),
      ]
      for (const outcome of await Promise.allSettled(calls)) {
        if (outcome.status === 'rejected') expect(outcome.reason).toBeInstanceOf(SandboxPathError)
        else seen.add(outcome.value)
      }
      // Calls that start a program are few: they go on until some of each kind have met the folder.
      const isSeen = seen.has('done') && seen.has('mine')
      if (isSeen && performance.now() - startedAt > 5000) await files.write('over', Buffer.alloc(0), {}, within())
    }
    await swapped
    expect([...seen].filter((value) => value !== null).sort()).toEqual(['done', 'mine'])
    expect(await textOf('state/secret')).toBe('secret')
    expect((await files.list('state', { maxEntries: 10 }, within())).entries.map(({ name }) => name)).toEqual([
      'secret',
    ])
  })
}
