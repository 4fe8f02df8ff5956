import { randomUUID } from 'node:crypto'
import { isId, newId } from '#platform/ids.ts'

const withoutDashes = (uuid: string) => uuid.replaceAll('-', '')

/** The id of a response: the id of its row after `resp_`, without dashes. Ids sort by the time they were made. */
export const toResponseId = (uuid: string): string => `resp_${withoutDashes(uuid)}`
export const newResponseId = (): string => toResponseId(newId())

/** The id of the row of a response. */
export const toUuid = (id: string): string =>
  id.slice('resp_'.length).replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
export const isResponseId = (id: string): boolean => id.startsWith('resp_') && id.length === 37 && isId(toUuid(id))

export const newItemId = (kind: 'msg' | 'fc'): string => `${kind}_${withoutDashes(randomUUID())}`
