import { createOpenAI } from '@ai-sdk/openai'
import { generateObject, generateText, Output } from 'ai'
import OpenAI from 'openai'
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { startAgent, type TestAgent } from '../support/agent.ts'

const Place = z.object({ city: z.string(), people: z.number().int(), sights: z.array(z.string()) })
const rome = { city: 'Rome', people: 3, sights: ['Forum'] }
const valid = JSON.stringify(rome)
const wrong = JSON.stringify({ ...rome, people: 'three' })

describe('structured answers of a real agent', () => {
  let agent: TestAgent
  let session: string
  let sessions = 0
  beforeAll(async () => {
    agent = await startAgent()
  })
  afterAll(() => agent?.close())
  beforeEach(() => {
    agent.provider.requests.length = 0
    session = `formats-${sessions++}`
  })

  const target = () => ({
    baseURL: `${agent.chowder.url}/v1/instances/${agent.id}/session/${session}`,
    apiKey: agent.key,
  })
  const parse = (input: string) =>
    new OpenAI({ ...target(), maxRetries: 0 }).responses.parse({
      model: 'openclaw',
      input,
      text: { format: zodTextFormat(Place, 'place') },
    })
  const turns = () => agent.provider.requests.map((request) => request.turns)

  it('are parsed by the official client, from a code fence', async () => {
    const response = await parse(`where? [[fake:say=Here it is:\n\n\`\`\`json\n${valid}\n\`\`\`]]`)
    expect(response.output_parsed).toEqual(rome)
    expect(agent.provider.requests.at(-1)?.system).toContain('"sights"')
    expect(turns()).toEqual([1])
  })

  it('are corrected by the agent in the same session', async () => {
    const response = await parse(`where? [[fake:say=${wrong}]] [[fake:next-say=${valid}]]`)
    expect(response.output_parsed).toEqual(rome)
    expect(turns()).toEqual([1, 2])
    expect(agent.provider.requests.at(-1)?.last).toContain('answer/people must be integer')
    expect(response.usage?.output_tokens).toBe(Math.ceil(wrong.length / 4) + Math.ceil(valid.length / 4))
  })

  it('that are wrong twice fail', async () => {
    const error = await parse(`where? [[fake:say=${wrong}]] [[fake:next-say=${wrong}]]`).catch((cause) => cause)
    expect(error).toMatchObject({ status: 502, code: 'invalid_output' })
    expect(turns()).toEqual([1, 2])
  })

  it('come after the use of a tool', async () => {
    const response = await parse(`where? [[fake:tool=exec {"command":"true"}]] [[fake:say=${valid}]]`)
    expect(response.output_parsed).toEqual(rome)
    expect(agent.provider.requests).toHaveLength(2)
  })

  it('are parsed by the official client as a chat completion', async () => {
    const baseURL = `${agent.chowder.url}/v1/instances/${agent.id}`
    const completion = await new OpenAI({ ...target(), baseURL, maxRetries: 0 }).chat.completions.parse({
      model: 'openclaw',
      messages: [{ role: 'user', content: `where? [[fake:say=${wrong}]] [[fake:next-say=${valid}]]` }],
      response_format: zodResponseFormat(Place, 'place'),
    })
    expect(completion.choices[0]?.message.parsed).toEqual(rome)
    expect(turns()).toEqual([1, 2])
  })

  it('are objects of the AI SDK, corrected too', async () => {
    const model = createOpenAI(target())('openclaw')
    const { object } = await generateObject({ model, schema: Place, prompt: `where? [[fake:say=${valid}]]` })
    expect(object).toEqual(rome)
    const prompt = `where? [[fake:say=${wrong}]] [[fake:next-say=${valid}]]`
    const { output } = await generateText({ model, output: Output.object({ schema: Place }), prompt })
    expect(output).toEqual(rome)
    expect(turns()).toEqual([1, 2, 3])
  })
})
