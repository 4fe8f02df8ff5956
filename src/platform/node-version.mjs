// Imported first, for its effect: an older Node.js would fail later with an unclear error.
const requiredVersion = 24

if (Number(process.versions.node.split('.')[0]) < requiredVersion) {
  process.stderr.write(
    `chowder: Chowder needs Node.js ${requiredVersion} or newer, and this is ${process.versions.node}. ` +
      'Run it with npm start: npm ci brings a Node.js of its own.\n',
  )
  process.exit(1)
}
