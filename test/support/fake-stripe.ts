import { randomBytes } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import Stripe from 'stripe'
import { listenLocally } from './local-server.ts'

export const stripeSecretKey = 'sk_test_canary_of_the_secret_key'
export const stripeWebhookSecret = 'whsec_canary_of_the_webhook_secret'
export const stripePrices = { crab: 'price_crab', lobster: 'price_lobster' }
const lookupKeys: Record<string, string> = { price_crab: 'chowder_crab', price_lobster: 'chowder_lobster' }

const priceOf = (id: string) => ({ id, lookup_key: lookupKeys[id] ?? null })

interface FakeSubscription {
  id: string
  object: 'subscription'
  customer: string
  status: string
  created: number
  metadata: Record<string, string>
  items: {
    object: 'list'
    data: {
      id: string
      object: 'subscription_item'
      price: { id: string; lookup_key: string | null }
      quantity: number
    }[]
  }
}

interface FakeSession {
  id: string
  object: 'checkout.session'
  url: string
  mode: string
  status: 'open' | 'complete'
  customer: string
  client_reference_id: string | null
  subscription: string | null
  /** The fields of the request, such as `line_items[0][price]`. */
  form: Record<string, string>
}

interface Received {
  method: string
  path: string
  form: Record<string, string>
  idempotencyKey: string | undefined
}

/** A fault of a request: an answer with an error status, or no answer. */
interface Fault {
  path: RegExp
  status?: number
  /** Sends no answer and keeps the connection open. */
  hangs?: boolean
  /** The request takes effect, and only its answer is lost. */
  after?: boolean
  /** The number of requests that fail. */
  times: number
}

/** A Stripe event as it is delivered: the raw body and its header, signed by Stripe's own package. */
export interface Delivery {
  payload: string
  signature: string
}

const newId = (prefix: string) => `${prefix}_${randomBytes(8).toString('hex')}`
const seconds = () => Math.floor(Date.now() / 1000)

/**
 * A server with the part of Stripe's HTTP API that Chowder uses: prices, customers, Checkout, the Customer Portal,
 * subscriptions, their items and idempotency keys. Like Stripe it answers a repeated idempotency key with its first
 * answer, even a 500, and quotes a wrong secret key in its error.
 */
