import { expect, test } from 'vitest'
import { forOwner } from '#lifecycle/attempt/health.ts'

test('the output of a gateway that refuses its configuration names no path of the host, and nothing to run there', () => {
  const output = [
    '2026-11-27T07:29:06.303+00:00 [gateway] spawn broker ready pid=17053',
    '2026-11-27T07:29:07.725+00:00 Gateway failed to start: Invalid config at /srv/data/sandboxes/1/home/state/openclaw.json:',
    'openclaw.json:1 — agents.defaults.model: Invalid input, got: 5',
    '<root>: Unrecognized key: "nonsense"',
    'Run "openclaw doctor --fix" to repair, then retry.',
    'If startup is still blocked, inspect the adjacent .bak backup before restoring it manually.',
    '2026-11-27T07:29:07.727+00:00 Run "openclaw doctor --fix" to repair the config, then retry.',
  ]
  expect(forOwner(output.join('\n'))).toBe(
    [
      '[gateway] spawn broker ready pid=17053',
      'Gateway failed to start: Invalid config at openclaw.json:',
      'agents.defaults.model: Invalid input, got: 5',
      '<root>: Unrecognized key: "nonsense"',
    ].join('\n'),
  )
})

test.each([
  [
    "Error: EACCES: permission denied, open '/var/lib/chowder/x/y.json'",
    "Error: EACCES: permission denied, open 'y.json'",
  ],
  ['fetch http://127.0.0.1:8080/v1/messages failed', 'fetch http://127.0.0.1:8080/v1/messages failed'],
  ['    at run (/opt/release/node_modules/openclaw/dist/a.mjs:10:3)', 'at run (a.mjs:10:3)'],
  ['tools.exec and/or tools.fs', 'tools.exec and/or tools.fs'],
])('%s', (line, shown) => {
  expect(forOwner(line)).toBe(shown)
})
