// Loaded before OpenClaw. With a proxy, the command line of OpenClaw 2026.9.6 adds a signal listener that ends the
// process with 143 at once, in the middle of turns that the gateway would finish. This removes that listener.
const { once } = process
process.once = function (event, listener) {
  const isSignal = event === 'SIGTERM' || event === 'SIGINT'
  if (isSignal && /^\(\) => shutdown\(1\d\d\)$/.test(String(listener))) return this
  return once.call(this, event, listener)
}
