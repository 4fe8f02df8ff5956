import { setTimeout as sleep } from 'node:timers/promises'
import { and } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { countStoppedForDrain, countUndrained, startAfterDrain, stopForDrain } from '#instances/drain-region.ts'
import { type RegionState, readRegionStates, setRegionState } from '#instances/region-states.ts'
import { isShownIn, type RegionPlace } from '#instances/regions.ts'
import { hasStatus, isNotTerminated } from '#instances/status.ts'
import { didYouMean } from '#platform/command-line.ts'
import { type Command, type CommandDeps, type Output, table } from './command.ts'

/** Workers stop an agent within 30 s, and as many at once as they have slots. */
const drainTimeoutMs = 30 * 60_000
const pauseMs = 1000
const reportEveryMs = 10_000

function findRegion(regions: readonly RegionPlace[], name: string): RegionPlace {
  const found = regions.find(({ region }) => region === name)
  if (found) return found
  const names = regions.map(({ region }) => region)
  throw new Error(`There is no region ${JSON.stringify(name)}.${didYouMean(name, names)}`)
}

const stateInWords: Record<RegionState, string> = {
  open: 'takes new instances',
  cordoned: 'takes no new instances',
  drained: 'takes no new instances, and starts none',
}

async function show(db: Db, regions: readonly RegionPlace[]): Promise<Output> {
  const states = await readRegionStates(db)
  const rows = await Promise.all(
    regions.map(async (place) => ({
      name: place.region,
      driver: place.sandboxDriver,
      state: states.get(place.region) ?? ('open' as const),
      running: await db.$count(instances, and(isShownIn(place), hasStatus.running)),
      instances: await db.$count(instances, and(isShownIn(place), isNotTerminated)),
    })),
  )
  const cells = rows.map((row) => [
    row.name,
    row.driver,
    `${row.running} of ${row.instances}`,
    `${row.state}: ${stateInWords[row.state]}`,
  ])
  return { text: table(['REGION', 'DRIVER', 'RUNNING', 'STATE'], cells), data: rows }
}

/** Stops the instances of a region. Throws an Error for the operator after half an hour; a second call continues. */
async function empty({ db, report }: Pick<CommandDeps, 'db' | 'report'>, place: RegionPlace): Promise<void> {
  const deadline = performance.now() + drainTimeoutMs
  let reportedAt = performance.now()
  for (;;) {
    await stopForDrain(db, place) // including those started meanwhile
    const left = await countUndrained(db, place)
    if (left === 0) return
    if (performance.now() > deadline) {
      throw new Error(
        `${left} instances of ${place.region} are not stopped yet. Check that a worker of the region runs ` +
          '(npm run doctor), and run the command again: it goes on where it was.',
      )
    }
    if (performance.now() - reportedAt > reportEveryMs) {
      reportedAt = performance.now()
      report(`${left} instances of ${place.region} are still to stop`)
    }
    await sleep(pauseMs)
  }
}

async function drain({ db, report }: Pick<CommandDeps, 'db' | 'report'>, region: RegionPlace) {
  await setRegionState(db, region.region, 'drained')
  await empty({ db, report }, region)
  const stopped = await countStoppedForDrain(db, region)
  const sentences = [
    `No agent runs in ${region.region} any more.`,
    ...(stopped > 0
      ? [`${stopped} instances are stopped. They start again with: npm run admin -- uncordon ${region.region}`]
      : []),
  ]
  return { text: sentences.join('\n'), data: { region: region.region, state: 'drained', stopped } }
}

export const regionCommands: Readonly<Record<string, Command>> = {
  'list-regions': {
    parameters: [],
    summary: 'every region: its driver, its instances, and whether it takes new ones',
    run: async ({ db, regions }) => show(db, await regions()),
  },
  cordon: {
    parameters: ['<region>'],
    summary: 'it takes no new instances; those that it has go on',
    async run({ db, regions, words: [name = ''] }) {
      const place = findRegion(await regions(), name)
      await setRegionState(db, place.region, 'cordoned')
      return show(db, [place])
    },
  },
  uncordon: {
    parameters: ['<region>'],
    summary: 'it takes new instances again, and those start again that its drain has stopped',
    async run({ db, regions, words: [name = ''] }) {
      const place = findRegion(await regions(), name)
      await setRegionState(db, place.region, 'open')
      await startAfterDrain(db, place)
      return show(db, [place])
    },
  },
  drain: {
    parameters: ['<region>'],
    summary: 'it takes no new instances and starts none, and its agents are stopped',
    async run({ db, report, regions, words: [name = ''] }) {
      return drain({ db, report }, findRegion(await regions(), name))
    },
  },
}
