import { readdir, readlink } from 'node:fs/promises'
import { Session } from 'node:inspector/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

setFlagsFromString('--expose-gc')
export const collectGarbage: () => void = runInNewContext('gc')

/** What this process holds, once the garbage is collected. */
export interface Footprint {
  /** The memory in use, buffers included, in KiB. */
  memory: number
  /** The entries of all Maps and Sets: what a cache or a registry forgets to remove stays in one. */
  entries: number
  /** The Maps and Sets with most entries, each with one of its keys. */
  largest: string[]
  /** The listeners of all event emitters and abort signals. */
  listeners: number
  emitters: number
  /** Open descriptors by kind: `socket`, `pipe`, `anon_inode`, and `file` for all with a path. */
  descriptors: Record<string, number>
  /** Timers that keep the event loop alive, as few as there are at any time of the measurement. */
  timers: number
}

/** What an object holds: the entries of a Map or Set with one of its keys, the listeners of an emitter or a signal. */
type Held = { entries: number; key: string } | { listeners: number; isEmitter: boolean }

/** Runs in the process itself, given as source, with all of its objects. */
const heldByEach = `function () {
  const { EventEmitter, getEventListeners } = process.getBuiltinModule('node:events')
  const heldBy = object => {
    if (object instanceof Map || object instanceof Set)
      return [{ entries: object.size, key: String(object.keys().next().value).slice(0, 80) }]
    if (object instanceof EventEmitter) {
      const listeners = object.eventNames().reduce((sum, name) => sum + object.listenerCount(name), 0)
      return [{ listeners, isEmitter: true }]
    }
    if (object instanceof AbortSignal)
      return [{ listeners: getEventListeners(object, 'abort').length, isEmitter: false }]
    return []
  }
  return this.flatMap(object => {
    try {
      return heldBy(object)
    } catch {
      return [] // the prototype of a subclass
    }
  })
}`

/** Searches the heap, after it has collected the garbage: once, since that takes a second. */
async function searchHeap(): Promise<Held[]> {
  const session = new Session()
  session.connect()
  try {
    const { result } = await session.post('Runtime.evaluate', { expression: 'Object.prototype' })
    const prototypeObjectId = result.objectId ?? ''
    const { objects } = await session.post('Runtime.queryObjects', { prototypeObjectId })
    const answer = await session.post('Runtime.callFunctionOn', {
      functionDeclaration: heldByEach,
      objectId: objects.objectId ?? '',
      returnByValue: true,
    })
    if (answer.exceptionDetails) throw new Error(answer.exceptionDetails.exception?.description)
    return answer.result.value as Held[]
  } finally {
    session.disconnect()
  }
}

const count = (names: readonly string[]) => {
  const counts: Record<string, number> = {}
  for (const name of names.toSorted()) counts[name] = (counts[name] ?? 0) + 1
  return counts
}

async function openDescriptors(): Promise<Record<string, number>> {
  const folder = '/proc/self/fd'
  const links = await Promise.all((await readdir(folder)).map((fd) => readlink(`${folder}/${fd}`).catch(() => null)))
  return count(
    links.flatMap((link) => (link === null ? [] : [link.startsWith('/') ? 'file' : (link.split(':')[0] ?? '')])),
  )
}

const shownCollections = 10
const looks = 20
const lookEveryMs = 25

/** Work that begins and ends meanwhile has some more for a moment. */
async function fewestTimers(): Promise<number> {
  let fewest = Number.POSITIVE_INFINITY
  for (let look = 0; look < looks; look += 1) {
    fewest = Math.min(fewest, process.getActiveResourcesInfo().filter((type) => type === 'Timeout').length)
    await sleep(lookEveryMs, undefined, { ref: false })
  }
  return fewest
}

/** Measures this process. It stands still for a second or two. */
export async function measureFootprint(): Promise<Footprint> {
  const held = await searchHeap()
  const collections = held.flatMap((one) => ('entries' in one ? [one] : []))
  const listened = held.flatMap((one) => ('listeners' in one ? [one] : []))
  const largest = collections.toSorted((one, other) => other.entries - one.entries).slice(0, shownCollections)
  collectGarbage()
  const { heapUsed, external } = process.memoryUsage()
  return {
    memory: (heapUsed + external) / 2 ** 10,
    entries: collections.reduce((sum, { entries }) => sum + entries, 0),
    largest: largest.map(({ entries, key }) => `${entries} such as ${key}`),
    listeners: listened.reduce((sum, { listeners }) => sum + listeners, 0),
    emitters: listened.filter(({ isEmitter }) => isEmitter).length,
    descriptors: await openDescriptors(),
    timers: await fewestTimers(),
  }
}
