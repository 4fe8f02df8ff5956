import { sql } from 'drizzle-orm'
import { beginRotation, endRotation, requireKeys, rotationState } from '#composition/vault.ts'
import type { Db } from '#database/client.ts'
import { aliveProcesses } from '#database/processes.ts'
import { poll } from '#platform/poll.ts'
import { newSecretKey, rereadKeys, writeKeyFile } from '#platform/secret-key.ts'
import { createVault, keyIdOf, type Vault } from '#platform/secrets.ts'
import type { Command, CommandDeps, Output } from './command.ts'
import { type Resealed, resealAll } from './reseal.ts'

/** The times of a rotation, in ms; tests shorten them. */
export interface RotationTimes {
  /** How long processes may take to say that they have the new key: a heartbeat, and the row of a killed one to expire. */
  waitMs: number
  /** How long a process may still write what it had sealed before: its statements end within 15 s. */
  settleMs: number
}

const usualTimes: RotationTimes = { waitMs: 35_000, settleMs: 20_000 }
const pauseMs = 1000
/** After the first pass, what others write meanwhile is sealed with the new key: a pass that finds nothing follows soon. */
const maxPasses = 10
/** Of the advisory lock under which the file of the keys is changed. */
const lockId = 0xc40d_5ec2

type Deps = Pick<CommandDeps, 'db' | 'secretKeys' | 'report'>

/**
 * Seals all stored secrets with the first key. When the data folder holds the key, it makes a new one there first, and
 * removes the old one at the end. Chowder goes on meanwhile. It may be killed at any point, and run again. Throws an
 * Error for the operator while a process lacks the key.
 */
export async function rotateSecretKey(deps: Deps, times: RotationTimes = usualTimes): Promise<Output> {
  const { db, report } = deps
  const { keys, file, isOwnFile } = await deps.secretKeys()
  const ownFile = isOwnFile ? file : null
  const vault = createVault(ownFile === null ? keys : await exchangeKeys(deps, ownFile, times))
  await requireKeys(vault, db)
  const [id, other] = vault.keyIds
  const requireSealing = () =>
    requireProcesses(db, `seal with the secret key ${id}`, ({ secretKeyIds }) => secretKeyIds[0] === id, times)
  await requireSealing()
  await beginRotation(db, vault)
  report(`Everything is sealed with the secret key ${id}, while Chowder goes on.`)
  const total = await resealUntilNothingIsLeft(db, vault, report, times)
  await requireSealing()
  await endRotation(db)
  if (ownFile !== null) await removeOtherKey(db, ownFile, id)
  return conclude(total, { id, other, isRemoved: ownFile !== null })
}

/**
 * Puts a new key before the old one in the file of the data folder. No process seals with it before each accepts it:
 * the file first has it in the second place. An interrupted rotation goes on with its key. Returns both keys, the new
 * one first.
 */
async function exchangeKeys({ db, report }: Deps, file: string, times: RotationTimes): Promise<readonly Buffer[]> {
  const keys = await locked(db, async (tx) => {
    const found = await rereadKeys(file)
    const { isRunning, key: current } = await rotationState(tx, found)
    if (isRunning && found.length > 1) return [current, ...found.filter((one) => one !== current)]
    if (current !== found[0]) return found // the operator has put a key there
    // A second key is that of a rotation that was interrupted before it began, or just before its end.
    if (found.length > 1) await resealAll(tx, createVault(found), report)
    const made = newSecretKey()
    await writeKeyFile(file, [current, made])
    report(`${file} has a new secret key beside the one that is used.`)
    const id = keyIdOf(made)
    await requireProcesses(tx, `accept the new secret key ${id}`, (one) => one.secretKeyIds.includes(id), times)
    await beginRotation(tx, createVault([made, current]))
    return [made, current]
  })
  await writeKeyFile(file, keys)
  return keys
}

const removeOtherKey = (db: Db, file: string, id: string) =>
  locked(db, async () => {
    const found = await rereadKeys(file)
    if (found.length > 1 && found[0] && keyIdOf(found[0]) === id) await writeKeyFile(file, [found[0]])
  })

/** Runs `act` in a transaction while no other command changes the file of the keys. */
const locked = <T>(db: Db, act: (tx: Db) => Promise<T>): Promise<T> =>
  db.transaction(async (tx) => {
    await tx.execute(sql`SELECT pg_advisory_xact_lock(${lockId}::bigint)`)
    return act(tx)
  })

type Process = Awaited<ReturnType<typeof aliveProcesses>>[number]

/** Waits until all processes that live do it. Throws an Error for the operator that names those that do not. */
async function requireProcesses(
  db: Db,
  what: string,
  isReady: (process: Process) => boolean,
  { waitMs }: RotationTimes,
): Promise<void> {
  let missing: Process[] = []
  const areReady = async () => {
    missing = (await aliveProcesses(db)).filter((process) => !isReady(process))
    return missing.length === 0
  }
  if (await poll(areReady, { pauseMs, timeoutMs: waitMs })) return
  const lines = missing.map(({ role, host, pid, version, secretKeyIds }) => {
    const accepted =
      secretKeyIds.length > 0 ? `accepts ${secretKeyIds.join(', ')}, and seals with the first` : 'says none'
    return `  ${role} on ${host}, pid ${pid}, version ${version}: ${accepted}`
  })
  throw new Error(
    `These processes do not ${what}:\n${lines.join('\n')}\n` +
      'Give each the keys in the order that docs/operations.md says, then run this again.',
  )
}

async function resealUntilNothingIsLeft(
  db: Db,
  vault: Vault,
  report: (line: string) => void,
  { settleMs }: RotationTimes,
): Promise<Resealed> {
  const settled = (await aliveProcesses(db)).length > 0 ? performance.now() + settleMs : 0
  const total = await resealAll(db, vault, report)
  const left = settled - performance.now()
  if (left > 0) {
    report('Waits for what was sealed before to be written.')
    await new Promise((resolve) => setTimeout(resolve, left))
  }
  report('Looks again.')
  for (let passes = 1; passes <= maxPasses; passes += 1) {
    const { resealed, missed, unreadable } = await resealAll(db, vault, () => {})
    total.resealed += resealed
    total.unreadable = unreadable
    if (resealed === 0 && missed === 0) return total
  }
  throw new Error(
    'Something still seals with another key. Nothing is lost: keep both keys. Find the process that has not reported ' +
      'itself, give it the new key, and run this again.',
  )
}

function conclude(
  { resealed, unreadable }: Resealed,
  { id, other, isRemoved }: { id: string; other: string | undefined; isRemoved: boolean },
): Output {
  const sentences = [`Everything is sealed with the secret key ${id}. Sealed again: ${resealed} values.`]
  if (unreadable > 0) sentences.push(`${unreadable} values are left that no key unseals. npm run doctor names them.`)
  if (other === undefined) sentences.push('There is no other key. docs/operations.md says how to change it.')
  else if (isRemoved)
    sentences.push(`The old key ${other} is removed from the data folder. Backups from before need it.`)
  else sentences.push(`The old key ${other} is needed no more: remove it. Backups from before need it.`)
  if (other !== undefined) sentences.push('Client tokens from before are refused without it.')
  const data = { key_id: id, old_key_id: other ?? null, resealed, unreadable, removed: isRemoved }
  return { text: sentences.join('\n'), data }
}

export const secretKeyCommands: Readonly<Record<string, Command>> = {
  'rotate-secret-key': {
    parameters: [],
    summary: 'seals all stored secrets with the new secret key, while Chowder runs; can be killed and run again',
    run: (call) => rotateSecretKey(call),
  },
}
