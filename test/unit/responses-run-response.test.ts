import { pino } from 'pino'
import { expect, test, vi } from 'vitest'
import type { ResponseObject } from '#api/responses/format/response-schema.ts'
import { runResponse } from '#api/responses/run-response.ts'
import type { ResponseStore } from '#api/responses/store/response-store.ts'
import { defaultTurnTimeouts } from '#api/responses/turns/turn.ts'
import { createTurnRunner, type TurnRunner } from '#api/responses/turns/turn-runner.ts'
import { present } from '../support/present.ts'

/** JSON.parse accepts an object this deep, and JSON.stringify does not. */
let deep = {}
for (let depth = 0; depth < 100_000; depth++) deep = { deep }

function begin(ask: (turns: TurnRunner) => TurnRunner['ask'], tools: object[] = []) {
  const turns = createTurnRunner(defaultTurnTimeouts)
  const turn = turns.begin()
  const finish = vi.fn<(response: ResponseObject, json: string) => void>()
  const store = { begin: () => {}, onCancelled: () => {}, finish } as unknown as ResponseStore
  const responding = runResponse({ ...turns, ask: ask(turns) }, store, turn, {
    session: { organizationId: 'o', instanceId: 'i', sessionKey: 's' },
    gateway: {
      endpoint: { kind: 'tcp', host: '127.0.0.1', port: 9 },
      token: 't',
      provider: 'openai',
      release: 'v1',
      model: 'gpt-4o',
    },
    body: { model: 'openclaw', input: 'hello', tools } as never,
    isStreamed: true,
    log: pino({ level: 'silent' }),
  })
  return { turns, turn, finish, responding }
}
const neverEnds: TurnRunner['ask'] = async () => ({
  events: { [Symbol.asyncIterator]: () => ({ next: () => new Promise<never>(() => {}) }) },
  askedAt: 0,
  answeredAt: 0,
})
const tooDeep = [{ type: 'function', name: 'f', parameters: deep }]

function expectFailedOnce(finish: ReturnType<typeof begin>['finish'], code: string) {
  expect(finish).toHaveBeenCalledOnce()
  const [response, json] = present(finish.mock.calls[0])
  expect(response).toMatchObject({ status: 'failed', error: { code } })
  expect(JSON.parse(json)).toEqual(response)
}

test('a response without JSON is stored as failed', async () => {
  const { finish, responding } = begin((turns) => turns.ask, tooDeep)
  await expect(responding).rejects.toThrow(RangeError)
  expectFailedOnce(finish, 'internal')
})

test('a response without JSON does not fail the caller that finishes its turn', async () => {
  const { turns, turn, finish, responding } = begin(() => neverEnds, tooDeep)
  await responding
  turns.finish(turn)
  expectFailedOnce(finish, 'internal')
})

test('a turn that is finished before its stream was read is stored with the reason of its end', async () => {
  const { turns, turn, finish, responding } = begin(() => neverEnds)
  await (await responding).events().next()
  turn.end(new Error('ended'))
  expect(finish).not.toHaveBeenCalled()
  turns.finish(turn)
  expectFailedOnce(finish, 'internal')
})
