import { expect, test } from 'vitest'
import { sealSummary, summaryOpener } from '#api/responses/compaction/sealed-summary.ts'
import { type TranscriptTurn, transcriptOf } from '#api/responses/compaction/transcript.ts'
import type { ContentPart, InputItem } from '#api/responses/format/input-schema.ts'
import { readItems } from '#api/responses/format/request.ts'
import { storedInput } from '#api/responses/format/stored-input.ts'
import { createVault } from '#platform/secrets.ts'

const vault = createVault(Buffer.alloc(32, 7))
const owner = { organizationId: 'o', instanceId: 'i' }

test('a summary can be opened by its instance alone, with a key that the process accepts', () => {
  const sealed = sealSummary(vault, owner, 'Ada lives in Rome.')
  expect(sealed).not.toContain('Ada')
  expect(summaryOpener(vault, owner)(sealed)).toBe('Ada lives in Rome.')
  const rotated = createVault([Buffer.alloc(32, 8), Buffer.alloc(32, 7)])
  expect(summaryOpener(rotated, owner)(sealed)).toBe('Ada lives in Rome.')
  const others = [
    summaryOpener(vault, { ...owner, instanceId: 'j' }),
    summaryOpener(vault, { ...owner, organizationId: 'p' }),
    summaryOpener(createVault(Buffer.alloc(32, 8)), owner),
  ]
  expect(others.map((open) => open(sealed))).toEqual([null, null, null])
  const altered = [
    `${sealed.slice(0, -2)}AA`,
    sealed.slice(0, 20),
    '',
    'v1',
    `${sealed}.x`,
    vault.seal('x', 'client_tokens'),
  ]
  expect(altered.map(summaryOpener(vault, owner))).toEqual(altered.map(() => null))
})

const says = (content: string | ContentPart[]): InputItem => ({ type: 'message', role: 'user', content })
const answer = (id: string, text: string) => ({
  type: 'message' as const,
  id,
  status: 'completed' as const,
  role: 'assistant' as const,
  content: [{ type: 'output_text' as const, text, annotations: [], logprobs: [] }],
})
const call = {
  type: 'function_call' as const,
  id: 'fc_1',
  call_id: 'c1',
  name: 'f',
  arguments: '{"a":1}',
  status: 'completed' as const,
}
const result: InputItem = { type: 'function_call_output', call_id: 'c1', output: 'sunny' }

/** A turn as it is read from the store. */
const stored = (input: InputItem[], ...output: TranscriptTurn['output']): TranscriptTurn => ({
  input: readItems(storedInput(input) as never, () => 'opened'),
  output,
})

test('a transcript has who said what, the calls and their results, and names images and files', () => {
  const image = { type: 'input_image' as const, image_url: 'data:image/png;base64,AAAA' }
  const file = { type: 'input_file' as const, filename: 'a.pdf', file_data: 'AAAA' }
  const compaction: InputItem = { type: 'compaction', encrypted_content: 'x', summary: 'opened' }
  const turns = [
    stored([compaction, says([{ type: 'input_text', text: 'look' }, image, file])], answer('msg_1', 'a cat'), call),
    stored([{ type: 'reasoning' }, result], answer('msg_2', 'sunny')),
    { input: [says('thanks')], output: [] },
  ]
  expect(transcriptOf(turns).split('\n\n')).toEqual([
    'Summary of the earlier conversation: opened',
    'user: look\n[input_image]\n[input_file a.pdf]',
    'assistant: a cat',
    'assistant calls f: {"a":1}',
    'result of the call: sunny',
    'assistant: sunny',
    'user: thanks',
  ])
  expect(transcriptOf([{ input: [{ type: 'reasoning' }], output: [] }])).toBe('')
})

test('a transcript has each item once when a client sends the whole conversation with each turn', () => {
  const first = [says('one')]
  const second = [...first, answer('msg_1', 'first'), call, result, says('two')]
  const third = [...second, answer('msg_2', 'second'), says('three')]
  const turns = [
    stored(first, answer('msg_1', 'first'), call),
    stored(second, answer('msg_2', 'second')),
    stored(third, answer('msg_3', 'third')),
  ]
  expect(transcriptOf(turns).split('\n\n')).toEqual([
    'user: one',
    'assistant: first',
    'assistant calls f: {"a":1}',
    'result of the call: sunny',
    'user: two',
    'assistant: second',
    'user: three',
    'assistant: third',
  ])
})
