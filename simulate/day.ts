/**
 * A day of a fleet, which the simulation goes through in fewer hours. The shares are of the fleet's instances in one
 * day, and are assumptions.
 */
export const createdADay = 0.1
/** Of its gateways end by themselves. */
export const diesADay = 0.02
/** Turns of each instance; as many as this machine carries beside the fleet itself. */
export const turnsADay = 1
/** One of so many regions goes away. */
export const regions = 8
/** When it is away, from 0 to 1: for half an hour of 24. */
const away = { from: 0.6, to: 0.6 + 1 / 48 }
/** This share of its gateways has ended when it comes back, as if its hosts had started anew. */
export const endsWithRegion = 0.5
/** What the people who use the fleet do at night, and at its busiest time, of what they do on average. */
const leastBusy = 0.3
const mostBusy = 2 - leastBusy

export const partsOfDay = ['night', 'day', 'region away', 'region back'] as const
export type PartOfDay = (typeof partsOfDay)[number]

/** How busy people are at a time of the day from 0 to 1, as a multiple of the average: least at 0, most at 0.5. */
export const busyness = (time: number): number =>
  leastBusy + ((mostBusy - leastBusy) * (1 - Math.cos(2 * Math.PI * time))) / 2

export const isRegionAway = (time: number): boolean => time >= away.from && time < away.to

/** What a time of the day is counted under. A region is `back` for twice as long as it was away. */
export function partOfDay(time: number): PartOfDay {
  if (isRegionAway(time)) return 'region away'
  if (time >= away.to && time < away.to + 2 * (away.to - away.from)) return 'region back'
  return busyness(time) < 1 ? 'night' : 'day'
}
