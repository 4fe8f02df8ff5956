import { once } from 'node:events'
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { type ClientRequest, request } from 'node:http'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import type { Share } from '#docker-proxy/call.ts'
import { proxySocket } from '#docker-proxy/proxy.ts'
import { imageBuild } from '#sandbox/container/image.ts'
import { filesContainer, userOf, volumeLabels } from '#sandbox/docker/profile.ts'
import { contractBuild, contractProxy, contractRelease } from '../../support/docker-host.ts'
import { openStubDockerd, type StubDockerd } from '../../support/stub-dockerd.ts'
import { until } from '../../support/until.ts'

const id = '0198a6a0-6d3c-7c0e-9b43-9f2a4c5d6e7f'
const name = `chowder-${id}`
const [sandboxId, filesId, firewallId, foreignId] = ['a', 'b', 'c', 'd'].map((letter) => letter.repeat(64)) as [
  string,
  string,
  string,
  string,
]
const containers = {
  [name]: { Id: sandboxId, role: 'sandbox' },
  [`${name}-files-0123456789ab`]: { Id: filesId, role: 'files' },
  firewall: { Id: firewallId, role: 'firewall' },
  foreign: { Id: foreignId, role: '' },
}
/** Of the sandbox: the stub takes an e for an a. */
const execution = 'e'.repeat(64)
const foreignExecution = 'd'.repeat(64)
const image = 'chowder-openclaw:v1-0123456789ab'
const program = { AttachStdin: true, AttachStdout: true, AttachStderr: true, Cmd: ['true'] }
const shares: Share[] = ['api', 'worker']

const folder = await mkdtemp(join(tmpdir(), 'chowder-docker-proxy-'))
const stub = await openStubDockerd(join(folder, 'real.sock'), { containers, held: '/logs' })
const proxy = await contractProxy(stub.host, folder)
afterAll(async () => {
  await proxy.close()
  await stub.close()
  await rm(folder, { recursive: true, force: true })
})
beforeEach(() => {
  stub.received.length = 0
  stub.program = (socket) => void socket.pipe(socket)
})

const dial = (share: Share, allowHalfOpen = true) => {
  const socket = connect({ path: proxySocket(folder, share), allowHalfOpen })
  socket.on('error', () => {})
  return socket
}

/**
 * Sends bytes, and answers all that comes back until the other end has ended the connection, or said nothing more for a
 * while.
 */
async function raw(share: Share, bytes: string, quietMs = 50): Promise<string> {
  const socket = dial(share, false)
  socket.write(Buffer.from(bytes, 'latin1'))
  socket.setTimeout(5000, () => socket.destroy())
  let answer = ''
  socket.setEncoding('latin1').on('data', (chunk) => {
    answer += chunk
    socket.setTimeout(quietMs)
  })
  await once(socket, 'close')
  return answer
}

async function ask(share: Share, method: string, path: string, body?: unknown) {
  const asking = request({ socketPath: proxySocket(folder, share), method, path, agent: false })
  const json = body === undefined ? '' : JSON.stringify(body)
  if (json) asking.setHeader('content-type', 'application/json').setHeader('content-length', Buffer.byteLength(json))
  asking.end(json)
  const [response] = await once(asking, 'response')
  return { status: response.statusCode as number, body: JSON.parse((await text(response)) || 'null') }
}

const reached = () => stub.received.map(({ method, url }) => `${method} ${url}`)

const list = `/containers/json?all=true&filters=${encodeURIComponent(JSON.stringify({ label: ['chowder.installation=i'] }))}`
const unstarted = `/containers/json?all=true&filters=${encodeURIComponent(JSON.stringify({ label: ['chowder.role=firewall'], status: ['created'] }))}`
const filesPath = `/containers/create?name=${name}-files-0123456789ab`
const { name: _, ...filesBody } = filesContainer('i', id, '', image, userOf(id))

