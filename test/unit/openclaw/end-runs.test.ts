import { expect, test } from 'vitest'
import { endRuns } from '#openclaw/gateway/end-runs.ts'
import type { GatewayClient } from '#openclaw/gateway/gateway.ts'

function gatewayWith(sessions: object[]) {
  const aborted: unknown[] = []
  let lists = 0
  const call = async (method: string, { offset = 0, limit = 0, key }: Record<string, unknown> = {}) => {
    if (method === 'sessions.abort') return void aborted.push(key)
    lists += 1
    return { sessions: sessions.slice(Number(offset), Number(offset) + Number(limit)) }
  }
  return { gateway: { call } as unknown as GatewayClient, aborted, lists: () => lists }
}

test('the runs of all sessions that have one are ended, also of those of channels', async () => {
  const idle = Array.from({ length: 150 }, (_, index) => ({ key: `agent:main:s-${index}`, hasActiveRun: false }))
  const running = [
    { key: 'agent:main:main', hasActiveRun: true },
    ...idle,
    { key: 'agent:main:telegram:1', hasActiveRun: true },
  ]
  const { gateway, aborted, lists } = gatewayWith(running)
  expect(await endRuns(gateway)).toBe(2)
  expect(aborted).toEqual(['agent:main:main', 'agent:main:telegram:1'])
  expect(lists()).toBe(2)
})

test('an agent that answers in place of its gateway costs a bounded number of calls', async () => {
  const { gateway, lists } = gatewayWith(Array.from({ length: 10_000 }, () => ({ hasActiveRun: true, key: 1 })))
  expect(await endRuns(gateway)).toBe(0)
  expect(lists()).toBe(5)
})
