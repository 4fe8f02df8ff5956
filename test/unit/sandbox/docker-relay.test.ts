import { execFileSync } from 'node:child_process'
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { relayContainer } from '#sandbox/docker/profile.ts'

/** Stands for iptables: keeps its rules in a file, a line each, the first one last. */
const iptables = `#!/bin/sh
shift 4 # -w 5 -t and the table
action=$1 chain=$2
shift 2
rule="$chain $*"
case $action in
  -C) grep -qxF -- "$rule" "$RULES" ;;
  -I) echo "$rule" >>"$RULES" ;;
  -D) grep -vxF -- "$rule" "$RULES" >"$RULES.new"; mv "$RULES.new" "$RULES" ;;
esac
`
let folder: string
let rules: string

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'chowder-iptables-'))
  rules = join(folder, 'rules')
  writeFileSync(join(folder, 'iptables'), iptables)
  chmodSync(join(folder, 'iptables'), 0o755)
})
afterAll(() => rmSync(folder, { recursive: true }))
beforeEach(() => writeFileSync(rules, ''))

/** Runs the command of the container. Returns what it prints. */
function run(anew = false, isOnHost = true): string {
  const relay = { address: '172.20.0.1', port: 8090, isOnHost }
  const { Cmd = [] } = relayContainer('image', 'agents', relay, { anew })
  const [program = '', ...args] = Cmd
  return execFileSync(program, args, { env: { PATH: `${folder}:/usr/bin:/bin`, RULES: rules }, encoding: 'utf8' })
}
const stored = () => readFileSync(rules, 'utf8').trim().split('\n')
const rule = (chain: string) => `${chain} -i agents -d 172.20.0.1 -p tcp --dport 8090 -j ACCEPT`

const out = 'DOCKER-USER -i agents ! -o agents -m conntrack ! --ctstate ESTABLISHED,RELATED -j REJECT'

test('the relay’s address and port, and nothing else, are let through, once, and no other host', () => {
  expect(run()).toBe('added to filter DOCKER-USER\nadded to mangle PREROUTING\nadded to mangle INPUT\n')
  expect(run()).toBe('')
  expect(stored()).toEqual([out, rule('PREROUTING'), rule('INPUT')])
})

test('after the rules of the firewall were added again, it comes before them', () => {
  run()
  writeFileSync(rules, `${readFileSync(rules, 'utf8')}PREROUTING -i agents -j DROP\n`)
  expect(run(true)).not.toBe('')
  expect(stored()).toEqual([out, 'PREROUTING -i agents -j DROP', rule('PREROUTING'), rule('INPUT')])
})

test('of a relay on another machine too, which comes before the rule against other hosts', () => {
  expect(run(false, false)).toBe('added to filter DOCKER-USER\nadded to filter DOCKER-USER\n')
  expect(run(false, false)).toBe('')
  expect(stored()).toEqual([out, rule('DOCKER-USER')])
  writeFileSync(rules, `${rule('DOCKER-USER')}\n`)
  run(false, false)
  expect(stored(), 'the rule against other hosts was removed').toEqual([out, rule('DOCKER-USER')])
})
