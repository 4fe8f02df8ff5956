import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { open, readFile, rename, rm, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { textMadeOnce } from './data-folder.ts'
import { StartupError } from './startup-error.ts'

const keyBytes = 32
const commandTimeoutMs = 30_000
const maxOutputBytes = 64 * 1024
/** The key that seals, and one more that unseals. */
const maxKeys = 2
const keyFormat = /^[A-Za-z0-9+/]{43}=$/

const ownFileIn = (dataDir: string) => join(dataDir, 'secret-key')

export interface KeySettings {
  CHOWDER_SECRET_KEY?: string
  CHOWDER_SECRET_KEY_FILE?: string
  CHOWDER_SECRET_KEY_COMMAND?: string
}

/** The secret keys, of 32 bytes each, and where they come from. The first one seals, each unseals. */
export interface SecretKeys {
  keys: readonly Buffer[]
  /** The file that holds them; null when they come from the environment or from a command. */
  file: string | null
  /** Whether it is the file of the data folder, which Chowder makes and changes by itself. */
  isOwnFile: boolean
}

/** Makes a key. */
export const newSecretKey = (): Buffer => randomBytes(keyBytes)

/** Throws StartupError, which says where they are, for anything else than one key or two. */
function decodeKeys(text: string, where: string): Buffer[] {
  const words = [...new Set(text.split(/[\s,]+/).filter((word) => word !== ''))]
  if (words.length > 0 && words.length <= maxKeys && words.every((word) => keyFormat.test(word)))
    return words.map((word) => Buffer.from(word, 'base64'))
  throw new StartupError(`${where} one secret key, or two: 32 bytes in base64 each`)
}

async function readKeyFile(file: string, isOwnFile: boolean): Promise<SecretKeys> {
  const where = isOwnFile ? `Restore ${file} from a backup: it does not hold` : `${file} does not hold`
  return { keys: decodeKeys(await readFile(file, 'utf8'), where), file, isOwnFile }
}

/**
 * Runs the program that prints the keys. It has no shell and no input, and what it writes to its standard error goes to
 * ours. Throws StartupError when it fails, takes longer than 30 s, or prints something else. No message has its output.
 */
async function readFromCommand(command: string, timeoutMs: number): Promise<SecretKeys> {
  const [program = '', ...args] = command.split(' ').filter((word) => word !== '')
  const failed = (why: string) =>
    new StartupError(
      `CHOWDER_SECRET_KEY_COMMAND gives no secret key: ${program} ${why}. Run the command by hand to see why.`,
    )
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const options = { timeout: timeoutMs, killSignal: 'SIGKILL', maxBuffer: maxOutputBytes } as const
  const child = execFile(program, args, options, (error, output) => {
    if (!error) return resolve(output)
    if (error.code === 'ERR_CHILD_PROCESS_STDIO_MAXBUFFER') return reject(failed('prints more than a key'))
    if (error.killed) return reject(failed(`did not end within ${timeoutMs / 1000} s`))
    reject(
      failed(
        typeof error.code === 'number' ? `ended with code ${error.code}` : `failed (${error.code ?? error.signal})`,
      ),
    )
  })
  child.stdin?.end()
  child.stderr?.pipe(process.stderr, { end: false })
  return {
    keys: decodeKeys(await promise, `${program} of CHOWDER_SECRET_KEY_COMMAND does not print`),
    file: null,
    isOwnFile: false,
  }
}

/** The keys that the settings give; null when these name none, and the data folder holds them. */
async function givenKeys(settings: KeySettings, timeoutMs = commandTimeoutMs): Promise<SecretKeys | null> {
  const { CHOWDER_SECRET_KEY: text, CHOWDER_SECRET_KEY_FILE: file, CHOWDER_SECRET_KEY_COMMAND: command } = settings
  if (command !== undefined) return readFromCommand(command, timeoutMs)
  if (file !== undefined) return readKeyFile(file, false)
  if (text !== undefined)
    return { keys: decodeKeys(text, 'CHOWDER_SECRET_KEY does not hold'), file: null, isOwnFile: false }
  return null
}

/**
 * The keys that seal stored secrets: those of the settings, else those of the data folder, where the first start makes
 * one that only its owner can read. Throws StartupError when there are none at the place that the settings name.
 */
export async function findSecretKeys(
  settings: KeySettings,
  dataDir: string,
  { commandTimeoutMs: timeoutMs }: { commandTimeoutMs?: number } = {},
): Promise<SecretKeys> {
  const given = await givenKeys(settings, timeoutMs)
  if (given) return given
  await textMadeOnce(ownFileIn(dataDir), () => newSecretKey().toString('base64'))
  return readKeyFile(ownFileIn(dataDir), true)
}

/** The same keys; null when the data folder has none yet. */
export async function readSecretKeys(settings: KeySettings, dataDir: string): Promise<SecretKeys | null> {
  const given = await givenKeys(settings)
  if (given) return given
  return readKeyFile(ownFileIn(dataDir), true).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null
    throw error
  })
}

/** The keys that a file holds now. */
export const rereadKeys = async (file: string): Promise<readonly Buffer[]> => (await readKeyFile(file, false)).keys

/**
 * Replaces the keys in a file, whose owner and mode stay. After a crash the file is the old one or the new one; once
 * this resolves it is the new one, also after a loss of power.
 */
export async function writeKeyFile(file: string, keys: readonly Buffer[]): Promise<void> {
  const { uid, gid, mode } = await stat(file)
  const temporary = join(dirname(file), `.${basename(file)}.${randomBytes(6).toString('hex')}.tmp`)
  try {
    const handle = await open(temporary, 'wx', 0o600)
    try {
      await handle.writeFile(keys.map((key) => `${key.toString('base64')}\n`).join(''))
      await handle.chown(uid, gid)
      await handle.chmod(mode & 0o777)
      await handle.sync()
    } finally {
      await handle.close()
    }
    await rename(temporary, file)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
  const folder = await open(dirname(file))
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
