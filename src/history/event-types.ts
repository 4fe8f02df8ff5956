/**
 * The types of events. `noun.verb` in the present is a request for a change; the others are its results. The trigger
 * `record_instance_event` in migrations/ writes the events of an instance that no request names.
 */
export const eventTypes = [
  'organization.create',
  'organization.update',
  'organization.suspend',
  'organization.resume',
  'organization.tier_changed',
  'organization.limit_changed',
  'organization.delete',
  'organization.erased',
  'provider_key.refused',
  'key.create',
  'key.update',
  'key.revoke',
  'instance.create',
  'instance.update',
  'instance.start',
  'instance.stop',
  'instance.restart',
  'instance.delete',
  'instance.due',
  'instance.attempt_failed',
  'instance.running',
  'instance.reconciled',
  'instance.stopped',
  'instance.failed',
  'instance.gateway_ended',
  'instance.change_begun',
  'instance.change_refused',
  'instance.changed',
  'instance.destroyed',
  'instance.erased',
  'budget.changed',
  'budget.reached',
  'response.cancel',
  'response.delete',
  'response.completed',
  'response.incomplete',
  'response.failed',
  'response.cancelled',
  'session.reset',
  'session.delete',
  'channel.connect',
  'channel.disconnect',
  'channel.logout',
  'channel.pair',
  'skill.install',
  'skill.configure',
  'skill.update',
  'skill.uninstall',
  'file.upload',
  'file.write',
  'file.move',
  'file.mkdir',
  'file.delete',
  'schedule.create',
  'schedule.update',
  'schedule.delete',
  'schedule.run',
  'schedule.started',
  'schedule.skipped',
  'schedule.failed',
  'schedule.paused',
  'hook.create',
  'hook.update',
  'hook.delete',
  'hook.started',
  'hook.ignored',
  'hook.failed',
  'webhook.create',
  'webhook.update',
  'webhook.delete',
  'webhook.rotate_secret',
  'webhook.resend',
  'webhook.disabled',
] as const

export type EventType = (typeof eventTypes)[number]

const nounOf = (type: EventType) => type.split('.', 1)[0] as string

/** A filter of a reader: a type, or all types of a noun, such as `instance.*`. */
export const eventTypeFilters: readonly string[] = [
  ...[...new Set(eventTypes.map(nounOf))].map((noun) => `${noun}.*`),
  ...eventTypes,
]

/** The distinct types of these filters. */
export const typesOf = (filters: readonly string[]): EventType[] =>
  eventTypes.filter((type) => filters.includes(type) || filters.includes(`${nounOf(type)}.*`))
