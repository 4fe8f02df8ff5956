import type { JsonBounds } from '#platform/json/bounds.ts'

const mebibyte = 1024 * 1024

/** Maximum size of a frame, unless a call with a large answer is waiting. */
const maxFrameBytes = 4 * mebibyte
/** Maximum size of any frame. */
export const maxLargeFrameBytes = 32 * mebibyte
/** Maximum bytes of a connection, which serves one request or one change. */
const maxConnectionBytes = 64 * mebibyte
/** Far more events than a busy gateway sends during the longest connection. */
const maxFrames = 50_000
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
/** A gateway writes the type of a frame first. */
const headBytes = 64

/** Whether a frame is an answer. All others but the challenge are unused events. */
export const isAnswer = (frame: Buffer): boolean => frame.subarray(0, headBytes).includes(answerType)

/**
 * The received bytes and frames of a connection. The agent may answer in place of its gateway, so everything counts,
 * including events and answers to no call.
 */
export class ReceivedFrames {
  #bytes = 0
  #frames = 0

  /** Counts a frame of this length. Returns the reason why the connection must end; null if it may continue. */
  add(length: number, isLargeExpected: () => boolean): string | null {
    this.#bytes += length
    this.#frames += 1
    if (this.#frames > maxFrames) return 'the gateway sent too many frames'
    if (this.#bytes > maxConnectionBytes) return 'the gateway sent too much'
    if (length > maxFrameBytes && !isLargeExpected()) return 'the gateway sent a frame that is too large'
    return null
  }
}
