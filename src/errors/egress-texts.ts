interface Refused {
  /** `host:port`, in the notation of a rule. */
  place: string
  instanceId: string
}

const allow = ({ place, instanceId }: Refused) =>
  `To allow it: POST /v1/instances/${instanceId}/egress/allow, or add ${JSON.stringify(place)} to egress.hosts of the ` +
  'instance; an allow-list of its organization must have it as well.'

/** Texts for agents' programs: each names the host, and the setting that would permit it. */
export const egressTexts = {
  target:
    'This is a proxy: it takes CONNECT host:port, and requests with a whole URL such as http://example.com/. ' +
    'Other protocols are not supported.',
  credentials: 'The proxy does not know you: send the credentials in the URL of the proxy that the agent was given.',
  unavailable: 'What this agent may reach cannot be looked up now. Try again soon.',
  places: (place: string) =>
    `Too many connections of this agent, or of its organization, are open: ${place} was not asked. Close some.`,
  blocked: {
    egress_none: (of: Refused) => `${of.place} is blocked: the egress of this agent is "none". ${allow(of)}`,
    not_listed: (of: Refused) => `${of.place} is blocked: it is not in the allow-list of this agent. ${allow(of)}`,
    port: (of: Refused) =>
      `${of.place} is blocked: only the ports 80 and 443 are open unless a host is listed with its port. ${allow(of)}`,
    mail_port: ({ place }: Refused) =>
      `${place} is blocked: port 25 is always closed. Use the API of a mail service, or its port 587.`,
    private_address: ({ place }: Refused) =>
      `${place} is blocked: it is, or its name leads to, an address that is not public. To allow it, the operator of ` +
      `this server adds ${JSON.stringify(place)} to EGRESS_ALLOWED_HOSTS.`,
  },
  noHost: (text: string) =>
    `${JSON.stringify(text.slice(0, 100))} is no host. Write a name, *. and a name, or an address, each with or without ` +
    'a port: api.example.com, *.example.com:443, 203.0.113.7:8443.',
  mailPort: (text: string) => `${JSON.stringify(text)} is refused: no setting opens port 25.`,
  aboveCeiling: (mode: string) =>
    `egress permits more than that of the organization, whose mode is "${mode}". Leave out what it does not list, or ` +
    'add that with PATCH /v1/organization first.',
  widerOfOrganization: 'Only an organization key may widen egress: a scoped key may narrow it.',
  noneWithHosts: 'The mode none has no hosts: nothing passes. Leave hosts out, or take the mode allowlist.',
  tooManyHosts: (most: number) => `There must be at most ${most} hosts. Names below one are one host: *.example.com.`,
  stopped: 'This agent is stopping: its network access is closed.',
  unknownHost: (host: string) =>
    `${host} cannot be looked up: the name does not exist, or its name server does not answer.`,
  unreachable: (place: string, code: string) => `${place} cannot be reached: ${code}.`,
  slow: (place: string) => `${place} cannot be reached: it does not answer.`,
}
