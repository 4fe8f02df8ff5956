// Loaded before OpenClaw, where a proxy is the only way out and no name server answers. The plugin of Matrix looks up the
// name of its homeserver before it asks the proxy for that name, and gives up without an address. So a name that nobody
// can look up has one here, to which nothing is connected: the proxy looks the name up itself, and checks what it finds.
import dns from 'node:dns/promises'
import { syncBuiltinESMExports } from 'node:module'

const { lookup } = dns
// OpenClaw refuses the address of a name that is a special one, such as those of documentation.
const found = { address: '1.1.1.1', family: 4 }
dns.lookup = (name, options) =>
  lookup(name, options).catch((error) => {
    if (error.code !== 'EAI_AGAIN') throw error
    return options?.all ? [found] : found
  })
syncBuiltinESMExports()
