import { describe, expect, test } from 'vitest'
import { poll } from '#platform/poll.ts'

describe('poll', () => {
  test('returns what the first truthy check returned', async () => {
    let checks = 0
    const found = await poll(() => (++checks === 3 ? { checks } : null), { pauseMs: 1, timeoutMs: 10_000 })
    expect(found).toEqual({ checks: 3 })
  })

  test('checks at once, and once more when the time is over', async () => {
    let checks = 0
    const found = await poll(
      async () => {
        checks += 1
        return false
      },
      { pauseMs: 60_000, timeoutMs: 20 },
    )
    expect(found).toBeUndefined()
    expect(checks).toBe(2)
  })

  test('lets the pause grow with the number of checks', async () => {
    const asked: number[] = []
    let checks = 0
    const pauseMs = (made: number) => {
      asked.push(made)
      return 1
    }
    await poll(() => ++checks === 3, { pauseMs, timeoutMs: 10_000 })
    expect(asked).toEqual([1, 2])
  })

  test('throws the reason of its signal, also in the middle of a pause', async () => {
    const abort = new AbortController()
    const reason = new Error('enough')
    const polling = poll(() => false, { pauseMs: 60_000, timeoutMs: 60_000, signal: abort.signal })
    setImmediate(() => abort.abort(reason))
    await expect(polling).rejects.toBe(reason)
    await expect(poll(() => true, { pauseMs: 1, timeoutMs: 1, signal: abort.signal })).rejects.toBe(reason)
  })

  test('throws what the check throws', async () => {
    const check = () => Promise.reject(new Error('broken'))
    await expect(poll(check, { pauseMs: 1, timeoutMs: 1000 })).rejects.toThrow('broken')
  })
})
