import { runAttacks } from './jail-attacks.ts'

/** Runs the attacks on this host as its own user, and prints their results. */
process.stdout.write(JSON.stringify(await runAttacks()))
