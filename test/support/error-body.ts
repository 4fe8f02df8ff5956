import { readFileSync } from 'node:fs'
import { type ErrorCode, errorCodes } from '#http/error-codes.ts'

const documented = new Set(
  [...readFileSync(new URL('../../docs/errors.md', import.meta.url), 'utf8').matchAll(/^## (\w+)$/gm)].map(
    ([, code]) => code,
  ),
)

/** The whole body of an error, on the routes that no OpenAI client calls. */
export const errorBody = (code: ErrorCode, detail: unknown, publicUrl = 'http://chowder.test') => ({
  detail,
  error: { doc_url: `${publicUrl}/docs/errors#${code}` },
})

/** Throws unless the body of an error links to an explanation in docs/errors.md, of a code with this status. */
export function requireDocUrl(status: number, body: unknown): void {
  const { doc_url: url = '' } = (body as { error?: { doc_url?: string } } | undefined)?.error ?? {}
  const [, code] = /\/docs\/errors#(\w+)$/.exec(url) ?? []
  const isExplained = documented.has(code) && errorCodes[code as ErrorCode].status === status
  if (!isExplained) throw new Error(`${status} without the explanation of its code: ${JSON.stringify(body)}`)
}
