import { lookup, Resolver } from 'node:dns/promises'

/** Looks up all addresses of a name. Rejects when it has none, and when nobody can say. */
export type Resolve = (name: string) => Promise<string[]>

const timeoutMs = 2500
const tries = 2
const maxAddresses = 16

/**
 * Asks the name servers of this host without a thread of the pool, which files, compression and encryption of the whole
 * process need: agents choose these names, and may choose servers that never answer. So the file of this host's own
 * names is not read either, which are none of an agent's business.
 */
export function createResolve(): Resolve {
  const resolver = new Resolver({ timeout: timeoutMs, tries })
  return async (name) => {
    const answers = await Promise.allSettled([resolver.resolve4(name), resolver.resolve6(name)])
    const addresses = answers.flatMap((answer) => (answer.status === 'fulfilled' ? answer.value : []))
    if (addresses.length > 0) return addresses.slice(0, maxAddresses)
    const failed = answers.find(({ status }) => status === 'rejected') as PromiseRejectedResult | undefined
    throw failed?.reason ?? new Error(`${name} has no address`)
  }
}

/** Looks up a name that the operator has chosen, as every program of this host does. */
export const resolveOfOperator: Resolve = async (name) =>
  (await lookup(name, { all: true })).map(({ address }) => address)
