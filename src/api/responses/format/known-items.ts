import type { InputItem } from './input-schema.ts'
import { invalidField } from './invalid-field.ts'

/** The items and calls of an input that a session has from its earlier turns. */
export interface KnownItems {
  itemIds: ReadonlySet<string>
  /** Calls of the agent that wait for their results. */
  pendingCalls: ReadonlySet<string>
  /** Calls of the agent that have their results. */
  answeredCalls: ReadonlySet<string>
}

export const noKnownItems: KnownItems = { itemIds: new Set(), pendingCalls: new Set(), answeredCalls: new Set() }

/** The ids of an input that may name items and calls of the session. */
export function referencedIds(items: readonly InputItem[]): { itemIds: string[]; callIds: string[] } {
  const itemIds = items.flatMap((item) => (item.type === 'reasoning' || !item.id ? [] : [item.id]))
  const callIds = items.flatMap((item) => ('call_id' in item ? [item.call_id] : []))
  return { itemIds: [...new Set(itemIds)], callIds: [...new Set(callIds)] }
}

/** The ids of the calls that the input itself contains. */
const callsIn = (items: readonly InputItem[]): ReadonlySet<string> =>
  new Set(items.flatMap((item) => (item.type === 'function_call' ? [item.call_id] : [])))

/** The number of items up to the last one that the session already has. */
function countKnown(items: readonly InputItem[], { itemIds, pendingCalls, answeredCalls }: KnownItems): number {
  const calls = callsIn(items)
  return (
    1 +
    items.findLastIndex((item) => {
      if (item.type === 'reasoning') return false
      if (item.type === 'function_call') return pendingCalls.has(item.call_id) || answeredCalls.has(item.call_id)
      // The input repeats a call that the session has a result of, so the session has this result too.
      if (item.type === 'function_call_output') return calls.has(item.call_id) && answeredCalls.has(item.call_id)
      return item.id != null && itemIds.has(item.id)
    })
  )
}

/**
 * Finds the items of an input that the session does not have yet. Many clients send the whole conversation with every
 * turn, and an agent that got it twice would read it twice. So all items up to the last one that the session made
 * itself are skipped. Returns how many those are, and the pending calls whose results come after them.
 *
 * Throws AppError invalid for a reference to an item, or the result of a call, that the session does not have. The
 * result of a call that the input contains itself is accepted: both are history from the client.
 */
export function skipKnownItems(
  items: readonly InputItem[],
  known: KnownItems,
): { offset: number; answeredCallIds: string[] } {
  const offset = countKnown(items, known)
  const calls = callsIn(items)
  const answeredCallIds: string[] = []
  for (const [index, item] of items.entries()) {
    if (item.type === 'item_reference' && !known.itemIds.has(item.id)) {
      throw invalidField(
        `input.${index}.id`,
        `this session has no item ${JSON.stringify(item.id.slice(0, 100))}.`,
        'unknown_item',
      )
    }
    if (index < offset || item.type !== 'function_call_output') continue
    const { call_id: callId } = item
    if (known.pendingCalls.has(callId)) answeredCallIds.push(callId)
    else if (known.answeredCalls.has(callId) || !calls.has(callId)) {
      const why = known.answeredCalls.has(callId) ? 'already has its result' : 'does not wait for a result'
      throw invalidField(
        `input.${index}.call_id`,
        `the call ${JSON.stringify(callId)} ${why} in this session.`,
        'unknown_item',
      )
    }
  }
  return { offset, answeredCallIds }
}
