import { type Static, Type } from '@sinclair/typebox'
import { egressModes, type EgressPolicy as Stored } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { egressTexts } from '#errors/egress-texts.ts'
import { OneOf } from '#platform/typebox.ts'
import { hasPort, parseHostRule } from './hosts.ts'

const maxHosts = 200
/** Longer than a name with a wildcard and a port. */
const maxHostLength = 262
const mailPort = 25

const mode = OneOf(
  egressModes,
  '`open`: public addresses on the ports 80 and 443, and the ports of `hosts`. `allowlist`: `hosts` alone. `report`: ' +
    'what `open` lets through; hosts that an allow-list would block are marked. `none`: nothing.',
)
const hostsDescription =
  'Hosts: names, `*.` and a name for all names below it, or addresses, each with a port, as in ' +
  '`api.example.com:8443`, or for 80 and 443. Private addresses need a setting of the operator as well.'

const examples = [{ mode: 'allowlist' as const, hosts: ['api.example.com', '*.example.org:443'] }]

/** The egress policy as callers set it. */
export const NewEgress = Type.Object(
  {
    mode,
    hosts: Type.Optional(
      Type.Array(Type.String({ minLength: 1, maxLength: maxHostLength }), {
        maxItems: maxHosts,
        description: hostsDescription,
      }),
    ),
  },
  {
    additionalProperties: false,
    description: 'What agents may reach beside models. Holds within a second, also for open connections.',
    examples,
  },
)
export type NewEgress = Static<typeof NewEgress>

export const Egress = Type.Object(
  { mode, hosts: Type.Array(Type.String(), { description: hostsDescription }) },
  { $id: 'Egress', description: 'What agents may reach beside models.', examples },
)

const refuse = (detail: string) => new AppError('invalid_value', detail, { param: 'egress' })

/** Converts a caller's policy to its stored form. Throws AppError `invalid_value`. */
export function checkEgress({ mode, hosts = [] }: NewEgress): Stored {
  if (mode === 'none' && hosts.length > 0) throw refuse(egressTexts.noneWithHosts)
  if (hosts.length > maxHosts) throw refuse(egressTexts.tooManyHosts(maxHosts))
  for (const text of hosts) {
    const rule = parseHostRule(text, { ranges: false })
    if (!rule) throw refuse(egressTexts.noHost(text))
    if (hasPort(rule, mailPort)) throw refuse(egressTexts.mailPort(text))
  }
  return { mode, hosts: [...new Set(hosts)] }
}

/** The columns of a policy in a patch: none if the patch has no policy, and null for an inherited one. */
export const egressColumns = (sent: NewEgress | null | undefined): { egress?: Stored | null } =>
  sent === undefined ? {} : { egress: sent && checkEgress(sent) }
