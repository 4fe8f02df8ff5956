import { join } from 'node:path'

/**
 * The environment of programs that a test starts: they share what Node.js has compiled, which is a third of the
 * processor time that a start of Chowder takes.
 */
export const compiledOnce = {
  NODE_COMPILE_CACHE: join(import.meta.dirname, '../../node_modules/.cache/chowder-compiled'),
}
