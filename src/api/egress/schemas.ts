import { type Static, Type } from '@sinclair/typebox'
import { egressVerdicts } from '#database/egress-schema.ts'
import { Egress } from '#egress/schemas.ts'
import { DateTime, Nullable, OneOf } from '#platform/typebox.ts'

const reasons = ['egress_none', 'not_listed', 'port', 'mail_port', 'private_address'] as const
const settings = ['egress.hosts', 'EGRESS_ALLOWED_HOSTS'] as const
const policyOwners = ['instance', 'organization', 'default'] as const

const AllowWith = Type.Object(
  {
    setting: OneOf(
      settings,
      '`egress.hosts` of the instance or its organization; `EGRESS_ALLOWED_HOSTS` is one of the operator.',
    ),
    value: Type.String({ description: 'What to add to it.' }),
  },
  { description: 'What lets the host through; null when nothing does, or nothing needs to.' },
)

const Host = Type.Object({
  host: Type.String({ description: 'The name or the address that the agent asked for.' }),
  port: Type.Integer({ description: 'The port of it.' }),
  verdict: OneOf(
    egressVerdicts,
    'What became of the last connection. `reported`: it was let through, and an allow-list would have blocked it.',
  ),
  reason: Nullable(
    OneOf(
      reasons,
      'Why it was blocked; null when it was not. `egress_none`: the policy. `not_listed`: the allow-list. `port`: only ' +
        '80 and 443 are open. `mail_port`: nothing allows port 25. `private_address`: the address is not public.',
    ),
  ),
  connections: Type.Integer({ description: 'How often the agent asked for it.' }),
  bytes_sent: Type.Integer({ description: 'Bytes that the agent has sent.' }),
  bytes_received: Type.Integer({ description: 'Bytes that it has received.' }),
  first_seen_at: DateTime('When the agent first asked for it, as far as it is kept.'),
  last_seen_at: DateTime('When the agent last asked for it, or bytes last passed.'),
  allow_with: Nullable(AllowWith),
})
export type ShownHost = Static<typeof Host>

export const InstanceEgress = Type.Object(
  {
    egress: Egress,
    egress_of: OneOf(policyOwners, 'Whose policy it is: that of the instance comes before that of the organization.'),
    hosts: Type.Array(Host, { description: 'The hosts that the agent asked for, the last one first: at most 200.' }),
  },
  {
    $id: 'InstanceEgress',
    examples: [
      {
        egress: { mode: 'allowlist', hosts: ['api.example.com'] },
        egress_of: 'instance',
        hosts: [
          {
            host: 'files.example.com',
            port: 443,
            verdict: 'blocked',
            reason: 'not_listed',
            connections: 3,
            bytes_sent: 0,
            bytes_received: 0,
            first_seen_at: '2026-02-14T16:02:11.000000+00:00',
            last_seen_at: '2026-02-14T16:04:32.000000+00:00',
            allow_with: { setting: 'egress.hosts', value: 'files.example.com:443' },
          },
        ],
      },
    ],
  },
)

export const AllowHost = Type.Object(
  {
    host: Type.String({
      minLength: 1,
      maxLength: 255,
      description: 'A name, `*.` and a name for all names below it, or an address.',
    }),
    port: Type.Optional(Type.Integer({ minimum: 1, maximum: 65_535, description: '80 and 443 if left out.' })),
  },
  { additionalProperties: false, examples: [{ host: 'files.example.com', port: 443 }] },
)