export class FakeStripe {
  readonly received: Received[] = []
  readonly customers = new Map<string, { id: string; object: 'customer'; metadata: Record<string, string> }>()
  /** Whether the prices are active, or archived. */
  arePricesActive = true
  readonly sessions = new Map<string, FakeSession>()
  readonly subscriptions = new Map<string, FakeSubscription>()
  readonly #faults: Fault[] = []
  readonly #answers = new Map<string, { request: string; status: number; body: unknown }>()
  readonly #hanging = new Set<ServerResponse>()
  readonly #server: Server = createServer((request, response) => {
    this.#serve(request, response).catch((error) => {
      if (!request.readableAborted) throw error // else the client has left
    })
  })

  url = ''
  #stopListening = async () => {}

  async open(): Promise<this> {
    const { url, close } = await listenLocally(this.#server)
    this.url = url
    this.#stopListening = close
    return this
  }

  fail(fault: Omit<Fault, 'times'> & { times?: number }): void {
    this.#faults.push({ times: 1, ...fault })
  }

  /** Ends all faults and closes the hanging connections. */
  heal(): void {
    this.#faults.length = 0
    for (const response of this.#hanging) response.destroy()
    this.#hanging.clear()
  }

  async close(): Promise<void> {
    this.heal()
    await this.#stopListening()
  }

  /** Pays as the customer: completes the session and creates the subscription. */
  pay(session: FakeSession): FakeSubscription {
    const subscription = this.subscribe(
      session.customer,
      session.form['line_items[0][price]'] ?? '',
      Number(session.form['line_items[0][quantity]']),
    )
    session.status = 'complete'
    session.subscription = subscription.id
    return subscription
  }

  subscribe(customer: string, price: string, quantity: number): FakeSubscription {
    const id = newId('sub')
    const item = { id: newId('si'), object: 'subscription_item' as const, price: priceOf(price), quantity }
    const subscription: FakeSubscription = {
      id,
      object: 'subscription',
      customer,
      status: 'active',
      created: seconds(),
      metadata: {},
      items: { object: 'list', data: [item] },
    }
    this.subscriptions.set(id, subscription)
    return subscription
  }

  /** Switches the plan as the customer does in the portal. */
  switchTo(subscription: FakeSubscription, price: string): void {
    const item = subscription.items.data[0]
    if (item) item.price = priceOf(price)
  }

  event(
    type: string,
    object: object,
    { id = newId('evt'), created = seconds() }: { id?: string; created?: number } = {},
  ): object {
    return { id, object: 'event', type, created, livemode: false, data: { object: structuredClone(object) } }
  }

  deliver(event: object, { secret = stripeWebhookSecret, ageSeconds = 0 } = {}): Delivery {
    const payload = JSON.stringify(event, null, 2)
    const timestamp = seconds() - ageSeconds
    return { payload, signature: Stripe.webhooks.generateTestHeaderString({ payload, secret, timestamp }) }
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '/', 'http://stripe')
    let body = ''
    for await (const chunk of request) body += chunk
    const form = Object.fromEntries([...url.searchParams, ...new URLSearchParams(body)])
    const idempotencyKey = request.headers['idempotency-key'] as string | undefined
    const received = { method: request.method ?? 'GET', path: url.pathname, form, idempotencyKey }
    this.received.push(received)
    const fault = this.#faults.find((candidate) => candidate.times > 0 && candidate.path.test(url.pathname))
    if (fault) fault.times -= 1
    if (fault?.after) this.#answer(received)
    if (fault?.hangs) return void this.#hanging.add(response)
    const key = request.headers.authorization?.replace('Bearer ', '')
    const { status, answer } =
      key !== stripeSecretKey
        ? { status: 401, answer: failure('invalid_request_error', `Invalid API Key provided: ${key}`) }
        : fault?.status !== undefined
          ? this.#remember(received, fault.status, failure('api_error', 'An unknown error occurred.'))
          : this.#answer(received)
    response.writeHead(status, { 'content-type': 'application/json', 'request-id': newId('req') })
    response.end(JSON.stringify(answer))
  }

  /** Stores the answer to an idempotency key for ever, unless it is a 429. */
  #remember(received: Received, status: number, answer: unknown) {
    const { idempotencyKey } = received
    if (received.method === 'POST' && idempotencyKey && status !== 429) {
      this.#answers.set(idempotencyKey, { request: requestOf(received), status, body: answer })
    }
    return { status, answer }
  }

  #answer(received: Received): { status: number; answer: unknown } {
    const before = received.method === 'POST' && this.#answers.get(received.idempotencyKey ?? '')
    if (before) {
      if (before.request === requestOf(received)) return { status: before.status, answer: before.body }
      return {
        status: 400,
        answer: failure('idempotency_error', 'Keys for idempotent requests can only be used once.'),
      }
    }
    const answer = this.#route(received)
    if (answer) return this.#remember(received, 200, structuredClone(answer))
    return {
      status: 404,
      answer: failure('invalid_request_error', `No such thing: ${received.path}`, 'resource_missing'),
    }
  }

  #route({ method, path, form }: Received): unknown {
    const [, , resource, id] = path.split('/')
    switch (`${method} ${resource}`) {
      case 'POST customers': {
        const customer = { id: newId('cus'), object: 'customer' as const, metadata: fieldsIn(form, 'metadata') }
        this.customers.set(customer.id, customer)
        return customer
      }
      case 'GET prices': {
        const ids = Object.keys(lookupKeys).filter((id) => lookupKeys[id] === form['lookup_keys[0]'])
        const found = this.arePricesActive && form.active === 'true' ? ids : []
        return { object: 'list', has_more: false, data: found.map(priceOf) }
      }
      case 'POST checkout': {
        const sessionId = newId('cs')
        const session: FakeSession = {
          id: sessionId,
          object: 'checkout.session',
          url: `${this.url}/pay/${sessionId}`,
          mode: form.mode ?? '',
          status: 'open',
          customer: form.customer ?? '',
          client_reference_id: form.client_reference_id ?? null,
          subscription: null,
          form,
        }
        this.sessions.set(sessionId, session)
        return session
      }
      case 'POST billing_portal':
        return (
          this.customers.has(form.customer ?? '') && { id: newId('bps'), url: `${this.url}/portal/${form.customer}` }
        )
      case 'GET subscriptions':
        return { object: 'list', has_more: false, data: this.#subscriptionsOf(form.customer ?? '', form.status) }
      case 'DELETE subscriptions': {
        const subscription = this.subscriptions.get(id ?? '')
        if (!subscription || subscription.status === 'canceled') return undefined
        subscription.status = 'canceled'
        return subscription
      }
      case 'POST subscription_items': {
        const items = [...this.subscriptions.values()]
          .filter(({ status }) => status !== 'canceled')
          .flatMap((subscription) => subscription.items.data)
        const item = items.find((candidate) => candidate.id === id)
        if (item) item.quantity = Number(form.quantity)
        return item
      }
      default:
        return undefined
    }
  }

  /** Newest first. Without a status Stripe leaves out cancelled subscriptions. */
  #subscriptionsOf(customer: string, status: string | undefined): FakeSubscription[] {
    return [...this.subscriptions.values()]
      .filter((subscription) => subscription.customer === customer)
      .filter((subscription) => status === 'all' || subscription.status !== 'canceled')
      .reverse()
  }
}

const failure = (type: string, message: string, code?: string) => ({ error: { type, message, ...(code && { code }) } })

const requestOf = ({ method, path, form }: Received) => JSON.stringify([method, path, form])

/** Converts `metadata[a]=1` into `{a: '1'}`. */
const fieldsIn = (form: Record<string, string>, name: string) =>
  Object.fromEntries(
    Object.entries(form).flatMap(([key, value]) => {
      const field = new RegExp(`^${name}\\[(\\w+)\\]$`).exec(key)?.[1]
      return field ? [[field, value]] : []
    }),
  )
