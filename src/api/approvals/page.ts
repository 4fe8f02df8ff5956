import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import { readDatabaseMs } from '#database/clock.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { escapeHtml, htmlPage } from '#http/html-page.ts'
import { getInstance } from '#instances/row.ts'
import { type Approval, approvalMinutes } from '#openclaw/gateway/approvals.ts'
import type { Vault } from '#platform/secrets.ts'
import { type AnswerParts, answerApproval, findApproval } from './answer.ts'
import { type LinkGrant, readLink } from './link.ts'

export interface PageDeps extends AnswerParts {
  vault: Vault
}

const outcomes: Record<Approval['status'], string> = {
  pending: '',
  allowed: 'The command was approved.',
  denied: 'The command was denied.',
  expired: 'The approval had no answer in time. The command was denied.',
  cancelled: 'The turn has ended. The command did not run.',
}

/** Page scripts are forbidden. Only the form of the page itself can be sent. */
const headers = {
  'content-security-policy':
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
  'referrer-policy': 'no-referrer',
  'cache-control': 'no-store',
  'x-content-type-options': 'nosniff',
}

/** The whole command is in sight: its lines wrap. */
function page(name: string, { command, status, createdAt }: Approval): string {
  const shown = `<h1>${escapeHtml(name)}</h1>
<p>${status === 'pending' ? 'This agent asks to run a command:' : outcomes[status]}</p>
<pre style="white-space: pre-wrap">${escapeHtml(command)}</pre>`
  if (status !== 'pending') return htmlPage('Approval', shown)
  const end = new Date(createdAt + approvalMinutes * 60_000).toISOString().slice(0, 16).replace('T', ' ')
  return htmlPage(
    'Approval',
    `${shown}
<form method="post"><button name="decision" value="approve">Approve</button>
<button name="decision" value="deny">Deny</button></form>
<p>Without an answer it is denied at ${end} UTC.</p>`,
  )
}

const send = (reply: FastifyReply, html: string) => reply.headers(headers).type('text/html; charset=utf-8').send(html)

/** The page of an approval, for whoever has its link. Reading it changes nothing. */
export const approvalPages: FastifyPluginAsyncTypebox<PageDeps> = async (app, deps) => {
  const { db, vault, askGateway } = deps
  const schema = { hide: true, params: Type.Object({ token: Type.String() }) }

  /** Throws AppError not_found for a link that is malformed or has expired. */
  async function grantOf(token: string): Promise<{ grant: LinkGrant; name: string }> {
    const grant = readLink(vault, token)
    if (!grant || grant.expiresAt < (await readDatabaseMs(db))) throw new AppError('not_found', texts.linkExpired)
    const { name } = await getInstance(db, grant.organizationId, grant.instanceId)
    return { grant, name }
  }

  app.addContentTypeParser(
    'application/x-www-form-urlencoded',
    { parseAs: 'string', bodyLimit: 1024 },
    async (_: unknown, body: string) => Object.fromEntries(new URLSearchParams(body)),
  )

  app.get('/v1/approve/:token', { config: { access: 'public' }, schema }, async ({ params }, reply) => {
    const { grant, name } = await grantOf(params.token)
    return send(reply, page(name, await findApproval(askGateway, grant)))
  })

  app.post(
    '/v1/approve/:token',
    { config: { access: 'public', event: 'approval.resolve' }, schema },
    async ({ params, body }, reply) => {
      const { grant, name } = await grantOf(params.token)
      const { decision: pressed } = (body ?? {}) as { decision?: string }
      if (pressed !== 'approve' && pressed !== 'deny')
        throw new AppError('invalid_value', texts.approveOrDeny, { param: 'decision' })
      const answer = { decision: pressed === 'approve' ? 'allow-once' : 'deny', reason: texts.byLink } as const
      return send(reply, page(name, await answerApproval(deps, grant, answer)))
    },
  )
}
