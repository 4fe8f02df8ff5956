import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { clusterOf } from '#sandbox/kubernetes/cluster.ts'

describe('a kubeconfig', () => {
  let folder: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'chowder-kubeconfig-'))
  })
  afterAll(() => rm(folder, { recursive: true }))

  async function written(cluster: object, user: object, current = 'mine') {
    const path = join(folder, 'config')
    const content = {
      'current-context': current,
      contexts: [
        { name: 'other', context: { cluster: 'none', user: 'none' } },
        { name: 'mine', context: { cluster: 'c', user: 'u' } },
      ],
      clusters: [{ name: 'c', cluster: { server: 'https://10.0.0.1:6443/', ...cluster } }],
      users: [{ name: 'u', user }],
    }
    await writeFile(path, JSON.stringify(content)) // which is YAML as well
    return clusterOf(path)
  }
  const base64 = (text: string) => Buffer.from(text).toString('base64')

  test('has certificates in itself, or in files beside it', async () => {
    await writeFile(join(folder, 'key.pem'), 'the key')
    const cluster = await written(
      { 'certificate-authority-data': base64('the authority'), 'tls-server-name': 'kubernetes' },
      { 'client-certificate-data': base64('the certificate'), 'client-key': 'key.pem' },
    )
    expect(cluster.server).toBe('https://10.0.0.1:6443')
    expect(await cluster.access()).toEqual({
      tls: { ca: 'the authority', cert: 'the certificate', key: 'the key', servername: 'kubernetes' },
      headers: {},
    })
  })

  test('has a token, a file of it that is read anew, or a password', async () => {
    const headersFor = async (user: object) => (await (await written({}, user)).access()).headers
    expect(await headersFor({ token: 'one' })).toEqual({ authorization: 'Bearer one' })
    expect(await headersFor({ username: 'a', password: 'b' })).toEqual({ authorization: `Basic ${base64('a:b')}` })
    await writeFile(join(folder, 'token'), 'first\n')
    const { access } = await written({ 'insecure-skip-tls-verify': true }, { tokenFile: 'token' })
    expect(await access()).toEqual({ tls: { rejectUnauthorized: false }, headers: { authorization: 'Bearer first' } })
    await writeFile(join(folder, 'token'), 'second\n')
    expect((await access()).headers).toEqual({ authorization: 'Bearer second' })
  })

  test.each([
    ['with an end far away is asked once', 3_600_000, 'Bearer token-1'],
    ['that expires soon is asked again', 1000, 'Bearer token-2'],
  ])('has a program for the credentials, which %s', async (_manner, lastsMs, second) => {
    const end = new Date(Date.now() + lastsMs).toISOString()
    const program = `#!/bin/sh
echo "$COUNTED" | grep -q yes && echo "$KUBERNETES_EXEC_INFO" | grep -q client.authentication.k8s.io/v1 || exit 1
echo . >>"$(dirname "$0")/$1"
echo "{ \\"status\\": { \\"token\\": \\"token-$(wc -l <"$(dirname "$0")/$1")\\", \\"expirationTimestamp\\": \\"${end}\\" } }"
`
    await writeFile(join(folder, 'give'), program)
    await chmod(join(folder, 'give'), 0o755)
    const { access } = await written(
      {},
      {
        exec: {
          apiVersion: 'client.authentication.k8s.io/v1',
          command: './give',
          args: [`calls-${lastsMs}`],
          env: [{ name: 'COUNTED', value: 'yes' }],
        },
      },
    )
    expect((await access()).headers).toEqual({ authorization: 'Bearer token-1' })
    expect((await access()).headers).toEqual({ authorization: second })
  })

  test('without a cluster and a user, or with what Chowder does not use, is refused', async () => {
    await expect(written({}, {}, 'other')).rejects.toThrow('no current context')
    await expect(written({}, {}, 'unknown')).rejects.toThrow('no current context')
    await expect(written({ 'proxy-url': 'http://proxy:3128' }, {})).rejects.toThrow('proxy-url')
    await expect(written({}, { 'auth-provider': { name: 'oidc' } })).rejects.toThrow('auth-provider')
    await expect(clusterOf(join(folder, 'missing'))).rejects.toThrow('ENOENT')
  })
})
