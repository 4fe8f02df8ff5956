import { errorBody } from '#http/error-body.ts'
import { errorExamples, exampleContext } from '#http/error-responses.ts'
import { errorCodes } from '#platform/error-codes.ts'

const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;' }

/** Converts text to HTML, with \`code\` in backticks. */
const html = (text: string): string =>
  text.replace(/[&<>]/g, (character) => entities[character] ?? '').replace(/`([^`]+)`/g, '<code>$1</code>')

const intro = `Every failure has the same body: \`detail\` is the message for people, and \`error\` is for programs.
Compare with \`error.code\`: a code keeps its meaning, and texts may change. The list may grow: treat a code that you do
not know as its status. \`error.param\` names the field at fault, if it is one. \`error.doc_url\` links to the code on
this page. Name \`error.request_id\` when you ask for help.`

const example = JSON.stringify(errorBody(errorExamples.limit_reached, exampleContext), null, 2)

const style = `:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
h2, code, pre { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
h2 { font-size: 1.1rem }
pre { overflow-x: auto }
:target { background: #fc04 }`

const explanations = Object.entries(errorCodes)
  .sort(([, a], [, b]) => a.status - b.status)
  .map(
    ([code, { status, type, meaning, remedy, repeat }]) => `<h2 id="${code}">${code} (${status}, ${type})</h2>
<p>${html(meaning)}</p>
<p><b>What to do:</b> ${html(remedy)}</p>
<p><b>Repeat the request:</b> ${html(repeat)}</p>`,
  )

/** The page at /docs/errors, with an anchor for each error code. It loads nothing from another host. */
export const errorsPage = (): string => `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Chowder API: error codes</title>
<style>${style}</style>
<h1>Error codes</h1>
<p>${html(intro)} The rest of the API is in the <a href="./">reference</a>.</p>
<pre>${html(example)}</pre>
${explanations.join('\n')}
</html>
`
