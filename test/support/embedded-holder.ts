// Owns the data folder named by its argument until it is killed; says `ready` when it does.
import pino from 'pino'
import { startEmbeddedPostgres } from '#database/embedded.ts'

const [dataDir] = process.argv.slice(2)
if (!dataDir) throw new Error('usage: embedded-holder.ts <data folder>')
await startEmbeddedPostgres({ dataDir, durable: false, log: pino({ level: 'silent' }) })
process.stdout.write('ready\n')
