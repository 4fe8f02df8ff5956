import { expect, test } from 'vitest'
import { firewallTask } from '#lifecycle/watch/region-tasks.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'

function open(protect?: () => Promise<boolean>) {
  const warned: string[] = []
  const log = { warn: (text: string) => warned.push(text) }
  const task = firewallTask({ sandboxes: { ...(protect && { protect }) }, log } as never)
  return { warned, run: () => task.run(AbortSignal.timeout(1000)) }
}

test('S22: the check of the firewall warns when rules were missing, and is silent when none was', async () => {
  const answers = [false, true, false]
  const { warned, run } = open(async () => answers.shift() ?? false)
  for (const expected of [0, 1, 1]) {
    await run()
    expect(warned).toHaveLength(expected)
  }
  expect(warned[0]).toContain('were missing')
})

test('S22: the check of the firewall fails with the driver, unless its log has the outage already', async () => {
  const logged = open(() => Promise.reject(new SandboxUnavailableError(null, { isLogged: true })))
  await expect(logged.run()).resolves.toBeUndefined()
  const unknown = open(() => Promise.reject(new SandboxUnavailableError(new Error('no iptables'))))
  await expect(unknown.run()).rejects.toThrow(SandboxUnavailableError)
})

test('a driver without a firewall is not asked', async () => {
  await expect(open().run()).resolves.toBeUndefined()
})
