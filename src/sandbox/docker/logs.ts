import { type Output, readOutput } from '#sandbox/container/output.ts'
import type { LogPage } from '#sandbox/driver.ts'
import { maxPageBytes, toLogLine } from '#sandbox/log-lines.ts'
import type { DockerClient } from './docker-client.ts'

const deadlineMs = 15_000
/** Maximum lines read to continue from a position: dockerd finds the last lines quickly, and others slowly. */
const maxFollowedLines = 1000
const newline = 0x0a
const nanosecondDigits = 9

async function* only(bytes: Buffer): AsyncGenerator<Buffer, void> {
  yield bytes
}

/** A position: the time of the last line that was read, and the number of lines with exactly that time. */
interface Position {
  time: string
  count: number
}
const toText = ({ time, count }: Position) => `${count}@${time}`
const fromText = (text: string): Position => {
  const at = text.indexOf('@')
  return { time: text.slice(at + 1), count: Number(text.slice(0, at)) }
}
const beginning: Position = { time: '', count: 0 }

/** Converts dockerd's time, such as `2026-11-27T06:52:41.082000001Z`, to the seconds of its parameter `since`. */
function sinceOf(time: string): string {
  const [seconds = '', fraction = ''] = time.replace(/Z$/, '').split('.')
  return `${Date.parse(`${seconds}Z`) / 1000}.${fraction.padEnd(nanosecondDigits, '0')}`
}

interface TimedLine {
  time: string
  bytes: Buffer
}

/** dockerd writes the time before each line, and before each further part of a line that is longer than 16 KiB. */
function joinParts(parts: readonly Output[]): { lines: TimedLine[]; rest: Buffer } {
  const lines: TimedLine[] = []
  const open = { stdout: [] as Buffer[], stderr: [] as Buffer[] }
  for (const { stream, bytes } of parts) {
    const space = bytes.indexOf(' ')
    open[stream].push(bytes.subarray(space + 1))
    if (bytes.at(-1) !== newline) continue
    const time = bytes.subarray(0, space).toString('latin1')
    lines.push({ time, bytes: Buffer.concat(open[stream]).subarray(0, -1) })
    open[stream] = []
  }
  return { lines, rest: Buffer.concat([...open.stdout, ...open.stderr]) }
}

/** The lines behind a position. dockerd also sends those with exactly the time of the position. */
function behind(lines: TimedLine[], { time, count }: Position) {
  const first = lines.findIndex((line) => line.time !== time)
  const known = first < 0 ? lines.length : first
  return { lines: lines.slice(Math.min(known, count)), hasGap: known < count }
}

/** The number of lines that fit in a page, from the first one on. */
function roomFor(lines: readonly TimedLine[]): number {
  let room = maxPageBytes
  const overflowing = lines.findIndex(({ bytes }) => {
    room -= bytes.length
    return room < 0
  })
  return overflowing < 0 ? lines.length : Math.max(1, overflowing)
}

function positionOf(lines: readonly TimedLine[], after: Position): Position {
  const time = lines.at(-1)?.time
  if (time === undefined) return after
  const count = lines.filter((line) => line.time === time).length
  return { time, count: time === after.time ? after.count + count : count }
}

/** Reads lines of a container's log: the last ones, or those behind a position. */
export async function readLog(
  client: DockerClient,
  container: string,
  { lines: wanted, after }: { lines: number; after?: string | undefined },
  signal: AbortSignal,
): Promise<LogPage> {
  const from = after === undefined ? beginning : fromText(after)
  // One more, because the newest line may have no end yet.
  const tail = after === undefined ? wanted + 1 : maxFollowedLines + from.count
  const parts = await client.callUnless(
    [404],
    signal,
    async (docker, abortSignal) => {
      const log = await docker.getContainer(container).logs({
        stdout: true,
        stderr: true,
        timestamps: true,
        tail,
        ...(from.time !== '' && { since: sinceOf(from.time) as unknown as number }),
        abortSignal,
      })
      const found: Output[] = []
      for await (const part of readOutput(only(log))) found.push(part)
      return found
    },
    { deadlineMs },
  )
  const { lines: read, rest } = joinParts(parts ?? [])
  const { lines, hasGap } = behind(read, from)
  const isLast = after === undefined
  const wantedLines = isLast ? lines.slice(Math.max(0, lines.length - wanted)) : lines.slice(0, wanted)
  const shown = isLast
    ? wantedLines.slice(wantedLines.length - roomFor(wantedLines.toReversed()))
    : wantedLines.slice(0, roomFor(wantedLines))
  return {
    lines: shown.map(({ bytes }) => toLogLine(bytes)),
    rest: rest.length > 0 ? toLogLine(rest) : null,
    position: toText(positionOf(isLast ? lines : shown, from)),
    hasGap,
  }
}
