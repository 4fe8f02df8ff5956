import type { Access } from '#http/auth.ts'
import type { ApiDocument } from '#http/openapi.ts'
import { guideTitles } from './guides.ts'

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
export function llmsText(document: ApiDocument, url: string): string {
  const [summary = '', ...sections] = document.info.description.split('\n## ')
  const guides = [...guideTitles].map(([name, title]) => `- [Guide: ${title}](${url}/docs/guides/${name})`)
  return `# ${document.info.title}

> ${summary.trim().replaceAll('\n', ' ')}

- [OpenAPI 3.1 document](${url}/openapi.json): every field, example and error
- [Reference for people](${url}/docs)
- [Error codes](${url}/docs/errors): meaning, remedy, and whether to repeat the request
${guides.join('\n')}

Base URL: ${url}

## ${sections.join('\n## ').replaceAll('$URL', url)}

## Endpoints

In parentheses: the key that a call needs. A permission means an organization key, or a scoped key with it.

${endpoints(document)}
`
}
