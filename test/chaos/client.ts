import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { noteAnswer } from '../support/canary/secrets.ts'
import { present } from '../support/present.ts'
import type { Random } from './random.ts'

type Kind = 'create' | 'start' | 'stop' | 'configure' | 'rename' | 'delete' | 'ask'

/** One request as it was sent, and what came back. */
export interface Attempt {
  /** Unix time in ms. */
  sentAt: number
  /** When it was answered, or known that it would not be. */
  endedAt: number
  /** null when no answer came. */
  status: number | null
  requestId: string | null
  /** The `detail` of a refusal, or what was wrong with an answer. */
  detail: string | null
}

/** One thing that the client wanted, with all attempts at it. */
export interface Operation {
  kind: Kind
  /** null for a create that was never answered with one. */
  instanceId: string | null
  organizationId: string
  /** The instance's name, which is unique to a create. */
  name: string
  idempotencyKey: string | null
  attempts: Attempt[]
}

/** A client's knowledge of an instance: the last answer, and the later requests without an answer. */
interface Expected {
  id: string
  organizationId: string
  /** Each of these may be the state; one, once it was accepted. */
  states: Set<'running' | 'stopped' | 'terminated'>
  names: Set<string>
  /** The prompt of the last configuration; null for none. */
  markers: Set<string | null>
}

export interface Journal {
  operations: Operation[]
  expected: Map<string, Expected>
}

export interface ClientOptions {
  random: Random
  /** The APIs that answer right now. */
  urls(): string[]
  organization: { id: string; key: string }
  journal: Journal
  /** Told apart from other clients by it. */
  prefix: string
  /** A secret that goes with each configuration. */
  secret: string
  mostInstances: number
}

/** Longer than any answer takes. */
const requestTimeoutMs = 110_000
/** After this a client gives up, and knows nothing. */
const repeatForMs = 60_000
const isWorthRepeating = (status: number | null) => status === null || status === 429 || status >= 500

interface Instance {
  id: string
  name: string
  status: string
}

const accepted: Record<Kind, readonly number[]> = {
  create: [201],
  start: [200, 202],
  stop: [200, 202],
  configure: [200],
  rename: [200],
  delete: [204],
  ask: [200],
}

/** A complete stream ends with one of these events. */
const lastEvents = /^event: (response\.(completed|failed|incomplete)|error)$/m

/** Where a client's marker stands in an instance's configuration. */
const configurationWith = (marker: string, secret: string) => ({
  messages: { responsePrefix: marker },
  hooks: { token: secret },
})

/**
 * One client, which does one thing after the other: creates instances, starts, stops, configures, renames, asks and
 * deletes them, and repeats a change that got no answer, a 429 or a 5xx. What it may rely on afterwards stands in the
 * journal.
 */