/** Calls as the driver makes them, who may make them, and what reaches dockerd. */
const calls: [method: string, path: string, body: unknown, mayApi: boolean, reaches: string | null][] = [
  ['GET', '/_ping', undefined, true, 'GET /_ping'],
  ['GET', `/containers/${name}/json`, undefined, true, null],
  ['POST', filesPath, filesBody, true, `POST ${filesPath}`],
  ['POST', `/containers/${name}-files-0123456789ab/start`, undefined, true, `POST /containers/${filesId}/start`],
  ['POST', `/containers/${name}/exec`, program, true, `POST /containers/${sandboxId}/exec`],
  ['GET', `/exec/${execution}/json`, undefined, true, null],
  ['GET', `/images/${image}/json`, undefined, true, `GET /images/${image}/json`],
  [
    'GET',
    `/containers/${name}/stats?stream=false&one-shot=true`,
    undefined,
    true,
    `GET /containers/${sandboxId}/stats?stream=false&one-shot=true`,
  ],
  ['POST', `/containers/${name}/start`, undefined, false, `POST /containers/${sandboxId}/start`],
  ['POST', `/containers/${firewallId}/start`, undefined, false, `POST /containers/${firewallId}/start`],
  ['POST', `/containers/${name}/stop?t=5`, undefined, false, `POST /containers/${sandboxId}/stop?t=5`],
  ['DELETE', `/containers/${name}?force=true`, undefined, false, `DELETE /containers/${sandboxId}?force=true`],
  ['GET', list, undefined, false, `GET ${list}`],
  ['GET', unstarted, undefined, false, `GET ${unstarted}`],
  ['DELETE', `/containers/${firewallId}?force=false`, undefined, false, `DELETE /containers/${firewallId}?force=false`],
  ['GET', '/networks/chowder-test', undefined, false, null],
  ['GET', '/networks/chowder-out', undefined, false, null],
  ['POST', '/volumes/create', { Name: name, Labels: volumeLabels('i', id) }, false, 'POST /volumes/create'],
  ['GET', `/volumes/${name}`, undefined, false, `GET /volumes/${name}`],
]

