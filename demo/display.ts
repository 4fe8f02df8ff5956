import { styleText } from 'node:util'

const frames = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏']
const frameEveryMs = 100

const out = process.stdout
const isTerminal = out.isTTY === true
const paint = (style: Parameters<typeof styleText>[0], text: string) => styleText(style, text, { stream: out })
const seconds = (sinceMs: number) => `${((performance.now() - sinceMs) / 1000).toFixed(1)} s`

/** The display of a running step. */
export interface Live {
  /** Shows the current activity: redrawn in place on a terminal, otherwise one line for each change. */
  now(text: string): void
  /** Text that stays, as it comes and without a line's end. */
  print(text: string): void
}

export const show = (text = '') => void out.write(`${text}\n`)
export const showTitle = (text: string) => show(`\n  ${paint('bold', text)}\n`)
export const showFact = (name: string, text: string) => show(`  ${paint('dim', name.padEnd(8))}${text}`)
export const showWarning = (text: string) => show(`  ${paint('yellow', text)}`)

let steps = 0

/**
 * Shows one step: its title, the command a person would type, what `work` reports meanwhile, and in the end its outcome
 * in words beside the time it took. Returns what `work` does; what that throws is thrown on.
 */
export async function step<T>(
  title: string,
  command: string,
  work: (live: Live) => Promise<T>,
  outcome: (result: T) => string,
): Promise<T> {
  const startedAt = performance.now()
  let doing = ''
  let frame = 0
  let isSaying = false

  const clear = () => void (isTerminal && out.write('\r\x1b[2K'))
  function draw(): void {
    frame = (frame + 1) % frames.length
    const time = seconds(startedAt)
    const text = doing.slice(0, Math.max(0, (out.columns ?? 80) - time.length - 9))
    out.write(`\r\x1b[2K    ${paint('cyan', frames[frame] ?? '')} ${text} ${paint('dim', time)}`)
  }
  let timer = isTerminal ? setInterval(draw, frameEveryMs) : undefined
  function quiet(): void {
    clearInterval(timer)
    if (timer) clear()
    timer = undefined
    if (isSaying) out.write('\n')
    isSaying = false
  }
  const live: Live = {
    now(text) {
      if (text === doing) return
      doing = text
      if (!isTerminal) show(`    … ${text} (${seconds(startedAt)})`)
    },
    print(text) {
      if (!isSaying) quiet()
      out.write(isSaying ? text : `    ${text}`)
      isSaying = true
    },
  }

  steps += 1
  show(`\n  ${paint('bold', `${steps} ${title}`)}`)
  for (const line of command.split('\n')) show(`    ${paint('dim', line)}`)
  try {
    const result = await work(live)
    quiet()
    show(`    ${paint('green', '✓')} ${outcome(result)} ${paint('dim', seconds(startedAt))}`)
    return result
  } catch (error) {
    quiet()
    show(`    ${paint('red', '✗')} ${paint('dim', seconds(startedAt))}`)
    throw error
  }
}
