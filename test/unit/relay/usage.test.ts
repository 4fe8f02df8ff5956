import { describe, expect, it, test } from 'vitest'
import { countUsage } from '#relay/usage/cost.ts'
import { createUsageReader, type ReportedUsage } from '#relay/usage/read-usage.ts'
import { cutAnthropicStream, type VendorAnswer, vendorAnswers } from '../../support/vendor-answers.ts'

type Answer = Pick<VendorAnswer, 'provider' | 'type' | 'body'>

function readAnswer({ provider, type, body }: Answer, cuts: number[] = []): ReportedUsage | undefined {
  const reader = createUsageReader(provider, { 'content-type': type })
  const bytes = Buffer.from(body)
  const before = Buffer.from(bytes)
  for (const [index, from] of [0, ...cuts].entries()) reader?.read(bytes.subarray(from, cuts[index]))
  expect(bytes.equals(before)).toBe(true)
  return reader?.result()
}

describe.each(vendorAnswers)('$name', (answer) => {
  it('says its usage and its model, whole and in single bytes', () => {
    const { provider, path, inputTokens, cacheReadTokens, cacheWriteTokens, outputTokens, reasoningTokens } = answer
    const whole = readAnswer(answer)
    expect(whole?.model).toBe(answer.model)
    expect(countUsage(provider, path, whole as ReportedUsage, null)).toEqual({
      inputTokens,
      cacheReadTokens,
      cacheWriteTokens,
      outputTokens,
      reasoningTokens,
      cost: expect.any(Number),
    })
    expect(readAnswer(answer, [...Array(Buffer.byteLength(answer.body)).keys()].slice(1))).toEqual(whole)
  })

  it('says the same wherever it is cut', () => {
    const whole = readAnswer(answer)
    for (let cut = 1; cut < Buffer.byteLength(answer.body); cut += 1) expect(readAnswer(answer, [cut])).toEqual(whole)
  })
})

describe('an answer that is cut', () => {
  it('returns the usage so far: the input, and the first count of output', () => {
    const cut = readAnswer({
      provider: 'anthropic',
      type: 'text/event-stream; charset=utf-8',
      body: cutAnthropicStream,
    })
    expect(countUsage('anthropic', '/v1/messages', cut as ReportedUsage, null)).toMatchObject({
      inputTokens: 21_203,
      outputTokens: 1,
    })
  })

  it('has no usage where the vendor says it last', () => {
    const answer = vendorAnswers.find(({ name }) => name === 'OpenAI responses, streamed') as VendorAnswer
    const cut = readAnswer({ ...answer, body: answer.body.slice(0, answer.body.indexOf('response.completed')) })
    expect(cut).toEqual({ model: 'gpt-5-2025-08-07', usage: null })
    expect(countUsage('openai', answer.path, cut as ReportedUsage, null)).toBeNull()
  })
})

test('answers without a usage that can be read have no reader', () => {
  expect(createUsageReader('openai', { 'content-type': 'audio/mpeg' })).toBeNull()
  expect(createUsageReader('openai', {})).toBeNull()
  expect(createUsageReader('openai', { 'content-type': 'application/json', 'content-encoding': 'gzip' })).toBeNull()
})

describe('the cost', () => {
  const anthropic = (model: string | null, usage: object) =>
    countUsage('anthropic', '/v1/messages', { model, usage: { ...usage } }, 'claude-haiku-4-5')

  it('has a price of its own for what the cache reads and keeps for five minutes or an hour', () => {
    const usage = {
      input_tokens: 1000,
      cache_creation_input_tokens: 3000,
      cache_creation: { ephemeral_5m_input_tokens: 1000, ephemeral_1h_input_tokens: 2000 },
      cache_read_input_tokens: 10_000,
      output_tokens: 100,
    }
    // In dollars for a million: 1 for input, 1.25 and 2 to write the cache, 0.1 to read it, 5 for output.
    const expected = (1000 * 1 + 1000 * 1.25 + 2000 * 2 + 10_000 * 0.1 + 100 * 5) / 1e6
    expect(anthropic('claude-haiku-4-5-20251001', usage)?.cost).toBeCloseTo(expected, 10)
    expect(anthropic(null, usage)?.cost).toBeCloseTo(expected, 10) // the model that was asked
  })

  it('is null for a model without a known price, whose tokens count', () => {
    expect(anthropic('claude-unheard-of', { input_tokens: 5, output_tokens: 7 })).toEqual({
      inputTokens: 5,
      cacheReadTokens: 0,
      cacheWriteTokens: 0,
      outputTokens: 7,
      reasoningTokens: 0,
      cost: null,
    })
  })

  it('is that of the models of the release where the catalogue has none', () => {
    expect(anthropic('claude-mythos-5', { input_tokens: 1_000_000, output_tokens: 0 })?.cost).toBe(10)
  })

  it('of a usage that makes no sense is not made up', () => {
    expect(anthropic('claude-haiku-4-5', { input_tokens: -1, output_tokens: 1 })).toBeNull()
    expect(anthropic('claude-haiku-4-5', { input_tokens: 'many', output_tokens: 1 })).toBeNull()
    expect(anthropic('claude-haiku-4-5', { input_tokens: 1e300, output_tokens: 1 })).toBeNull()
    expect(anthropic('claude-haiku-4-5', {})).toBeNull()
  })
})
