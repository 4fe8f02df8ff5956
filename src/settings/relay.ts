import { Type } from '@sinclair/typebox'

/** The settings of the relay, and of the egress proxy at its port. */
export const relay = {
  RELAY_ROLE: Type.Union([Type.Literal('worker'), Type.Literal('relay')], {
    default: 'worker',
    description:
      'the role that has the relay, through which agents ask models: `worker` (and `all`), or `relay`, in processes of ' +
      'its own: see [the relay](operations.md#the-relay)',
    isSetByCompose: true,
  }),
  RELAY_PORT: Type.Integer({
    default: 8090,
    minimum: 0,
    maximum: 65535,
    description:
      'port of the relay, the same for all processes, since agents keep it while Chowder restarts; `0`: one that is ' +
      'free at the first start, and kept in the database',
    isSetByCompose: true,
  }),
  RELAY_URL: Type.Optional(
    Type.String({
      pattern: '^https?://[^\\s/?#]+/?$',
      rule: 'must be a URL without a path that begins with http:// or https://',
      description:
        'URL of the relay for agents, if it is on another host than they are, the same for all processes; the relay listens ' +
        'at the address in it, or on all addresses if this machine has no such address',
      example: 'http://10.0.0.7:8090',
      defaultText: '`RELAY_PORT` at 127.0.0.1, with Docker at the host’s address in the network of the agents',
      isSetByCompose: true,
    }),
  ),
  EGRESS_ALLOWED_HOSTS: Type.Optional(
    Type.String({
      pattern: '^[^\\s,]+(, *[^\\s,]+)*$',
      rule: 'must be hosts such as mattermost.internal:8065,10.0.0.0/8:443, separated by commas',
      description:
        'hosts that agents may reach though their addresses are not public, separated by commas, each with a port or for ' +
        '80 and 443: see [private hosts](egress.md#private-hosts)',
      example: 'mattermost.internal:8065,10.0.0.0/8:443',
    }),
  ),
}
