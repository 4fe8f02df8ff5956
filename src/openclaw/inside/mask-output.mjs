// Loaded before OpenClaw. Masks its secrets, and the credentials of its configuration, in its standard output and
// error: dockerd and others keep that output, and errors of requests quote URLs with tokens. OpenClaw itself masks only
// known vendors' tokens. Masks the same forms as `platform/mask.ts`, except in cut lines.
import { readFileSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** The same names as in `channel-credentials.ts`. */
const credential =
  /token|secret|pass(word|phrase)|credential|authorization|cookie|(private|api)[-_]?key|service[-_]?account|^(env|headers)$/i
const hidden = '***'
const minCharacters = 6
const base64Bits = 6
const byteBits = 8
/** Former secrets are masked too: a request that began with one may fail after its change. */
const maxCredentials = 1000

/** Whether this is OpenClaw's reference to a secret elsewhere. */
const isReference = (value) => Object.keys(value).sort().join() === 'id,provider,source'

function parsed(text) {
  if (!text.trimStart().startsWith('{')) return null
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}

function credentialsIn(value, isCredential) {
  if (typeof value === 'string') return isCredential ? [value, ...credentialsIn(parsed(value), false)] : []
  if (typeof value !== 'object' || value === null || isReference(value)) return []
  return Object.entries(value).flatMap(([key, inner]) => credentialsIn(inner, isCredential || credential.test(key)))
}

function inBase64(secret) {
  return [0, 1, 2].flatMap((before) => {
    const bytes = Buffer.concat([Buffer.alloc(before), Buffer.from(secret)])
    const first = Math.ceil((before * byteBits) / base64Bits)
    const end = Math.floor((bytes.length * byteBits) / base64Bits)
    return ['base64', 'base64url'].map((encoding) => bytes.toString(encoding).slice(first, end))
  })
}

function inUrl(secret) {
  const encoded = encodeURIComponent(secret.toWellFormed())
  const forms = [encoded, encoded.replaceAll('%20', '+')]
  return forms.flatMap((form) => [form, form.replace(/%[0-9A-F]{2}/g, (code) => code.toLowerCase())])
}

function inJson(secret) {
  const escaped = (text) => JSON.stringify(text).slice(1, -1)
  return [escaped(secret), escaped(escaped(secret)), escaped(secret).replaceAll('/', '\\/')]
}

const formsOf = (secret) => [
  ...[secret, ...secret.split(/\r?\n/)],
  ...inJson(secret),
  ...inUrl(secret),
  ...inBase64(secret),
]

const configPath = process.env.OPENCLAW_CONFIG_PATH ?? ''
const secretsPath = join(dirname(configPath), 'secrets.json')
const files = [configPath, secretsPath].map((path) => ({ path, version: '', found: [] }))
let credentials = []
let forms = []

/** Rereads a changed file: it may change while the gateway runs. */
function readAgain(file) {
  try {
    const { ino, mtimeMs, size } = statSync(file.path)
    const version = `${ino} ${mtimeMs} ${size}`
    if (version === file.version) return false
    // The key `secrets` of the configuration says where secrets are.
    const { secrets: _places, ...content } = JSON.parse(readFileSync(file.path, 'utf8'))
    const proxy = decodeURIComponent(URL.parse(content.proxyUrl)?.password ?? '')
    file.found = [...credentialsIn(content, file.path === secretsPath), proxy]
    file.version = version
    return true
  } catch {
    return false // It is missing or half-written: the former credentials are used.
  }
}

function readCredentials() {
  if (files.filter(readAgain).length === 0) return
  const found = files.flatMap((file) => file.found)
  credentials = [...new Set([...found, ...credentials])].slice(0, Math.max(found.length, maxCredentials))
  forms = [...new Set(credentials.flatMap(formsOf))]
    .filter((form) => form.length >= minCharacters)
    .sort((one, other) => other.length - one.length) // one may contain another
}

function mask(text) {
  readCredentials()
  const masked = forms.reduce((rest, form) => rest.replaceAll(form, hidden), text)
  return masked.replace(/:\/\/[^\s/?#@]+@/g, `://${hidden}@`)
}

for (const stream of [process.stdout, process.stderr]) {
  const { write } = stream
  stream.write = function (chunk, ...rest) {
    const text = typeof chunk === 'string' ? chunk : Buffer.from(chunk).toString()
    const masked = mask(text)
    return write.call(this, masked === text ? chunk : masked, ...rest)
  }
}
