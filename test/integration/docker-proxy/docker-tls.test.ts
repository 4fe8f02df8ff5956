import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:https'
import type { AddressInfo, Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { text } from 'node:stream/consumers'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import { dockerSettings } from '#composition/docker-settings.ts'
import { createDockerd } from '#docker-proxy/dockerd.ts'
import { connectionTo, createDockerClient } from '#sandbox/docker/docker-client.ts'
import { loadConfig } from '#settings/config.ts'
import { contractDriver } from '../../support/docker-host.ts'
import { present } from '../../support/present.ts'

const run = promisify(execFile)
const within = () => AbortSignal.timeout(10_000)

describe('S23: DOCKER_HOST', () => {
  test.each(['tcp://10.0.0.7:2375', 'tcp://docker.internal:2376', 'tcp://128.0.0.1:2375'])(
    '%s without TLS is refused, with the settings that help',
    (host) => {
      const make = () => connectionTo({ host, tls: null })
      expect(make).toThrow(/--tlsverify.*DOCKER_CERT_PATH/)
      expect(() => createDockerd({ host, tls: null })).toThrow('without TLS')
    },
  )

  test.each(['tcp://127.0.0.1:2375', 'tcp://localhost:2375', 'unix:///run/docker.sock'])('%s needs no TLS', (host) => {
    expect(connectionTo({ host, tls: null })).toMatchObject({ protocol: 'http' })
  })
})

/** Stands for the files of DOCKER_CERT_PATH. */
const files = { ca: Buffer.of(), cert: Buffer.of(), key: Buffer.of() }

test('of another machine it needs the addresses at which Chowder and the agents there reach each other', () => {
  const driver =
    (host: string, publishAddress: string, relayPort: number | null = null) =>
    () =>
      contractDriver(host, 'i', { dockerd: { host, tls: files }, publishAddress, relayPort })
  expect(driver('tcp://10.0.0.7:2376', '127.0.0.1')).toThrow(/on another machine, .*Set DOCKER_PUBLISH_ADDRESS to the/)
  expect(driver('tcp://10.0.0.7:2376', '10.0.0.7', 8090)).toThrow(/RELAY_URL is not set: .*Set RELAY_URL to the/)
  for (const reached of [
    driver('tcp://10.0.0.7:2376', '10.0.0.7'),
    driver('tcp://localhost:2376', '127.0.0.1', 8090),
    driver('unix:///run/docker.sock', '127.0.0.1'),
  ])
    expect(reached).not.toThrow()
})

describe('a dockerd that listens with --tlsverify', () => {
  let folder: string
  let host: string
  /** Stands for dockerd: it takes only clients with a certificate of its authority, and echoes streams. */
  let server: ReturnType<typeof createServer>
  const sockets = new Set<Duplex>()

  const openssl = (...args: string[]) => run('openssl', args, { cwd: folder })

  /** A certificate of an authority, as `openssl` makes them. */
  async function sign(name: string, extension: string, by = 'ca'): Promise<void> {
    await writeFile(join(folder, `${name}.ext`), extension)
    const request = ['-newkey', 'rsa:2048', '-nodes', '-keyout', `${name}-key.pem`, '-out', `${name}.csr`]
    await openssl('req', ...request, '-subj', `/CN=${name}`)
    const signer = ['-CA', `${by}.pem`, '-CAkey', `${by}-key.pem`, '-CAcreateserial']
    await openssl(
      'x509',
      '-req',
      '-in',
      `${name}.csr`,
      '-out',
      `${name}.pem`,
      ...signer,
      '-days',
      '2',
      '-extfile',
      `${name}.ext`,
    )
  }

  const authority = (name: string) =>
    openssl(
      ...['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=test'],
      ...['-keyout', `${name}-key.pem`, '-out', `${name}.pem`],
    )

  const settings = (env: NodeJS.ProcessEnv = {}) =>
    dockerSettings(loadConfig({ DOCKER_HOST: host, DOCKER_CERT_PATH: folder, ...env }))

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'chowder-docker-tls-'))
    await Promise.all([authority('ca'), authority('other')])
    await sign('server', 'subjectAltName=IP:127.0.0.1')
    await sign('client', 'extendedKeyUsage=clientAuth')
    const read = (name: string) => run('cat', [name], { cwd: folder }).then(({ stdout }) => stdout)
    await writeFile(join(folder, 'cert.pem'), await read('client.pem'))
    await writeFile(join(folder, 'key.pem'), await read('client-key.pem'))
    const tls = { ca: await read('ca.pem'), cert: await read('server.pem'), key: await read('server-key.pem') }
    server = createServer({ ...tls, requestCert: true, rejectUnauthorized: true }, (_, answer) => answer.end('OK'))
    server.on('connection', (socket) => sockets.add(socket.on('error', () => {})))
    server.on('upgrade', (_, socket) => {
      socket.write('HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n')
      socket.pipe(socket)
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    host = `tcp://127.0.0.1:${(server.address() as AddressInfo).port}`
  }, 60_000)
  afterAll(async () => {
    for (const socket of sockets) socket.destroy()
    server?.close()
    await rm(folder, { recursive: true, force: true })
  })

  test('is reached with the files in DOCKER_CERT_PATH, also through the Docker proxy', async () => {
    const { dockerd } = await settings()
    expect(await createDockerClient(dockerd).outage(within())).toBeNull()
    const call = { method: 'POST', path: '/exec/x/start', body: {}, upgrade: true }
    const { stream } = await createDockerd(dockerd).send(call, within())
    stream?.end('there and back')
    expect(await text(stream as Socket)).toBe('there and back')
  })

  test('is not reached when another authority has signed its certificate, and the sentence says so', async () => {
    const { dockerd } = await settings()
    const ca = await run('cat', ['other.pem'], { cwd: folder })
    const warn = vi.fn()
    const other = { host, tls: dockerd.tls && { ...dockerd.tls, ca: Buffer.from(ca.stdout) } }
    const client = createDockerClient(other, { info() {}, warn })
    expect(await client.outage(within())).toMatch(/its certificate is not trusted\. ca\.pem in DOCKER_CERT_PATH must/)
    expect(await client.outage(within())).not.toBeNull()
    expect(warn, 'one line of the log').toHaveBeenCalledExactlyOnceWith(expect.stringContaining('is not trusted'))
  })

  test('refuses the certificate of another authority, and the sentence says so', async () => {
    await sign('stranger', 'extendedKeyUsage=clientAuth', 'other')
    const { dockerd } = await settings()
    const [cert, key] = await Promise.all(
      ['stranger.pem', 'stranger-key.pem'].map((name) => readFile(join(folder, name))),
    )
    // As dockerd does, and not as the TLS of Node.js, it says why it ends the connection.
    const own = ['-cert', 'server.pem', '-key', 'server-key.pem', '-CAfile', 'ca.pem', '-Verify', '1']
    const strict = spawn('openssl', ['s_server', '-accept', '127.0.0.1:0', ...own, '-verify_return_error', '-www'], {
      cwd: folder,
      stdio: ['ignore', 'pipe', 'ignore'],
    })
    onTestFinished(() => void strict.kill())
    let words = ''
    for await (const text of strict.stdout.setEncoding('utf8')) {
      words += text
      if (/ACCEPT .*:\d+\n/.test(words)) break
    }
    const at = `tcp://127.0.0.1:${/ACCEPT .*:(\d+)\n/.exec(words)?.[1]}`
    const stranger = { host: at, tls: dockerd.tls && { ...dockerd.tls, cert: present(cert), key: present(key) } }
    const outage = await createDockerClient(stranger).outage(within())
    expect(outage).toMatch(/it refuses the certificate in DOCKER_CERT_PATH\. cert\.pem must/)
  })

  test('is not reached without a certificate', async () => {
    expect(await createDockerClient({ host, tls: null }).outage(within())).toContain('cannot be reached')
  })

  test('a key that is not that of the certificate stops the start, and so does a file that is no PEM', async () => {
    const bad = join(folder, 'bad')
    await mkdir(bad)
    for (const name of ['ca.pem', 'cert.pem']) await copyFile(join(folder, name), join(bad, name))
    for (const key of [await readFile(join(folder, 'server-key.pem')), 'no key']) {
      await writeFile(join(bad, 'key.pem'), key)
      await expect(settings({ DOCKER_CERT_PATH: bad })).rejects.toThrow(/key\.pem must be the key of cert\.pem/)
    }
  })

  test('a folder without the files stops the start with a sentence that names the missing one', async () => {
    await expect(settings({ DOCKER_CERT_PATH: tmpdir() })).rejects.toThrow(/DOCKER_CERT_PATH must be.* cannot be read/)
  })
})
