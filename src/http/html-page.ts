const style = `:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
h2.code, code, pre { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
h2.code { font-size: 1.1rem }
pre, table { overflow-x: auto }
pre { padding: 0.5rem; background: #8882 }
table { display: block; border-collapse: collapse }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 0.6rem; border: 1px solid #8884; min-width: 6rem }
button { font: inherit; padding: 0.3rem 1.2rem; margin-right: 0.5rem }
img { max-width: 100% }
:target { background: #fc04 }`

const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' }

/** Escapes text for HTML, also within attributes in double quotes. */
export const escapeHtml = (text: string): string => text.replace(/[&<>"]/g, (one) => entities[one] ?? '')

/** A page of plain HTML, which loads nothing from another host. */
export const htmlPage = (title: string, body: string): string => `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title>
<style>${style}</style>
${body}
</html>
`
