import { errorBody } from '#http/error-body.ts'
import { errorExamples, exampleContext } from '#http/error-responses.ts'
import { type ErrorCode, errorCodes } from '#platform/error-codes.ts'

const codes = (Object.keys(errorCodes) as ErrorCode[])
  .map((code) => ({ code, ...errorCodes[code] }))
  .sort((a, b) => a.status - b.status)

const example = JSON.stringify(errorBody(errorExamples.limit_reached, exampleContext), null, 2)

const intro = `Every failure has the same body: \`detail\` is the message for people, and \`error\` is for programs.
Compare with \`error.code\`: a code keeps its meaning, and texts may change. The list may grow: treat a code that you do
not know as its status. \`error.param\` names the field at fault, if it is one. \`error.doc_url\` links to the code on
this page. Name \`error.request_id\` when you ask for help.`

/** docs/errors.md: one anchor an error code. */
export const errorsMarkdown = (): string => `# Error codes

${intro}

\`\`\`json
${example}
\`\`\`
${codes
  .map(
    ({ code, status, type, meaning, remedy, repeat }) => `
## ${code}

- **Status:** ${status}, type \`${type}\`
- **Meaning:** ${meaning}
- **What to do:** ${remedy}
- **Repeat the request:** ${repeat}
`,
  )
  .join('')}`

const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;' }

/** Text as HTML, with \`code\` in backticks. */
const html = (text: string): string =>
  text.replace(/[&<>]/g, (character) => entities[character] ?? '').replace(/`([^`]+)`/g, '<code>$1</code>')

const style = `
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
code, h2, pre { font-family: ui-monospace, monospace; }
code { font-size: 0.9em; }
pre { font-size: 0.9em; overflow-x: auto; padding: 1rem; border: 1px solid #8886; border-radius: 0.4rem; }
h2 { font-size: 1.1rem; margin: 0 0 0.5rem; overflow-wrap: anywhere; }
h2 a { color: inherit; text-decoration: none; }
h2 span { font-weight: normal; opacity: 0.7; }
section { padding: 1rem; border-top: 1px solid #8886; }
section:target { background: #fc04; }
dl { margin: 0; display: grid; grid-template-columns: 6rem minmax(0, 1fr); gap: 0.25rem 1rem; }
dt { opacity: 0.7; }
dd { margin: 0; overflow-wrap: anywhere; }
nav { font-size: 0.9em; margin-bottom: 2rem; }
nav dl { grid-template-columns: 2.5rem minmax(0, 1fr); }
nav a { display: inline-block; margin-right: 1rem; font-family: ui-monospace, monospace; }
`

const statuses = [...new Set(codes.map(({ status }) => status))]
const linksTo = (status: number): string => {
  const own = codes.filter((one) => one.status === status)
  return `<dt>${status}</dt><dd>${own.map(({ code }) => `<a href="#${code}">${code}</a>`).join('\n')}</dd>`
}

/** The page at /docs/errors: one anchor an error code. It needs nothing from another host. */
export const errorsPage = (): string => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Chowder API: error codes</title>
<style>${style}</style>
</head>
<body>
<h1>Error codes</h1>
<p>${html(intro)} The rest of the API is in the <a href="./">reference</a>.</p>
<pre>${html(example)}</pre>
<nav><dl>
${statuses.map(linksTo).join('\n')}
</dl></nav>
${codes
  .map(
    ({ code, status, type, meaning, remedy, repeat }) => `<section id="${code}">
<h2><a href="#${code}">${code}</a> <span>${status}, ${type}</span></h2>
<dl>
<dt>Meaning</dt><dd>${html(meaning)}</dd>
<dt>What to do</dt><dd>${html(remedy)}</dd>
<dt>Repeat</dt><dd>${html(repeat)}</dd>
</dl>
</section>`,
  )
  .join('\n')}
</body>
</html>
`
