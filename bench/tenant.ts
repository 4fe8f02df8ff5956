const json = { 'content-type': 'application/json' }

/** A customer: an organization of its own that may create agents. */
export interface Tenant {
  auth: { authorization: string }
  /** One call of the API with the tenant's key. Throws unless the answer is 2xx. */
  call<T>(method: string, path: string, body?: object): Promise<T>
  /** Makes one call and returns the text of its answer, such as a stream to its end. Throws unless the answer is 2xx. */
  stream(method: string, path: string, body?: object): Promise<string>
  /** Makes one call and returns its answer, whose body is still to come. Throws unless the answer is 2xx. */
  open(method: string, path: string, body?: object): Promise<Response>
}

async function open(url: string, method: string, body?: object, headers: object = {}): Promise<Response> {
  const answer = await fetch(url, {
    method,
    headers: { ...(body && json), ...headers },
    ...(body && { body: JSON.stringify(body) }),
  })
  if (!answer.ok) throw new Error(`${method} ${url} answered ${answer.status}: ${await answer.text()}`)
  return answer
}

async function callForText(url: string, method: string, body?: object, headers: object = {}): Promise<string> {
  return (await open(url, method, body, headers)).text()
}

async function call<T>(url: string, method: string, body?: object, headers: object = {}): Promise<T> {
  const text = await callForText(url, method, body, headers)
  return (text ? JSON.parse(text) : null) as T
}

/** Signs up with the Chowder at `url`, with a model provider's key that opens nothing. */
export async function connect(url: string): Promise<Tenant> {
  const { api_key } = await call<{ api_key: string }>(`${url}/v1/organization/signup`, 'POST', { name: 'Bench' })
  const auth = { authorization: `Bearer ${api_key}` }
  await call(`${url}/v1/organization`, 'PATCH', { model_api_keys: { anthropic: 'bench' } }, auth)
  return {
    auth,
    call: (method, path, body) => call(url + path, method, body, auth),
    stream: (method, path, body) => callForText(url + path, method, body, auth),
    open: (method, path, body) => open(url + path, method, body, auth),
  }
}
