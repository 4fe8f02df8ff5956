import { mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import { removeSkill } from '#openclaw/skills/skill-install.ts'
import { LocalHost } from '../../support/local-host.ts'

const id = '0199a000-0000-7000-8000-000000000001'
const reference = { owner: 'acme', slug: 'web-search' }
const signal = AbortSignal.timeout(60_000)
const gateway = {
  call: async () => ({ workspaceDir: '/w', skills: [] }),
  close: () => {},
  closed: Promise.resolve(),
}

const remove = () => removeSkill(gateway, files, reference, signal)

const host = await LocalHost.make()
await host.driver.create(host.specOf(id), signal)
const files = host.driver.files(id)
const { paths } = await host.driver.observe(id, signal)
const workspace = join(paths?.home ?? '', 'state/workspace')
afterAll(() => host.remove())

beforeEach(async () => {
  await rm(workspace, { recursive: true, force: true })
  for (const path of ['skills/web-search/SKILL.md', 'skills/notes/SKILL.md', 'precious/SKILL.md']) {
    await files.write(`state/workspace/${path}`, Buffer.from(path), {}, signal)
  }
})

describe('the removal of a skill from a hostile workspace', () => {
  test('removes the folder of the skill only', async () => {
    await remove()
    expect(await readdir(join(workspace, 'skills'))).toEqual(['notes'])
  })

  test('removes a link in place of the folder, and not its target', async () => {
    await rm(join(workspace, 'skills/web-search'), { recursive: true })
    await symlink(join(workspace, 'precious'), join(workspace, 'skills/web-search'))
    await remove()
    expect(await readdir(join(workspace, 'skills'))).toEqual(['notes'])
    expect(await readdir(join(workspace, 'precious'))).toEqual(['SKILL.md'])
  })

  test('removes a link in the folder, and not its target', async () => {
    await symlink(join(workspace, 'precious'), join(workspace, 'skills/web-search/way-out'))
    await remove()
    expect(await readdir(join(workspace, 'precious'))).toEqual(['SKILL.md'])
  })

  test('refuses a link in place of the folder of all skills', async () => {
    const elsewhere = join(workspace, 'elsewhere')
    await mkdir(join(elsewhere, 'web-search'), { recursive: true })
    await rm(join(workspace, 'skills'), { recursive: true })
    await symlink(elsewhere, join(workspace, 'skills'))
    await expect(remove()).rejects.toMatchObject({ name: 'SandboxPathError', fault: 'link' })
    expect(await readdir(elsewhere)).toEqual(['web-search'])
  })

  test('leaves a list of skills as it is when it is a link or malformed', async () => {
    const target = join(workspace, 'precious/lock.json')
    const lock = JSON.stringify({ version: 1, skills: { 'web-search': {} } })
    await writeFile(target, lock)
    await mkdir(join(workspace, '.clawhub'))
    await symlink(target, join(workspace, '.clawhub/lock.json'))
    await remove()
    expect(await readFile(target, 'utf8')).toBe(lock)
    await rm(join(workspace, '.clawhub/lock.json'))
    for (const malformed of ['{{{', '[]', '{"skills":[]}', '']) {
      await writeFile(join(workspace, '.clawhub/lock.json'), malformed)
      await remove()
      expect(await readFile(join(workspace, '.clawhub/lock.json'), 'utf8')).toBe(malformed)
    }
  })
})
