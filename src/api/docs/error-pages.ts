import { errorCodes } from '#errors/codes.ts'
import { errorBody } from '#http/error-body.ts'
import { errorExamples, exampleContext } from '#http/error-responses.ts'
import { escapeHtml, htmlPage } from '#http/html-page.ts'

/** Converts text to HTML, with \`code\` in backticks. */
const html = (text: string): string => escapeHtml(text).replace(/`([^`]+)`/g, '<code>$1</code>')

const intro = `Every failure has the same body: \`detail\` is the message for people, and \`error\` is for programs.
Compare with \`error.code\`: a code keeps its meaning, and texts may change. The list may grow: treat a code that you do
not know as its status. \`error.param\` names the field at fault, if it is one. \`error.doc_url\` links to the code on
this page. Name \`error.request_id\` when you ask for help.`

const example = JSON.stringify(errorBody(errorExamples.limit_reached, exampleContext), null, 2)

const explanations = Object.entries(errorCodes)
  .sort(([, a], [, b]) => a.status - b.status)
  .map(
    ([
      code,
      { status, type, meaning, remedy, repeat },
    ]) => `<h2 class="code" id="${code}">${code} (${status}, ${type})</h2>
<p>${html(meaning)}</p>
<p><b>What to do:</b> ${html(remedy)}</p>
<p><b>Repeat the request:</b> ${html(repeat)}</p>`,
  )

/** The page at /docs/errors, with an anchor for each error code. It loads nothing from another host. */
export const errorsPage = (): string =>
  htmlPage(
    'Chowder API: error codes',
    `<h1>Error codes</h1>
<p>${html(intro)} The rest of the API is in the <a href="./">reference</a>.</p>
<pre>${html(example)}</pre>
${explanations.join('\n')}`,
  )
