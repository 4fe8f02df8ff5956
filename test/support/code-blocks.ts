import { readFileSync } from 'node:fs'

export interface CodeBlock {
  language: string
  text: string
}

/** The code blocks of a document of this repository, in order. */
export const codeBlocksOf = (document: string): CodeBlock[] =>
  [...readFileSync(new URL(`../../${document}`, import.meta.url), 'utf8').matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm)].map(
    ([, language = '', text = '']) => ({ language, text }),
  )
