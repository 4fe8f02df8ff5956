import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { promisify } from 'node:util'

const run = promisify(execFile)
const device = '/dev/zram0'
const settings = '/sys/block/zram0'

/** Whether this host has free swap now. */
export const hasSwap = (): boolean => /^SwapFree:\s+[1-9]/m.test(readFileSync('/proc/meminfo', 'utf8'))

/** The reason why a test cannot have swap on this host; null if it can. */
export function swapFault(): string | null {
  if (process.getuid?.() !== 0) return 'only root can make swap'
  if (hasSwap()) return null
  if (!existsSync(device)) return `there is no ${device}: modprobe zram makes it`
  return readFileSync(`${settings}/disksize`, 'utf8').trim() === '0' ? null : `${device} is in use`
}

/** Makes swap of compressed memory, unless this host has swap. Returns a function that removes it again. */
export async function openSwap(): Promise<() => Promise<void>> {
  if (hasSwap()) return async () => {}
  await writeFile(`${settings}/comp_algorithm`, 'lz4').catch(() => {})
  await writeFile(`${settings}/disksize`, '4G')
  await run('mkswap', [device])
  await run('swapon', [device])
  return async () => {
    await run('swapoff', [device])
    await writeFile(`${settings}/reset`, '1')
  }
}
