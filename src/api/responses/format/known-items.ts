import { AppError } from '#platform/errors.ts'
import type { InputItem } from './request-schema.ts'

/** What a session's earlier turns hold of the items and calls that an input names. */
export interface KnownItems {
  itemIds: ReadonlySet<string>
  /** Calls that the agent made and whose results it waits for. */
  pendingCalls: ReadonlySet<string>
  /** Calls whose results it was given. */
  answeredCalls: ReadonlySet<string>
}

export const noKnownItems: KnownItems = { itemIds: new Set(), pendingCalls: new Set(), answeredCalls: new Set() }

/** The ids by which an input's items may be known to the session. */
export function referencedIds(items: readonly InputItem[]): { itemIds: string[]; callIds: string[] } {
  const itemIds = items.flatMap((item) => (item.type === 'reasoning' || !item.id ? [] : [item.id]))
  const callIds = items.flatMap((item) => ('call_id' in item ? [item.call_id] : []))
  return { itemIds: [...new Set(itemIds)], callIds: [...new Set(callIds)] }
}

const refuse = (param: string, why: string) => new AppError('invalid', `${param}: ${why}`, { param })

/**
 * Many clients send a conversation anew with every turn, and the session remembers it: told twice, the agent would read
 * it twice. So the items up to the last one that the session knows as its own agent's are left away. Answers how many
 * those are, and the calls whose results come after them.
 *
 * Throws AppError invalid for a reference to an item, and for the result of a call, that the session does not know. A
 * call that the client brings along itself, before its result, is part of the history that it tells.
 */
export function skipKnownItems(items: readonly InputItem[], known: KnownItems): { offset: number; answered: string[] } {
  const isKnown = (item: InputItem): boolean => {
    if (item.type === 'function_call') {
      return known.pendingCalls.has(item.call_id) || known.answeredCalls.has(item.call_id)
    }
    if (item.type === 'function_call_output' || item.type === 'reasoning') return false
    return item.id != null && known.itemIds.has(item.id)
  }
  const brought = new Set(items.flatMap((item) => (item.type === 'function_call' ? [item.call_id] : [])))
  let offset = 0
  for (const [at, item] of items.entries()) {
    if (isKnown(item)) offset = at + 1
    // The result of one that was answered, behind the call itself: as well known as that.
    else if (item.type === 'function_call_output' && brought.has(item.call_id) && known.answeredCalls.has(item.call_id))
      offset = at + 1
  }
  const answered: string[] = []
  for (const [at, item] of items.entries()) {
    if (item.type === 'item_reference' && !known.itemIds.has(item.id)) {
      throw refuse(`input.${at}.id`, `this session has no item ${JSON.stringify(item.id.slice(0, 100))}.`)
    }
    if (at < offset || item.type !== 'function_call_output') continue
    const { call_id: callId } = item
    if (known.pendingCalls.has(callId)) answered.push(callId)
    else if (known.answeredCalls.has(callId) || !brought.has(callId)) {
      const why = known.answeredCalls.has(callId)
        ? 'was given its result already'
        : 'is not one that the agent waits for'
      throw refuse(`input.${at}.call_id`, `the call ${JSON.stringify(callId)} ${why} in this session.`)
    }
  }
  return { offset, answered }
}