describe.each(shares)('the share of the %s', (share) => {
  test.each(calls)('%s %s', async (method, path, body, mayApi, reaches) => {
    const answer = await ask(share, method, path, body)
    if (share === 'worker' || mayApi) {
      expect(answer.status).toBe(200)
      expect(reached()).toEqual(reaches ? [reaches] : [])
    } else {
      expect(answer).toMatchObject({
        status: 403,
        body: { message: expect.stringContaining(`docker-proxy, api: ${method} ${path.split('?')[0]}`) },
      })
      expect(reached()).toEqual([])
    }
  })

  test.each([`/v1.45/_ping`, '/v1.24/_ping'])('with a version: %s', async (path) => {
    expect((await ask(share, 'GET', path)).status).toBe(200)
    expect(reached()).toEqual(['GET /_ping'])
  })

  test.each([
    '/info',
    '/version',
    '/events',
    '/containers/json',
    '/containers/json?all=true',
    '//_ping',
    '/_ping/',
    '/./_ping',
    '/x/../_ping',
    '/_ping/../info',
    '/_ping%2f..%2finfo',
    '/%5fping',
    '/_PING',
    '/V1.45/_ping',
    '/v1.45//info',
    '/v1.45/v1.45/info',
    '/v1.45/../info',
    '/v2/info',
    '/_ping?x=1',
    '/_ping;x=1',
    '/_ping?x#y',
    '/_ping#x',
    'http://docker/_ping',
    'http://docker/info',
    '*',
    'info',
    `/containers/foreign/json`,
    `/containers/${foreignId}/json`,
    `/containers/${firewallId}/json`,
    `/containers/${sandboxId.slice(0, 12)}/json`,
    `/containers/${name}/../foreign/json`,
    `/containers/${name.toUpperCase()}/json`,
    `/containers/${name}/json?size=1`,
    `/containers/${name}/json/`,
    `/containers/${name}%00/json`,
    `/containers/${name}/archive?path=/`,
    `/containers/${name}/logs?stdout=true&stderr=true&timestamps=true&tail=5&follow=true`,
    `/containers/${name}/stats?stream=true`,
    `/containers/${name}/export`,
    `/containers/${name}/top`,
    `/containers/${name}/top?ps_args=-eo%20pid%2Cargs`,
    `/containers/${name}/top?ps_args=-eLo%20pid%2Cstat`,
    `/exec/${foreignExecution}/json`,
    '/images/json',
    '/images/node:24-slim/json',
    `/images/x/${image}/json`,
    `/images/${image}/history`,
    '/volumes',
    '/networks',
    '/networks/bridge',
    '/plugins',
    '/swarm',
    '/system/df',
  ])('lets no GET of %s through', async (path) => {
    const answer = await raw(share, `GET ${path} HTTP/1.1\r\nhost: x\r\n\r\n`)
    expect(answer).toMatch(/^HTTP\/1\.1 (403|400) /)
    expect(reached()).toEqual([])
  })

  test.each(['HEAD', 'PUT', 'PATCH', 'OPTIONS', 'TRACE', 'CONNECT', 'get', 'POST', 'DELETE', 'QUERY'])(
    'lets no %s through in the place of a GET',
    async (method) => {
      const head = `${method} /_ping HTTP/1.1\r\nhost: x\r\nx-http-method-override: GET\r\n\r\n`
      expect(await raw(share, head)).not.toMatch(/^HTTP\/1\.1 [23]/)
      expect(reached()).toEqual([])
    },
  )

  /** A request that would be passed on, in what is sent as part of another. */
  const hidden = `GET /images/${image}/json HTTP/1.1\r\nhost: x\r\n\r\n`
  const create = (headers: string, body: string) =>
    `POST ${filesPath} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n${headers}\r\n\r\n${body}`

  test.each([
    ['two lengths', create('content-length: 2\r\ncontent-length: 44', `{}${hidden}`)],
    ['a list of lengths', create('content-length: 2, 44', `{}${hidden}`)],
    ['a length with a sign', create('content-length: +2', `{}${hidden}`)],
    ['a length and chunks', create('content-length: 2\r\ntransfer-encoding: chunked', `0\r\n\r\n${hidden}`)],
    ['chunks and a length', create('transfer-encoding: chunked\r\ncontent-length: 2', `0\r\n\r\n${hidden}`)],
    ['another encoding', create('transfer-encoding: identity', `{}${hidden}`)],
    ['two encodings', create('transfer-encoding: chunked\r\ntransfer-encoding: identity', `0\r\n\r\n${hidden}`)],
    ['an encoding that is none', create('transfer-encoding: xchunked', `0\r\n\r\n${hidden}`)],
    ['a space before the colon', create('content-length : 2', `{}${hidden}`)],
    ['a folded header', create('x: y\r\n content-length: 2', `{}${hidden}`)],
    ['a bad chunk', create('transfer-encoding: chunked', `2;x\r\n{}XX\r\n0\r\n\r\n${hidden}`)],
    ['a body of a GET', `GET /_ping HTTP/1.1\r\nhost: x\r\ncontent-length: ${hidden.length}\r\n\r\n${hidden}`],
    ['chunks of a GET', 'GET /_ping HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n'],
    ['an expectation', create('content-length: 2\r\nexpect: 100-continue', '{}')],
    ['another expectation', create('content-length: 2\r\nexpect: x', '{}')],
    ['no host', 'GET /_ping HTTP/1.1\r\n\r\n'],
    ['two hosts', 'GET /_ping HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\nGET /info HTTP/1.1\r\n\r\n'],
    ['lines without returns', 'GET /_ping HTTP/1.1\nhost: x\n\n'],
    ['an old version', 'GET /_ping\r\n\r\n'],
    ['a stream where there is none', 'GET /_ping HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: tcp\r\n\r\n'],
    [
      'a stream from a container',
      `POST /containers/${name}/attach?stream=true&stdout=true&stderr=true HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: tcp\r\n\r\n`,
    ],
    ['HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
    ['a new protocol', 'GET /grpc HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n'],
  ])('is not deceived by %s', async (_, bytes) => {
    await raw(share, bytes)
    expect(reached().filter((call) => call !== 'GET /_ping')).toEqual([])
  })

  test('checks each request of a connection by itself', async () => {
    const foreign = 'GET /containers/foreign/json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n'
    const answers = await raw(share, `GET /_ping HTTP/1.1\r\nhost: x\r\n\r\n${hidden}${foreign}`, 5000)
    expect(answers.match(/(?<=HTTP\/1\.1 )\d+/g)).toEqual(['200', '200', '403'])
    expect(reached()).toEqual(['GET /_ping', `GET /images/${image}/json`])
  })

  test.each([
    ['twice with what it must not be last', `{"HostConfig":{"Privileged":true}}`],
    ['in another case', `{"hostconfig":{"Privileged":true}}`],
    ['with its letters escaped', `{"\\u0048ostConfig":{"Privileged":true}}`],
    ['besides what it may have', `{"HostConfig":${JSON.stringify({ ...filesBody.HostConfig, Binds: ['/:/host'] })}}`],
    ['with a prototype', `{"__proto__":{"HostConfig":{}}}`],
    ['very deep', `{"Labels":${'{"a":'.repeat(50_000)}1${'}'.repeat(50_000)}}`],
  ])('takes no field %s', async (_, more) => {
    const body = `${JSON.stringify(filesBody).slice(0, -1)},${more.slice(1)}`
    expect(await raw(share, create(`content-length: ${Buffer.byteLength(body)}`, body))).toMatch(/^HTTP\/1\.1 403/)
    expect(reached()).toEqual([])
  })

  test('writes a body anew instead of passing on its bytes', async () => {
    const body = `{"HostConfig":{"Privileged":true},${JSON.stringify(filesBody).slice(1)}`
    const lines = `connection: close\r\ncontent-length: ${Buffer.byteLength(body)}`
    expect(await raw(share, create(lines, body), 5000)).toContain('"made"')
    const [{ body: seen, headers }] = stub.received as [StubDockerd['received'][number]]
    expect(seen).not.toContain('"Privileged":true')
    expect(JSON.parse(seen)).toEqual(JSON.parse(JSON.stringify(filesBody)))
    expect(headers).toEqual({
      host: 'docker',
      'content-type': 'application/json',
      'content-length': String(Buffer.byteLength(seen)),
      connection: 'close',
    })
  })

  test.each([
    ['no JSON', '{"a"', 400],
    ['an empty one', '', 403],
    ['nothing', 'null', 403],
    ['too much', JSON.stringify({ a: 'x'.repeat(16 * 1024 * 1024) }), 413],
  ])('takes no body that is %s', async (_, body, status) => {
    expect(await raw(share, create(`content-length: ${body.length}`, body))).toMatch(new RegExp(`^HTTP/1.1 ${status}`))
    expect(reached()).toEqual([])
  })

  test.each([
    '?name=',
    '?name=foreign',
    `?name=${name}-files-0123456789ab&name=${name}-files-0123456789ab`,
    `?name=${name}-files-0123456789ab%0a`,
    `?name=${name}-files-0123456789ab&platform=x`,
    `?Name=${name}-files-0123456789ab`,
    `?name=/${name}-files-0123456789ab`,
    '',
  ])('takes no query %j for a container', async (query) => {
    expect((await ask(share, 'POST', `/containers/create${query}`, filesBody)).status).toBeGreaterThanOrEqual(400)
    expect(reached()).toEqual([])
  })

  test('runs programs only in sandboxes and their files containers', async () => {
    for (const container of [foreignId, firewallId, 'foreign', 'firewall'])
      expect((await ask(share, 'POST', `/containers/${container}/exec`, program)).status).toBe(403)
    for (const more of [
      { Privileged: true },
      { User: '0' },
      { Tty: true },
      { DetachKeys: 'a' },
      { ConsoleSize: [1, 1] },
    ])
      expect((await ask(share, 'POST', `/containers/${name}/exec`, { ...program, ...more })).status).toBe(403)
    expect(reached()).toEqual([])
  })

  test('accepts an image by its id only if a sandbox has it', async () => {
    const body = { ...filesBody, Image: `sha256:${foreignId}` }
    const path = `/containers/create?name=${name}-files-${foreignId.slice(-12)}`
    expect(await ask(share, 'POST', path, body)).toMatchObject({
      status: 403,
      body: { message: expect.stringContaining('no image of a sandbox') },
    })
    expect(reached()).toEqual([])
  })

  test('accepts a container beside a sandbox only under the name that its image gives it', async () => {
    const path = `/containers/create?name=${name}-files-ba9876543210`
    expect(await ask(share, 'POST', path, filesBody)).toMatchObject({
      status: 403,
      body: { message: expect.stringContaining('named after its image') },
    })
    expect(reached()).toEqual([])
  })

  test('answers with dockerd’s own message when there is no such container', async () => {
    expect(await ask(share, 'GET', `/containers/${'9'.repeat(64)}/json`)).toEqual({
      status: 404,
      body: { message: `No such container: ${'9'.repeat(64)}` },
    })
  })

  describe('with a stream to a program', () => {
    const body = JSON.stringify({ Detach: true, Tty: true })
    const start = (id = execution) =>
      `POST /exec/${id}/start HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\nconnection: Upgrade\r\nupgrade: tcp\r\n\r\n`
    const opened = async () => {
      const socket = dial(share)
      socket.write(start() + body)
      const [first] = (await once(socket, 'data')) as [Buffer]
      socket.pause()
      const end = first.indexOf('\r\n\r\n') + 4
      expect(first.toString('latin1', 0, end)).toMatch(/^HTTP\/1\.1 101 .*\r\n\r\n$/s)
      if (first.length > end) socket.unshift(first.subarray(end))
      return socket
    }

    test('passes bytes in both directions, and the end of each', async () => {
      const socket = await opened()
      socket.write('one')
      socket.end('two')
      expect(await text(socket)).toBe('onetwo')
      const [{ body, headers }] = stub.received as [StubDockerd['received'][number]]
      expect([JSON.parse(body), headers.upgrade]).toEqual([{ Detach: false, Tty: false }, 'tcp'])
    })

    test('passes the end of a program’s output while its input goes on', async () => {
      const seen = Promise.withResolvers<string>()
      stub.program = (program) => {
        program.end('done')
        void text(program).then(seen.resolve)
      }
      const socket = await opened()
      expect(await text(socket)).toBe('done')
      socket.write('still ')
      socket.end('here')
      expect(await seen.promise).toBe('still here')
    })

    test('holds early input back until there is a program', async () => {
      const socket = dial(share)
      socket.end(`${start()}${body}early${hidden}`)
      const answer = await text(socket)
      expect(answer.slice(answer.indexOf('\r\n\r\n') + 4)).toBe(`early${hidden}`)
      expect(reached()).toEqual([`POST /exec/${execution}/start`])
    })

    test('accepts its request in pieces', async () => {
      const socket = dial(share)
      for (const letter of `${start()}${body}hello`) {
        socket.write(letter)
        await new Promise(setImmediate)
      }
      socket.end()
      expect(await text(socket)).toMatch(/\r\n\r\nhello$/)
    })

    test.each([
      ['of a foreign container', start(foreignExecution) + body + hidden],
      ['without asking for the stream', start().replace(/connection.*tcp\r\n/s, '') + body],
      ['with chunks', `${start().replace(/content-length: \d+/, 'transfer-encoding: chunked')}0\r\n\r\n${hidden}`],
      ['with a long body', start().replace(/content-length: \d+/, 'content-length: 5000') + 'x'.repeat(5000) + hidden],
    ])('opens none %s', async (_, bytes) => {
      expect(await raw(share, bytes)).toMatch(/^HTTP\/1\.1 40[03] (?![\s\S]*HTTP\/1)/)
      expect(reached()).toEqual([])
    })

    test('reads no faster than the other end takes it', async () => {
      const block = Buffer.alloc(65_536)
      let sent = 0
      stub.program = (program) => {
        const push = () => {
          for (sent += block.length; program.write(block) && sent < 64 * 1024 * 1024; sent += block.length);
        }
        program.on('drain', push)
        push()
      }
      const socket = await opened()
      await sleep(300)
      expect(sent).toBeGreaterThan(0)
      expect(sent).toBeLessThan(8 * 1024 * 1024)
      socket.destroy()
    })

    test('passes the disconnection of each end to the other', async () => {
      const program = Promise.withResolvers<Socket>()
      stub.program = program.resolve
      const socket = await opened()
      const far = await program.promise
      socket.destroy()
      await once(far.resume(), 'end')
      far.write('for nobody')
      await until('its close', () => {
        if (!far.destroyed) far.write('for nobody')
        return far.destroyed
      })

      stub.program = (other) => other.destroy()
      await once((await opened()).resume(), 'end')
    })
  })
})

test('a call ends at dockerd when its client has disconnected', async () => {
  const asking = request({
    socketPath: proxySocket(folder, 'worker'),
    path: `/containers/${name}/logs?stdout=true&stderr=true&timestamps=true&tail=5`,
    agent: false,
  })
  asking.on('error', () => {}).end()
  await once(asking, 'response')
  expect(stub.open).toBe(1)
  asking.destroy()
  await until('the end of the call', () => stub.open === 0)
})

test('without a dockerd, the answer to calls and streams is a 502 in its format', async () => {
  const own = await mkdtemp(join(tmpdir(), 'chowder-docker-proxy-'))
  const away = await contractProxy(`unix://${own}/none.sock`, own)
  const socketPath = proxySocket(own, 'worker')
  for (const headers of [{}, { connection: 'Upgrade', upgrade: 'tcp', 'content-length': '0' }]) {
    const path = 'upgrade' in headers ? `/exec/${execution}/start` : '/_ping'
    const asking = request({
      socketPath,
      path,
      method: 'upgrade' in headers ? 'POST' : 'GET',
      headers,
      agent: false,
    }).end()
    const [response] = await once(asking, 'response')
    expect(response.statusCode).toBe(502)
    expect(JSON.parse(await text(response)).message).toMatch(/^docker-proxy, worker: .*: dockerd does not answer/)
  }
  await away.close()
  await rm(own, { recursive: true })
})

test('a socket is open to every user, replaces a left-over one, and is removed with the proxy', async () => {
  const own = await mkdtemp(join(tmpdir(), 'chowder-docker-proxy-'))
  const first = await contractProxy(stub.host, own)
  const paths = shares.map((share) => proxySocket(own, share))
  for (const path of paths) expect((await stat(path)).mode & 0o777).toBe(0o666)
  await first.close()
  for (const path of paths) {
    await expect(stat(path)).rejects.toThrow('ENOENT')
    await writeFile(path, 'left')
  }
  const second = await contractProxy(stub.host, own)
  for (const path of paths) expect((await stat(path)).isSocket()).toBe(true)
  await second.close()
  await rm(own, { recursive: true })
})

test('images are built one after another, for any number of workers', async () => {
  const inUse = await mkdtemp(join(tmpdir(), 'chowder-docker-builds-'))
  const builder = await openStubDockerd(join(inUse, 'real.sock'), { containers, held: '/build' })
  const guarded = await contractProxy(builder.host, inUse)
  try {
    const { name: t, options } = await imageBuild('v1', contractRelease, contractBuild)
    const { buildargs, networkmode } = options
    const query = new URLSearchParams({ t, networkmode, buildargs: JSON.stringify(buildargs), rm: 'true', forcerm: 'true' }) // biome-ignore format: short
    const begun: ClientRequest[] = []
    const build = () => {
      const asking = request({ socketPath: proxySocket(inUse, 'worker'), method: 'POST', path: `/build?${query}` })
      asking.on('error', () => {}).on('response', () => begun.push(asking))
      asking.end()
    }
    for (let asked = 0; asked < 3; asked += 1) build()
    for (let ended = 0; ended < 3; ended += 1) {
      await until('a build', () => begun[ended] && builder.open === 1)
      await sleep(100)
      expect([begun.length, builder.received.length, builder.open]).toEqual([ended + 1, ended + 1, 1])
      begun[ended]?.destroy()
    }
  } finally {
    await guarded.close()
    await builder.close()
    await rm(inUse, { recursive: true, force: true })
  }
})
