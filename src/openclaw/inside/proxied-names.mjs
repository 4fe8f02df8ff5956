// Loaded before OpenClaw when a proxy is the only way out and there is no name server. The plugin of Matrix resolves
// the name of its homeserver before it asks the proxy for that name, and gives up without an address. So unresolvable
// names get an address here that is never connected to: the proxy resolves the name itself, and checks the result.
import dns from 'node:dns/promises'
import { syncBuiltinESMExports } from 'node:module'

const { lookup } = dns
// OpenClaw refuses special addresses, such as those for documentation.
const found = { address: '1.1.1.1', family: 4 }
dns.lookup = (name, options) =>
  lookup(name, options).catch((error) => {
    if (error.code !== 'EAI_AGAIN') throw error
    return options?.all ? [found] : found
  })
syncBuiltinESMExports()
