import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { modelProviders } from '#database/schema.ts'
import { checkOverrides } from '#openclaw/config/check-overrides.ts'
import { modelFault } from '#openclaw/models/check-models.ts'
import { defaultModel, findModel, findRetired, listedModels, retiredModels } from '#openclaw/models/models.ts'
import { addModelsFile } from '#openclaw/models/models-file.ts'

const readDoc = (name: string) => readFile(new URL(`../../../docs/${name}`, import.meta.url), 'utf8')

test.each(modelProviders)('the default model of %s streams and sees images', (provider) => {
  const model = findModel('v1', provider, defaultModel('v1', provider))
  expect(model).toMatchObject({ streams: true, images: true })
})

test('no id is in the table twice, and each successor is in it', () => {
  for (const provider of modelProviders) {
    const ids = listedModels('v1', provider).map(({ id }) => id)
    expect(new Set(ids).size).toBe(ids.length)
    for (const { id, successor } of retiredModels('v1', provider)) {
      expect(ids).toContain(successor)
      expect(ids).not.toContain(id)
    }
  }
})

test('a model with a date can do what the one without can; another one is assumed to see images', () => {
  expect(findModel('v1', 'anthropic', 'claude-opus-5-20260401')).toEqual({
    ...findModel('v1', 'anthropic', 'claude-opus-5'),
    id: 'claude-opus-5-20260401',
  })
  expect(findModel('v1', 'openai', 'gpt-4o-2024-08-06')).toMatchObject({ max_output_tokens: 16_384, images: true })
  expect(findModel('v1', 'openai', 'our-own')).toMatchObject({ name: 'our-own', images: true, price: null })
})

test('the documentation names the models that do not stream, and no others', async () => {
  const [, list = ''] = /The models that do not stream are:\n\n((?:- .*\n)+)/.exec(await readDoc('responses.md')) ?? []
  const named = [...list.matchAll(/`([^`]+)`/g)].map(([, id]) => id).sort()
  const held = modelProviders.flatMap((provider) => listedModels('v1', provider)).filter(({ streams }) => !streams)
  expect(named).toEqual(held.map(({ id }) => id).sort())
})

describe('an operator’s file', () => {
  let folder: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'chowder-models-'))
  })
  afterEach(() => add('{}'))
  afterAll(() => rm(folder, { recursive: true }))

  async function add(content: string): Promise<void> {
    const path = join(folder, 'models.json')
    await writeFile(path, content)
    addModelsFile(path, ['v1'])
  }

  test('as the documentation shows it adds a model and changes the default', async () => {
    const [, example = ''] = /```json\n([\s\S]*?)```/.exec(await readDoc('models.md')) ?? []
    await add(example)
    expect(defaultModel('v1', 'anthropic')).toBe('claude-opus-4-8')
    expect(findModel('v1', 'openai', 'our-llama')).toMatchObject({
      name: 'our-llama',
      images: false,
      context_window: 32_768,
      temperature: true,
      price: null,
    })
    expect(findModel('v1', 'openai', 'another').max_output_tokens).toBe(4096)
    await add('{}')
    expect(defaultModel('v1', 'anthropic')).toBe('claude-sonnet-4-6')
  })

  test('changes the fields that it names', async () => {
    await add('{"openai": {"models": [{"id": "gpt-4o", "max_output_tokens": 1000}]}}')
    expect(findModel('v1', 'openai', 'gpt-4o')).toMatchObject({ name: 'GPT-4o', max_output_tokens: 1000, images: true })
  })

  test.each([
    ['{', /it is not valid JSON: /],
    ['[]', /it must hold an object, with the name of a provider for each key\./],
    ['{"google": {}}', /"google" is no provider: use anthropic, openai, gemini\./],
    ['{"openai": []}', /openai must be an object\./],
    ['{"openai": {"models": {}}}', /openai\.models must be a list of objects, each with the id of a model\./],
    ['{"openai": {"models": [{"name": "x"}]}}', /openai\.models must be a list of objects/],
    ['{"openai": {"model": []}}', /openai\.model: Unexpected property\./],
    ['{"openai": {"models": [{"id": "m", "image": true}]}}', /openai\.models\.m\.image: Unexpected property\./],
    [
      '{"openai": {"models": [{"id": "m", "context_window": "8k"}]}}',
      /openai\.models\.m\.context_window: Expected integer\./,
    ],
    ['{"openai": {"models": [{"id": "a b"}]}}', /openai\.models\.a b\.id: /],
    ['{"openai": {"default": "nope"}}', /openai\.default: nope is not in openai\.models\./],
  ])('%s is refused by the part that is wrong', async (content, reason) => {
    await expect(add(content)).rejects.toThrow(/^CHOWDER_MODELS_FILE names \/.*models\.json: /)
    await expect(add(content)).rejects.toThrow(reason)
    expect(defaultModel('v1', 'openai'), 'nothing has changed').toBe('gpt-6-astra')
  })

  test('that is missing is refused', () => {
    expect(() => addModelsFile('/nowhere/models.json', ['v1'])).toThrow(
      '/nowhere/models.json: it cannot be read: ENOENT',
    )
  })
})

describe('a model for a provider', () => {
  test.each(['claude-opus-5', 'anthropic/claude-opus-5', 'claude-new-9', 'anthropic/claude-new-9'])('%s', (model) => {
    expect(modelFault('v1', 'anthropic', model)).toBeNull()
  })

  test.each([
    ['gpt-4o', 'no model of that provider. Use one such as claude-'],
    ['openai/gpt-4o', 'This instance uses anthropic: openai/gpt-4o is no model'],
    ['no such model', 'has no spaces'],
  ])('%s is refused', (model, words) => {
    expect(modelFault('v1', 'anthropic', model)?.message).toContain(words)
  })

  test('one that is shut down is refused with its successor', () => {
    for (const model of ['gemini-2.0-flash', 'google/gemini-2.0-flash', 'gemini/gemini-2.0-flash']) {
      expect(modelFault('v1', 'gemini', model)).toEqual({
        code: 'model_not_found',
        message: 'Google shut down gemini-2.0-flash on 2026-06-01. Use gemini-2.5-flash.',
      })
    }
    expect(findRetired('v1', 'gemini', 'gemini-2.5-flash')).toBeUndefined()
  })

  test.each([
    [{ 'agents.defaults.model': 'openai/gpt-4o' }, '"agents.defaults.model": This instance uses anthropic'],
    [{ 'agents.entries.main.model.primary': 'gpt-4o' }, '"agents.entries.main.model": This instance uses anthropic'],
    [{ agents: { defaults: { model: { fallbacks: ['x y'] } } } }, '"agents.defaults.model": The name of a model'],
    [{ 'agent.systm_prompt': 'x' }, '"agent.systm_prompt" is no setting: the only one of agent is agent.system_prompt'],
    [{ nonsense: 1 }, 'OpenClaw refused the configuration: invalid config: <root>: Unrecognized key: "nonsense"'],
  ])('the overrides %j are refused', (overrides, words) => {
    expect(() => checkOverrides('v1', 'anthropic', overrides)).toThrow(words)
  })

  test.each([
    {},
    { 'agents.defaults.model': 'claude-opus-5', 'agent.system_prompt': 'Be brief.' },
    { 'agents.defaults.heartbeat': null, 'skills.entries.x': { enabled: false } },
    { 'channels.telegram.dmPolicy': 'open' },
  ])('the overrides %j are accepted', (overrides) => {
    expect(() => checkOverrides('v1', 'anthropic', overrides)).not.toThrow()
  })
})
