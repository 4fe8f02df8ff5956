import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { describe, expect, test } from 'vitest'

const source = (path: string) => import.meta.resolve(`#${path}`)

/** Runs a program in a Node.js of its own. Returns the JSON that it prints. */
async function outputOf(program: string): Promise<unknown> {
  const args = ['--no-warnings', '--input-type=module', '--eval', program]
  return JSON.parse((await promisify(execFile)(process.execPath, args)).stdout)
}

const residentMb = (...imports: string[]) =>
  outputOf(`
    for (const url of ${JSON.stringify(imports)}) await import(url)
    console.log(process.memoryUsage.rss() / 2 ** 20)`) as Promise<number>

/** The packages that are loaded with a file. */
const packagesOf = (path: string) =>
  outputOf(`
    import { registerHooks } from 'node:module'
    const names = new Set()
    registerHooks({
      load(url, context, next) {
        const [, name] = /.*\\/node_modules\\/((?:@[^/]+\\/)?[^/]+)/.exec(url) ?? []
        if (name) names.add(name)
        return next(url, context)
      },
    })
    await import(${JSON.stringify(source(path))})
    console.log(JSON.stringify([...names]))`) as Promise<string[]>

describe('a process', { timeout: 30_000 }, () => {
  test('does not parse the package.json of Drizzle for each of its files', async () => {
    const drizzle = import.meta.resolve('drizzle-orm/node-postgres')
    const [nothing, plain, spared] = [
      await residentMb(),
      await residentMb(drizzle),
      await residentMb(source('platform/package-lookups.ts'), drizzle),
    ]
    expect(spared - nothing).toBeLessThan((plain - nothing) / 2)
  })

  test('loads neither the API nor a driver before its role needs it', async () => {
    const packages = await packagesOf('composition/start.ts')
    expect(packages).toContain('drizzle-orm')
    for (const name of ['fastify', 'ajv', 'bullmq', 'zod', '@scalar/fastify-api-reference', 'stripe', 'dockerode'])
      expect(packages).not.toContain(name)
  })

  test('loads the pages of the reference and the decoder of QR codes when they are asked for', async () => {
    const packages = await packagesOf('composition/api.ts')
    expect(packages).toContain('fastify')
    for (const name of ['@scalar/fastify-api-reference', 'pngjs', 'qr']) expect(packages).not.toContain(name)
  })

  test('reads its settings before it loads the database', async () => {
    const packages = await packagesOf('main.ts')
    expect(packages).toContain('pino')
    for (const name of ['pg', 'drizzle-orm', 'undici']) expect(packages).not.toContain(name)
  })
})
