import process from 'node:process'

/** Imported first of all, for its effect: an older Node.js would fail later, and less clearly. */
const needed = 24

if (Number(process.versions.node.split('.')[0]) < needed) {
  process.stderr.write(
    `Chowder needs Node.js ${needed} or newer, this is ${process.versions.node}: run it with npm start, which brings its own.\n`,
  )
  process.exit(1)
}
