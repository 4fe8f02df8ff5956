import type { Access } from '#http/auth.ts'
import type { ApiDocument } from '#http/openapi.ts'

const quickStart = (url: string) => `\`\`\`bash
# 1. An organization. "api_key" of the answer is its key. It is shown once.
curl -s ${url}/v1/organization/signup -H 'content-type: application/json' -d '{"name": "Acme"}'

# 2. The key of a model provider: anthropic, openai or gemini.
curl -s -X PATCH ${url}/v1/organization -H "authorization: Bearer $KEY" \\
  -H 'content-type: application/json' -d '{"model_api_keys": {"anthropic": "sk-ant-…"}}'

# 3. An agent. The answer comes at once: its "status" is "provisioning", and its "id" is that of the instance.
curl -s ${url}/v1/instances -H "authorization: Bearer $KEY" \\
  -H 'content-type: application/json' -d '{"name": "my-assistant"}'

# 4. Wait until "status" is "running": repeat the call while it is "provisioning". If it is "error", "error_message" of
#    GET /v1/instances/$ID has the reason, and POST /v1/instances/$ID/start tries again.
curl -s "${url}/v1/instances/$ID/status?wait=running&timeout=60" -H "authorization: Bearer $KEY"

# 5. Talk to it. It remembers the conversation. For another one: /v1/instances/$ID/session/<any name>/responses
curl -s ${url}/v1/instances/$ID/responses -H "authorization: Bearer $KEY" \\
  -H 'content-type: application/json' -d '{"model": "openclaw", "input": "Remember the number 42."}'
\`\`\``

const keyNames: Partial<Record<Access, string>> = { public: 'no key', any: 'any key', org: 'organization key' }

const accessName = (access: Access): string => keyNames[access] ?? `\`${access}\``

function endpoints({ tags, paths }: ApiDocument): string {
  const lines = Object.entries(paths).flatMap(([path, operations]) =>
    Object.entries(operations).map(
      ([
        method,
        {
          summary,
          tags: [tag],
          'x-permission': access,
        },
      ]) => ({
        tag,
        line: `- ${method.toUpperCase()} ${path}: ${summary} (${accessName(access)})`,
      }),
    ),
  )
  return tags
    .map(({ name, description }) => {
      const own = lines.filter(({ tag }) => tag === name).map(({ line }) => line)
      return `### ${name}\n\n${description}\n\n${own.join('\n')}`
    })
    .join('\n\n')
}

/** The API on one page of plain text, for coding agents. */
export const llmsText = (document: ApiDocument, url: string): string => `# ${document.info.title}

> ${document.info.description.split('\n## ')[0]?.trim().replaceAll('\n', ' ')}

- [OpenAPI 3.1 document](${url}/openapi.json): every field, example and error
- [Reference for people](${url}/docs)
- [Error codes](${url}/docs/errors): meaning, remedy, and whether to repeat the request

Base URL: ${url}

## Five minutes

${quickStart(url)}

\`"model"\` is \`openclaw\` for the model of the instance, or any model of its provider. \`"stream": true\` streams
server-sent events. An OpenAI client works with the base URL \`${url}/v1/instances/{instance_id}\`.

## ${document.info.description.split('\n## ').slice(1).join('\n## ').replaceAll('\n## ', '\n\n## ')}

## Endpoints

In parentheses: the key that a call needs. A permission means an organization key, or a scoped key with it.

${endpoints(document)}
`