export async function runClient(options: ClientOptions, stop: AbortSignal): Promise<void> {
  const { random, urls, organization, journal, prefix, secret, mostInstances } = options
  let created = 0
  let marked = 0

  /** One request to any API that runs; never throws. */
  async function send(
    method: string,
    path: string,
    body?: unknown,
    key?: string,
  ): Promise<Attempt & { body: unknown }> {
    const attempt = { sentAt: Date.now(), endedAt: 0, status: null, requestId: null, detail: null, body: null }
    const url = random.pick(urls())
    if (url === undefined) return { ...attempt, endedAt: Date.now() }
    try {
      const response = await fetch(`${url}${path}`, {
        method,
        headers: {
          authorization: `Bearer ${organization.key}`,
          ...(body !== undefined && { 'content-type': 'application/json' }),
          ...(key !== undefined && { 'idempotency-key': key }),
        },
        ...(body !== undefined && { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(requestTimeoutMs),
      })
      const text = await response.text()
      noteAnswer(text)
      const { status, headers, ok } = response
      const isStream = headers.get('content-type')?.startsWith('text/event-stream') ?? false
      const answer = isStream || text === '' ? text : JSON.parse(text)
      const brokeOff = isStream && !lastEvents.test(text) ? 'a stream without an end' : null
      const detail = ok ? brokeOff : JSON.stringify(answer?.detail ?? null)
      return { ...attempt, endedAt: Date.now(), status, requestId: headers.get('x-request-id'), detail, body: answer }
    } catch {
      return { ...attempt, endedAt: Date.now() }
    }
  }

  /** Repeats a request as a client does; the last answer. */
  async function insist(operation: Operation, method: string, path: string, body?: unknown): Promise<unknown> {
    journal.operations.push(operation)
    const deadline = performance.now() + repeatForMs
    for (;;) {
      const { body: answer, ...attempt } = await send(method, path, body, operation.idempotencyKey ?? undefined)
      operation.attempts.push(attempt)
      if (!isWorthRepeating(attempt.status) || performance.now() > deadline) return answer
      await sleep(random.between(200, 1200))
    }
  }

  const operationOn = (kind: Kind, instance: { id: string | null; name: string }): Operation => ({
    kind,
    instanceId: instance.id,
    organizationId: organization.id,
    name: instance.name,
    idempotencyKey: null,
    attempts: [],
  })

  const expect = (id: string, name: string, marker: string | null): Expected => {
    const expected: Expected = {
      id,
      organizationId: organization.id,
      states: new Set(['running']),
      names: new Set([name]),
      markers: new Set([marker]),
    }
    if (!journal.expected.has(id)) journal.expected.set(id, expected)
    return present(journal.expected.get(id))
  }

  const markerOf = (name: string) => `${name} at first`

  async function create(): Promise<void> {
    created += 1
    const name = `${prefix}-${created}`
    const operation = operationOn('create', { id: null, name })
    if (random.next() < 0.6) operation.idempotencyKey = randomUUID()
    const answer = await insist(operation, 'POST', '/v1/instances', {
      name,
      openclaw_config: configurationWith(markerOf(name), secret),
    })
    if (operation.attempts.at(-1)?.status !== 201) return
    operation.instanceId = (answer as Instance).id
    expect(operation.instanceId, name, markerOf(name))
  }

  /** Asks for one of two states of something: when it is not known whether it was taken, both may be. */
  function note<T>(operation: Operation, states: Set<T>, wanted: T): void {
    const last = operation.attempts.at(-1)?.status ?? null
    if (last !== null && accepted[operation.kind].includes(last)) states.clear()
    else if (operation.attempts.every(({ status }) => !isWorthRepeating(status))) return
    states.add(wanted)
  }

  async function act(kind: Exclude<Kind, 'create'>, instance: Instance): Promise<void> {
    const path = `/v1/instances/${instance.id}`
    const operation = operationOn(kind, instance)
    if (kind === 'ask') {
      journal.operations.push(operation)
      const turn = { model: 'openclaw', input: 'hello', stream: random.next() < 0.5 }
      const { body: _, ...attempt } = await send('POST', `${path}/responses`, turn)
      operation.attempts.push(attempt)
      return
    }
    const expected = expect(instance.id, instance.name, markerOf(instance.name))
    if (kind === 'start' || kind === 'stop') {
      await insist(operation, 'POST', `${path}/${kind}`)
      note(operation, expected.states, kind === 'start' ? 'running' : 'stopped')
    } else if (kind === 'delete') {
      await insist(operation, 'DELETE', path)
      note(operation, expected.states, 'terminated')
    } else if (kind === 'rename') {
      marked += 1
      const name = `${instance.name.split('/')[0]}/${marked}`
      await insist(operation, 'PATCH', path, { name })
      note(operation, expected.names, name)
    } else {
      marked += 1
      const marker = `${prefix} ${marked}`
      await insist(operation, 'PATCH', path, { openclaw_config: configurationWith(marker, secret) })
      note<string | null>(operation, expected.markers, marker)
    }
  }

  /** Also those that were created by a request without an answer; null when nobody answers. */
  async function mine(): Promise<Instance[] | null> {
    const { body } = await send('GET', '/v1/instances')
    return Array.isArray(body) ? body.filter(({ name }: Instance) => name.startsWith(`${prefix}-`)) : null
  }

  while (!stop.aborted) {
    const instances = await mine()
    const instance = instances && random.pick(instances)
    if (!instances) {
      // Asked again after the pause.
    } else if (!instance || (instances.length < mostInstances && random.next() < 0.25)) await create()
    else if (instances.length > mostInstances) await act('delete', instance)
    else if (random.next() < 0.15) {
      await act(random.pick(['start', 'stop', 'configure', 'rename', 'delete']), instance)
    } else if (instance.status === 'running') {
      await act(random.weighted({ ask: 6, stop: 3, configure: 3, rename: 1, delete: 2 }), instance)
    } else if (instance.status !== 'provisioning') {
      await act(random.weighted({ start: 6, configure: 1, delete: 1 }), instance)
    }
    await sleep(random.between(100, 700), undefined, { signal: stop }).catch(() => {})
  }
}

/** Starts an instance once and returns the outcome, after all faults have ended. */
export async function startOnce(url: string, key: string, id: string): Promise<string> {
  const response = await fetch(`${url}/v1/instances/${id}/start`, {
    method: 'POST',
    headers: { authorization: `Bearer ${key}` },
    signal: AbortSignal.timeout(requestTimeoutMs),
  })
  return `${response.status} ${await response.text()}`
}
