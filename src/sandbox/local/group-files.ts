import { readFileSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'

/** A file of a control group; empty when there is none. */
export const read = (path: string) => readFile(path, 'utf8').catch(() => '')

/** As `read`, for what is read often: the kernel has it in memory, and this takes a twentieth of the processor time. */
export function readNow(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

export const write = (path: string, value: string | number) => writeFile(path, String(value))

/** The number of a line such as `oom_kill 3`; null without it. */
export function numberIn(text: string, name: string): number | null {
  const found = new RegExp(`^${name} (\\d+)$`, 'm').exec(text)?.[1]
  return found === undefined ? null : Number(found)
}
