import process from 'node:process'

/** This module is imported first, for its effect: an older Node.js would fail later with an unclear error. */
const requiredVersion = 24

if (Number(process.versions.node.split('.')[0]) < requiredVersion) {
  process.stderr.write(
    `Chowder needs Node.js ${requiredVersion} or newer, this is ${process.versions.node}: run it with npm start, which brings its own.\n`,
  )
  process.exit(1)
}
