import { readdirSync, readFileSync } from 'node:fs'
import { htmlPage } from '#http/html-page.ts'

const folder = new URL('../../../docs/', import.meta.url)
const read = (file: string) => readFileSync(new URL(file, folder), 'utf8')

/** The guides in docs/: the name of each, and its title. */
export const guideTitles: ReadonlyMap<string, string> = new Map(
  readdirSync(folder)
    .filter((file) => file.endsWith('.md'))
    .sort()
    .map((file) => [file.slice(0, -'.md'.length), /^# (.+)$/m.exec(read(file))?.[1] ?? file]),
)

/** The anchor that GitHub gives a heading. */
const anchorOf = (heading: string) =>
  heading
    .toLowerCase()
    .replace(/[^\w\- ]/g, '')
    .replaceAll(' ', '-')

/** Where a link of a guide leads on this server; undefined for a file that it does not serve. */
function addressOf(target: string): string | undefined {
  if (/^(https?:|#)/.test(target)) return target
  const [, name = '', anchor = ''] = /^([\w-]+)\.md(#.*)?$/.exec(target) ?? []
  return guideTitles.has(name) ? name + anchor : undefined
}

/** The library is loaded at the first visit. */
async function createRenderer() {
  const { Marked } = await import('marked')
  return new Marked({
    renderer: {
      heading({ tokens, depth, text }) {
        return `<h${depth} id="${anchorOf(text)}">${this.parser.parseInline(tokens)}</h${depth}>\n`
      },
      link({ href, tokens }) {
        const text = this.parser.parseInline(tokens)
        const address = addressOf(href)
        return address === undefined ? text : `<a href="${address}">${text}</a>`
      },
      image({ href, text }) {
        const image = Buffer.from(read(href)).toString('base64')
        return `<img alt="${text}" src="data:image/svg+xml;base64,${image}">`
      },
    },
  })
}

let renderer: ReturnType<typeof createRenderer> | undefined

/** The page of a guide; undefined if there is none of this name. */
export async function guidePage(name: string): Promise<string | undefined> {
  const title = guideTitles.get(name)
  if (title === undefined) return undefined
  renderer ??= createRenderer()
  const body = (await renderer).parse(read(`${name}.md`), { async: false })
  return htmlPage(title, `<p><a href="../guides">Guides</a> · <a href="../">Reference</a></p>\n${body}`)
}

/** The list of all guides. */
export function guidesPage(): string {
  const items = [...guideTitles].map(([name, title]) => `<li><a href="guides/${name}">${title}</a></li>`)
  return htmlPage('Guides', `<p><a href="./">Reference</a></p>\n<h1>Guides</h1>\n<ul>\n${items.join('\n')}\n</ul>`)
}
