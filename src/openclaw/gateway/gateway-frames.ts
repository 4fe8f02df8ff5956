import type { JsonBounds } from '#platform/json/bounds.ts'

const mebibyte = 1024 * 1024

/** Maximum size of a frame, unless a call with a large answer is waiting. */
const maxFrameBytes = 4 * mebibyte
/** Maximum size of any frame. */
export const maxLargeFrameBytes = 32 * mebibyte
/** Maximum bytes and frames of a connection, which serves one request or one change, or those of a minute of a kept one. */
const maxConnectionBytes = 64 * mebibyte
/** Far more events than a busy gateway sends during the longest connection, or in a minute. */
const maxFrames = 50_000
const minuteMs = 60_000
/** The longest page of a session's history has fewer values. */
export const frameBounds: JsonBounds = { depth: 200, values: 100_000, isLenient: true }

/** The methods with large answers: messages of a session, a whole configuration, all skills of an agent. */
const methodsWithLargeAnswers: ReadonlySet<string> = new Set([
  'chat.history',
  'config.get',
  'config.patch',
  'skills.status',
])

export const mayAnswerLarge = (method: string): boolean => methodsWithLargeAnswers.has(method)

const answerType = '"type":"res"'
const runEventType = '"event":"agent"'
/** A gateway writes the type of a frame first, then the name of an event. */
const headBytes = 64

const headHas = (frame: Buffer, text: string): boolean => frame.subarray(0, headBytes).includes(text)

export const isAnswer = (frame: Buffer): boolean => headHas(frame, answerType)
/** Whether a frame is an event of a run. The only other event that is read is the challenge. */
export const isRunEvent = (frame: Buffer): boolean => headHas(frame, runEventType)

/**
 * The received bytes and frames of a connection; with `isKept`, of its current minute. The agent may answer in place of
 * its gateway, so everything counts, including events and answers to no call.
 */
export class ReceivedFrames {
  readonly #isKept: boolean
  #bytes = 0
  #frames = 0
  #minuteEndsAt = performance.now() + minuteMs

  constructor(isKept: boolean) {
    this.#isKept = isKept
  }

  /** Counts a frame of this length. Returns the reason why the connection must end; null if it may continue. */
  add(length: number, isLargeExpected: () => boolean): string | null {
    if (this.#isKept && performance.now() > this.#minuteEndsAt) {
      this.#bytes = this.#frames = 0
      this.#minuteEndsAt = performance.now() + minuteMs
    }
    this.#bytes += length
    this.#frames += 1
    if (this.#frames > maxFrames) return 'the gateway sent too many frames'
    if (this.#bytes > maxConnectionBytes) return 'the gateway sent too much'
    if (length > maxFrameBytes && !isLargeExpected()) return 'the gateway sent a frame that is too large'
    return null
  }
}
