// Replaces every TypeScript file below a folder by JavaScript, because Node.js would need time and memory for that at
// each start.
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { stripTypeScriptTypes } from 'node:module'
import { join } from 'node:path'

const [folder] = process.argv.slice(2)
for (const name of readdirSync(folder, { recursive: true })) {
  if (!name.endsWith('.ts')) continue
  const path = join(folder, name)
  const code = stripTypeScriptTypes(readFileSync(path, 'utf8'))
  writeFileSync(path.replace(/\.ts$/, '.js'), code.replaceAll(/(from '\.[^']*)\.ts'/g, "$1.js'"))
  rmSync(path)
}
const imports = { '#sandbox/*.ts': './*.js' }
writeFileSync(join(folder, 'package.json'), `${JSON.stringify({ type: 'module', imports })}\n`)
