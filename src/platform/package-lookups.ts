import { registerHooks } from 'node:module'

/**
 * Imported before what imports Drizzle, for its effect. To know what kind of module a file is, Node.js reads and parses its
 * package's package.json anew for each file: Drizzle's has 180 kB, and its 100 files would cost 200 MB and 0.4 s at
 * every start. Its files that import each other are known to be ES modules.
 */
registerHooks({
  resolve(specifier, context, next) {
    const { parentURL } = context
    return parentURL?.includes('/node_modules/drizzle-orm/') && /^\..*\.js$/.test(specifier)
      ? { url: new URL(specifier, parentURL).href, format: 'module', shortCircuit: true }
      : next(specifier, context)
  },
})
