// Uploads or downloads a large file over HTTP in a process of its own, whose memory the test does not measure. Prints
// the status, the number of received bytes and the SHA-256 of the file.
import { createHash } from 'node:crypto'
import { request } from 'node:http'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'

const [action, url, key, bytes = '0'] = process.argv.slice(2)
const blockBytes = 1024 * 1024
const boundary = 'a-boundary'
const digest = createHash('sha256')
const headers = { authorization: `Bearer ${key}` }

async function* form() {
  yield Buffer.from(
    `--${boundary}\r\ncontent-disposition: form-data; name="path"\r\n\r\nlarge.bin\r\n--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n`,
  )
  for (let sent = 0; sent < Number(bytes); sent += blockBytes) {
    const block = Buffer.alloc(blockBytes, 'chowder ')
    block.writeUInt32BE(sent / blockBytes)
    digest.update(block)
    yield block
  }
  yield Buffer.from(`\r\n--${boundary}--\r\n`)
}

const call = request(url, {
  method: action === 'upload' ? 'POST' : 'GET',
  headers: { ...headers, ...(action === 'upload' && { 'content-type': `multipart/form-data; boundary=${boundary}` }) },
})
const answered = new Promise((resolve, reject) => call.once('response', resolve).once('error', reject))
if (action === 'upload') await pipeline(Readable.from(form()), call)
else call.end()
const answer = await answered
let received = 0
for await (const chunk of answer) {
  received += chunk.length
  if (action === 'download') digest.update(chunk)
}
process.stdout.write(JSON.stringify({ status: answer.statusCode, received, sha256: digest.digest('hex') }))
