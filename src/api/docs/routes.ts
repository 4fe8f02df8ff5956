import { hash } from 'node:crypto'
import fastify, { type FastifyPluginAsync, type FastifyReply, type FastifySchema } from 'fastify'
import { AppError } from '#errors/app-error.ts'
import type { ApiDocument } from '#http/openapi.ts'
import { errorsPage } from './error-pages.ts'
import { guidePage, guidesPage } from './guides.ts'
import { about } from './introduction.ts'
import { llmsText } from './llms-text.ts'
import { createScriptSender } from './page.ts'

export interface DocsDeps {
  /** The base URL for clients. */
  publicUrl(): string
}

const hidden: FastifySchema = { hide: true }
const cacheSeconds = 300

const cached = (reply: FastifyReply) => reply.header('cache-control', `public, max-age=${cacheSeconds}`)

/** Allows only files of this server, and the inline script of the page by its hash. */
function contentSecurityPolicy(html: string): string {
  const inline = [...html.matchAll(/<script type="text\/javascript">(.*?)<\/script>/gs)].map(([, text = '']) => text)
  const hashes = inline.map((text) => `'sha256-${hash('sha256', text, 'base64')}'`)
  return [
    "default-src 'none'",
    `script-src 'self' ${hashes.join(' ')}`,
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "font-src 'self' data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join('; ')
}

/** The pages of the reference. Their package has 5 MB, so it is loaded at the first visit. */
async function createPages() {
  const { default: scalar } = await import('@scalar/fastify-api-reference')
  const pages = fastify()
  await pages.register(scalar, {
    routePrefix: '/docs',
    configuration: {
      url: '../openapi.json',
      pageTitle: about.info.title,
      // The page loads nothing from another host: no fonts, no proxy, no telemetry, no assistants.
      withDefaultFonts: false,
      telemetry: false,
      hideClientButton: true,
      showDeveloperTools: 'never',
      agent: { disabled: true },
      mcp: { disabled: true },
      favicon: 'data:,',
      authentication: { preferredSecurityScheme: 'apiKey' },
      documentDownloadType: 'json',
      defaultHttpClient: { targetKey: 'shell', clientKey: 'curl' },
    },
  })
  return pages
}

/**
 * The description of the API, for programs (`/openapi.json`), people (`/docs`, `/docs/errors`, `/docs/guides`) and
 * coding agents (`/llms.txt`).
 */
export const docsRoutes: FastifyPluginAsync<DocsDeps> = async (app, { publicUrl }) => {
  const document = () => app.swagger() as unknown as ApiDocument

  app.get('/openapi.json', { schema: hidden }, async (_request, reply) => cached(reply).send(document()))

  app.get('/llms.txt', { schema: hidden }, async (_request, reply) =>
    cached(reply).type('text/plain; charset=utf-8').send(llmsText(document(), publicUrl())),
  )

  await app.register(async (docs) => {
    const sendScript = createScriptSender()
    docs.addHook('onSend', async (request, reply, payload) => {
      cached(reply).header('x-content-type-options', 'nosniff')
      const type = String(reply.getHeader('content-type'))
      if (type.startsWith('text/html')) reply.header('content-security-policy', contentSecurityPolicy(String(payload)))
      const isScript = type.includes('javascript') && typeof payload === 'string'
      return isScript ? sendScript(payload, request, reply) : payload
    })
    docs.get('/docs/errors', { schema: hidden }, async (_request, reply) =>
      reply.type('text/html; charset=utf-8').send(errorsPage()),
    )
    docs.get('/docs/guides', { schema: hidden }, async (_request, reply) =>
      reply.type('text/html; charset=utf-8').send(guidesPage()),
    )
    docs.get<{ Params: { name: string } }>('/docs/guides/:name', { schema: hidden }, async ({ params }, reply) => {
      const page = await guidePage(params.name)
      if (page === undefined) throw new AppError('unknown_route', 'No such guide. GET /docs/guides lists all.')
      return reply.type('text/html; charset=utf-8').send(page)
    })
    let pages: ReturnType<typeof createPages> | undefined
    for (const path of ['/docs', '/docs/', '/docs/js/scalar.js']) {
      docs.get(path, { schema: hidden }, async (_request, reply) => {
        pages ??= createPages()
        const { statusCode, headers, payload } = await (await pages).inject(path)
        if (headers['content-type']) reply.type(String(headers['content-type']))
        if (headers.location) reply.header('location', headers.location)
        return reply.code(statusCode).send(payload)
      })
    }
  })
}
