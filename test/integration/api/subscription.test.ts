import { afterAll, afterEach, describe, expect, test } from 'vitest'
import { createBilling } from '#api/subscription/stripe.ts'
import { errorBody } from '../../support/error-body.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import {
  type Delivery,
  FakeStripe,
  stripePrices,
  stripeSecretKey,
  stripeWebhookSecret,
} from '../../support/fake-stripe.ts'
import { present } from '../../support/present.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const stripeTimeoutMs = 4000

const settings = () => ({
  secretKey: stripeSecretKey,
  webhookSecret: stripeWebhookSecret,
  prices: stripePrices,
  apiUrl: stripe.url,
  returnUrl: () => 'https://app.example.com/billing',
  timeoutMs: stripeTimeoutMs,
})

const stripe = await new FakeStripe().open()
const billing = await createBilling(settings())
const sandboxes = new FakeDriver()
// Starts fail at once, so that the workers of these tests are free for the syncs.
sandboxes.fail({ method: 'prepare', times: Number.POSITIVE_INFINITY })
const chowder = await openTestChowder({ sandboxes, defaultTier: 'shrimp', billing })
afterEach(() => stripe.heal())
afterAll(async () => {
  await chowder.close()
  await stripe.close()
})

const read = async (key: string) => (await chowder.call('GET', '/v1/subscription', { key })).body
const checkout = (key: string, tier: unknown) =>
  chowder.call('POST', '/v1/subscription/checkout', { key, body: { tier } })
const create = (key: string) => chowder.call('POST', '/v1/instances', { key, body: { name: 'agent' } })

async function deliver({ payload, signature }: Delivery, headers: Record<string, string> = {}) {
  const answer = await chowder.app.inject({
    method: 'POST',
    url: '/v1/webhooks/stripe',
    headers: { 'content-type': 'application/json; charset=utf-8', 'stripe-signature': signature, ...headers },
    payload,
  })
  return { status: answer.statusCode, body: answer.json() }
}

const sessionAt = (url: string) => present(stripe.sessions.get(url.split('/').at(-1) ?? ''))

/** An organization that paid for a tier, after the event of its payment was processed. */
async function subscriber(tier: 'crab' | 'lobster') {
  const { id, key } = await chowder.signUp()
  const session = sessionAt((await checkout(key, tier)).body.url)
  const subscription = stripe.pay(session)
  await deliver(stripe.deliver(stripe.event('checkout.session.completed', session)))
  await until('the tier', async () => (await read(key)).tier === tier)
  return { id, key, session, subscription }
}

const quantityOf = (subscription: { items: { data: { quantity: number }[] } }) => subscription.items.data[0]?.quantity
/** Ends the pause of 30 s between two updates of a quantity. */
const endPause = (id: string) =>
  chowder.database.pool.query('UPDATE organizations SET next_billing_at = now() WHERE id = $1', [id])
const isSettled = async (customer: string) => {
  const text = 'SELECT billed_count FROM organizations WHERE stripe_customer_id = $1'
  return (await chowder.database.pool.query(text, [customer])).rows[0].billed_count !== null
}
const linesOf = (message: string, organizationId: string) =>
  chowder.logged
    .map((line) => JSON.parse(line))
    .filter((line) => line.msg === message && line.organizationId === organizationId)

describe('GET /v1/subscription', () => {
  test('returns the documented fields of an organization that never subscribed', async () => {
    const { key } = await chowder.signUp()
    await create(key)
    expect(await read(key)).toEqual({
      tier: 'shrimp',
      instance_limit: 1,
      instance_count: 1,
      stripe_customer_id: null,
      stripe_subscription_id: null,
    })
  })

  test.each([
    ['GET', ''],
    ['POST', '/checkout'],
    ['POST', '/portal'],
  ] as const)('%s /v1/subscription%s without a key is a 401', async (method, path) => {
    const body = path === '/checkout' ? { tier: 'crab' } : undefined
    expect((await chowder.call(method, `/v1/subscription${path}`, { body })).status).toBe(401)
  })
})

describe('POST /v1/subscription/checkout', () => {
  test('returns the address of a checkout for the tier, with one unit for each instance and the organization’s own customer', async () => {
    const { id, key } = await chowder.signUp()
    const { status, body } = await checkout(key, 'crab')
    const session = sessionAt(body.url)
    expect([status, body]).toEqual([200, { url: session.url }])
    expect(session.form).toEqual({
      mode: 'subscription',
      customer: (await read(key)).stripe_customer_id,
      client_reference_id: id,
      'line_items[0][price]': stripePrices.crab,
      'line_items[0][quantity]': '1',
      'subscription_data[metadata][organization_id]': id,
      success_url: 'https://app.example.com/billing',
      cancel_url: 'https://app.example.com/billing',
    })
    expect(stripe.customers.get(session.customer)?.metadata).toEqual({ organization_id: id })
    expect((await read(key)).tier).toBe('shrimp')
  })

  test('several calls, also concurrent ones, use one customer', async () => {
    const { key } = await chowder.signUp()
    const answers = await Promise.all(Array.from({ length: 5 }, () => checkout(key, 'lobster')))
    answers.push(await checkout(key, 'crab'))
    expect(new Set(answers.map(({ body }) => sessionAt(body.url).customer))).toEqual(
      new Set([(await read(key)).stripe_customer_id]),
    )
  })

  test.each([['shrimp'], ['whale'], ['gold'], [7], [undefined]])('the tier %s is a 422', async (tier) => {
    const { key } = await chowder.signUp()
    const { status, body } = await checkout(key, tier)
    expect([status, body.detail[0].loc]).toEqual([422, ['body', 'tier']])
  })

  test('is a 409 that names the portal when there is a subscription', async () => {
    const { key } = await subscriber('crab')
    const { status, body } = await checkout(key, 'lobster')
    expect(status).toBe(409)
    expect(body.detail).toContain('/v1/subscription/portal')
  })

  test('is a 409 on the tier whale, which no payment changes', async () => {
    const { id, key } = await chowder.signUp()
    await chowder.database.pool.query(`UPDATE organizations SET subscription_tier = 'whale' WHERE id = $1`, [id])
    expect((await checkout(key, 'crab')).status).toBe(409)
  })
})

describe('POST /v1/subscription/portal', () => {
  test('returns the address of the customer’s portal; without a customer it is a 400 that names the checkout', async () => {
    const { key } = await chowder.signUp()
    const portal = () => chowder.call('POST', '/v1/subscription/portal', { key })
    const before = await portal()
    expect(before.status).toBe(400)
    expect(before.body.detail).toContain('/v1/subscription/checkout')
    await checkout(key, 'crab')
    const { stripe_customer_id } = await read(key)
    expect(await portal()).toMatchObject({ status: 200, body: { url: `${stripe.url}/portal/${stripe_customer_id}` } })
  })
})

describe('a failure of Stripe', () => {
  test.each([
    ['an answer of 500', { status: 500 }],
    ['an answer of 429', { status: 429 }],
    ['a hang', { hangs: true }],
  ])('%s makes checkout and portal a 503 with Retry-After, until Stripe works again', async (_kind, fault) => {
    const { key } = await chowder.signUp()
    await checkout(key, 'crab')
    stripe.fail({ path: /./, times: 9, ...fault })
    for (const request of [
      () => checkout(key, 'crab'),
      () => chowder.call('POST', '/v1/subscription/portal', { key }),
    ]) {
      const { status, body, headers } = await request()
      expect([status, body, headers['retry-after']]).toEqual([
        503,
        errorBody('unavailable', 'Stripe cannot be reached right now. Try again.'),
        '5',
      ])
    }
    stripe.heal()
    expect((await checkout(key, 'crab')).status).toBe(200)
  })

  test('a wrong setting is a 503 that names the log, which holds Stripe’s reason and no secret', async () => {
    const billing = await createBilling({ ...settings(), secretKey: 'sk_test_canary_of_a_wrong_key' })
    const other = await openTestChowder({ sandboxes: new FakeDriver(), billing, database: chowder.database })
    const { key } = await other.signUp()
    const { status, body } = await other.call('POST', '/v1/subscription/checkout', { key, body: { tier: 'crab' } })
    await other.close()
    expect(status).toBe(503)
    expect(body.detail).toContain('log')
    const log = other.logged.join('')
    expect(log).toContain('StripeAuthenticationError 401')
    expect(log + JSON.stringify(body)).not.toContain('canary')
  })

  test('a tier without a price is a 503, and the log names the lookup key', async () => {
    const { key } = await chowder.signUp()
    stripe.arePricesActive = false
    const { status, body } = await checkout(key, 'lobster')
    stripe.arePricesActive = true
    expect([status, body.detail]).toEqual([503, expect.stringContaining('log')])
    expect(chowder.logged.join('')).toContain('no active price of Stripe has the lookup key chowder_lobster')
    expect((await checkout(key, 'lobster')).status).toBe(200)
  })
})

test('without the settings of Stripe checkout, portal and webhook are a 501, and the tier can be read', async () => {
  const other = await openTestChowder({ sandboxes: new FakeDriver(), database: chowder.database })
  const { key } = await other.signUp()
  const answers = [
    await other.call('POST', '/v1/subscription/checkout', { key, body: { tier: 'crab' } }),
    await other.call('POST', '/v1/subscription/portal', { key }),
    await other.call('POST', '/v1/webhooks/stripe', { body: {} }),
  ]
  const { status } = await other.call('GET', '/v1/subscription', { key })
  await other.close()
  for (const { status, body } of answers) {
    expect(status).toBe(501)
    expect(body.detail).toContain('STRIPE_SECRET_KEY')
  }
  expect(status).toBe(200)
})

describe('POST /v1/webhooks/stripe', () => {
  test('a completed checkout raises the tier and the limit without a worker', async () => {
    const { key, session, subscription } = await subscriber('lobster')
    expect(await read(key)).toEqual({
      tier: 'lobster',
      instance_limit: 500,
      instance_count: 0,
      stripe_customer_id: session.customer,
      stripe_subscription_id: subscription.id,
    })
  })

  test('a switch in the portal changes the tier, and the end of a subscription sets it to shrimp', async () => {
    const { key, subscription } = await subscriber('crab')
    stripe.switchTo(subscription, stripePrices.lobster)
    await deliver(stripe.deliver(stripe.event('customer.subscription.updated', subscription)))
    await until('lobster', async () => (await read(key)).tier === 'lobster')
    subscription.status = 'canceled'
    await deliver(stripe.deliver(stripe.event('customer.subscription.deleted', subscription)))
    await until('shrimp', async () => (await read(key)).tier === 'shrimp')
    expect(await read(key)).toMatchObject({ instance_limit: 1, stripe_subscription_id: null })
    expect((await checkout(key, 'crab')).status).toBe(200)
  })

  test('a lower tier stops no instance: creates are a 402 until there are fewer instances than the limit', async () => {
    const { key, subscription } = await subscriber('crab')
    const ids = [(await create(key)).body.id, (await create(key)).body.id]
    subscription.status = 'canceled'
    await deliver(stripe.deliver(stripe.event('customer.subscription.deleted', subscription)))
    await until('shrimp', async () => (await read(key)).tier === 'shrimp')
    const { body } = await chowder.call('GET', '/v1/instances', { key })
    expect(body.map((instance: { status: string }) => instance.status)).toEqual(['provisioning', 'provisioning'])
    const refused = await create(key)
    expect([refused.status, refused.body.detail]).toEqual([
      402,
      'Instance limit reached (2/1). Upgrade your subscription.',
    ])
    await chowder.call('DELETE', `/v1/instances/${ids[0]}`, { key })
    expect((await create(key)).status).toBe(402)
    await chowder.call('DELETE', `/v1/instances/${ids[1]}`, { key })
    expect((await create(key)).status).toBe(201)
  })

  test('a failed payment changes no tier', async () => {
    const { id, key, session, subscription } = await subscriber('crab')
    subscription.status = 'past_due'
    const invoice = { id: 'in_1', object: 'invoice', customer: session.customer }
    expect((await deliver(stripe.deliver(stripe.event('invoice.payment_failed', invoice)))).status).toBe(200)
    await until('the log line', () => linesOf('an organization has not paid an invoice', id).length > 0)
    await until('the sync', () => isSettled(session.customer))
    expect((await read(key)).tier).toBe('crab')
  })

  test('A17: forged, altered, unsigned and old events are a 400 and change nothing', async () => {
    const { key, subscription } = await subscriber('crab')
    stripe.switchTo(subscription, stripePrices.lobster)
    const event = stripe.event('customer.subscription.updated', subscription, { id: 'evt_forged' })
    const good = stripe.deliver(event)
    const before = stripe.received.length
    const answers = [
      await deliver(stripe.deliver(event, { secret: 'whsec_another' })),
      await deliver({ ...good, payload: good.payload.replace('lobster', 'Lobster') }),
      await deliver({ ...good, payload: `${good.payload} ` }),
      await deliver({ ...good, signature: '' }),
      await deliver({ ...good, signature: 't=1,v1=00' }),
      await deliver(stripe.deliver(event, { ageSeconds: 301 })),
      await deliver({ payload: '', signature: good.signature }),
    ]
    for (const { status, body } of answers) {
      expect([status, body.detail]).toEqual([400, expect.stringContaining('Stripe-Signature')])
    }
    expect(stripe.received.length).toBe(before)
    const { rows } = await chowder.database.pool.query(`SELECT * FROM stripe_events WHERE id = 'evt_forged'`)
    expect(rows).toEqual([])
    expect((await read(key)).tier).toBe('crab')
    expect((await deliver(good)).status).toBe(200)
    await until('lobster', async () => (await read(key)).tier === 'lobster')
  })

  test('A17: an event that is delivered ten times at once and once again has one effect', async () => {
    const { id, key, subscription } = await subscriber('crab')
    stripe.switchTo(subscription, stripePrices.lobster)
    const delivery = stripe.deliver(stripe.event('customer.subscription.updated', subscription))
    const before = stripe.received.length
    const answers = await Promise.all(Array.from({ length: 10 }, () => deliver(delivery)))
    await until('lobster', async () => (await read(key)).tier === 'lobster')
    answers.push(await deliver(delivery))
    expect(answers.map(({ status }) => status)).toEqual(Array(11).fill(200))
    await until('the log', () => linesOf('the tier of an organization has changed', id).length === 2)
    expect(stripe.received.length - before).toBe(1)
  })

  test('A17: after events out of order the state at Stripe holds', async () => {
    const { key, session, subscription } = await subscriber('crab')
    const early = stripe.event('customer.subscription.updated', subscription)
    stripe.switchTo(subscription, stripePrices.lobster)
    await deliver(stripe.deliver(stripe.event('customer.subscription.updated', subscription)))
    await until('lobster', async () => (await read(key)).tier === 'lobster')
    const before = stripe.received.length
    await deliver(stripe.deliver(early))
    await until('the request after the early event', () => stripe.received.length > before)
    expect((await read(key)).tier).toBe('lobster')
    subscription.status = 'canceled'
    await deliver(stripe.deliver(stripe.event('customer.subscription.deleted', subscription)))
    await until('shrimp', async () => (await read(key)).tier === 'shrimp')
    await deliver(stripe.deliver(stripe.event('checkout.session.completed', session)))
    await until('the requests after both events', () => stripe.received.length >= before + 3)
    await until('the sync', () => isSettled(session.customer))
    expect(await read(key)).toMatchObject({ tier: 'shrimp', instance_limit: 1, stripe_subscription_id: null })
  })

  test('A17: events of an unknown customer and of other types are a 200 and change nothing', async () => {
    const unknown = stripe.subscribe('cus_unknown', stripePrices.crab, 1)
    const before = stripe.received.length
    const answers = [
      await deliver(stripe.deliver(stripe.event('customer.subscription.updated', unknown, { id: 'evt_unknown' }))),
      await deliver(stripe.deliver(stripe.event('customer.created', { id: 'cus_unknown', object: 'customer' }))),
      await deliver(stripe.deliver(stripe.event('invoice.payment_failed', { object: 'invoice' }))),
    ]
    expect(answers).toEqual(Array(3).fill({ status: 200, body: { received: true } }))
    expect(stripe.received.length).toBe(before)
    expect(chowder.logged.some((line) => line.includes('evt_unknown') && line.includes('an unknown customer'))).toBe(
      true,
    )
  })

  test('a subscription to another price gives no tier', async () => {
    const { key } = await chowder.signUp()
    await checkout(key, 'crab')
    const { stripe_customer_id } = await read(key)
    const other = stripe.subscribe(stripe_customer_id, 'price_of_something_else', 1)
    const before = stripe.received.length
    await deliver(stripe.deliver(stripe.event('customer.subscription.updated', other)))
    await until('the request', () => stripe.received.length > before)
    expect(await read(key)).toMatchObject({ tier: 'shrimp', stripe_subscription_id: null })
  })

  test('no event changes the tier whale, which the operator set', async () => {
    const { id, key, subscription } = await subscriber('crab')
    await chowder.database.pool.query(
      `UPDATE organizations SET subscription_tier = 'whale', instance_limit = NULL WHERE id = $1`,
      [id],
    )
    subscription.status = 'canceled'
    await deliver(stripe.deliver(stripe.event('customer.subscription.deleted', subscription)))
    await until('the end of the subscription', async () => (await read(key)).stripe_subscription_id === null)
    expect(await read(key)).toMatchObject({ tier: 'whale', instance_limit: null })
  })

  test('while Stripe hangs an event is answered at once, and a worker sets the tier later', async () => {
    const { key } = await chowder.signUp()
    const session = sessionAt((await checkout(key, 'crab')).body.url)
    stripe.pay(session)
    stripe.fail({ path: /subscriptions/, hangs: true, times: 99 })
    const startedAt = performance.now()
    const { status } = await deliver(stripe.deliver(stripe.event('checkout.session.completed', session)))
    expect(status).toBe(200)
    expect(performance.now() - startedAt).toBeLessThan(stripeTimeoutMs)
    const { id } = (await chowder.call('GET', '/v1/organization', { key })).body
    const failure = 'the sync of a subscription with Stripe failed and will be repeated'
    await until('the failure', () => linesOf(failure, id).length > 0)
    expect((await read(key)).tier).toBe('shrimp')
    stripe.heal()
    await endPause(id)
    const worker = await chowder.startWorker()
    await until('the tier', async () => (await read(key)).tier === 'crab')
    await worker.stop()
  })
})

describe('the quantity at Stripe', () => {
  test('follows creates and deletes', async () => {
    const { id, key, subscription } = await subscriber('crab')
    const worker = await chowder.startWorker()
    await until('a quantity of 0', () => quantityOf(subscription) === 0)
    const { body } = await create(key)
    await create(key)
    await endPause(id)
    await until('a quantity of 2', () => quantityOf(subscription) === 2)
    await chowder.call('DELETE', `/v1/instances/${body.id}`, { key })
    await endPause(id)
    await until('a quantity of 1', () => quantityOf(subscription) === 1)
    await worker.stop()
  })

  test('while Stripe hangs creates and deletes do not wait for it, and the quantity is sent afterwards', async () => {
    const { id, key, subscription } = await subscriber('crab')
    stripe.fail({ path: /./, hangs: true, times: 99 })
    await endPause(id)
    const worker = await chowder.startWorker()
    const startedAt = performance.now()
    const first = await create(key)
    const second = await create(key)
    const deleted = await chowder.call('DELETE', `/v1/instances/${first.body.id}`, { key })
    expect([first.status, second.status, deleted.status]).toEqual([201, 201, 204])
    expect(performance.now() - startedAt).toBeLessThan(stripeTimeoutMs)
    stripe.heal()
    await until('a quantity of 1', async () => {
      await endPause(id)
      return quantityOf(subscription) === 1
    })
    await worker.stop()
  })

  test('arrives after answers of 500, each attempt with its own idempotency key, and after a restart of the worker', async () => {
    const { id, key, subscription } = await subscriber('crab')
    const updates = () => stripe.received.filter(({ path }) => path.includes(subscription.items.data[0]?.id ?? ''))
    const before = updates().length
    await create(key)
    await create(key)
    stripe.fail({ path: /subscription_items/, status: 500, times: 3 })
    const first = await chowder.startWorker()
    await until('the first failure', async () => {
      await endPause(id)
      return updates().length > before
    })
    await first.stop()
    const second = await chowder.startWorker()
    await until('the quantity', async () => {
      await endPause(id)
      return quantityOf(subscription) === 2
    })
    await second.stop()
    const keys = updates()
      .slice(before)
      .map(({ idempotencyKey }) => idempotencyKey)
    expect(keys.length).toBeGreaterThanOrEqual(4)
    expect(new Set(keys).size).toBe(keys.length)
  })

  test('the pauses of retries grow to ten minutes, and from the tenth attempt on the log line is an error', async () => {
    const { id } = await subscriber('crab')
    const pauseAfter = async (attempts: number) => {
      await chowder.database.pool.query(
        'UPDATE organizations SET billed_count = NULL, billing_attempts = $2, next_billing_at = now() WHERE id = $1',
        [id, attempts],
      )
      stripe.fail({ path: /subscriptions/, status: 500, times: 999 })
      const worker = await chowder.startWorker()
      const failed = await until('the failure', async () => {
        const { rows } = await chowder.database.pool.query(
          'SELECT extract(epoch FROM next_billing_at - now()) AS pause FROM organizations WHERE id = $1 AND billing_attempts > $2',
          [id, attempts],
        )
        // A pause of a minute is the claim of the attempt that is running.
        return rows[0] && !(rows[0].pause > 45 && rows[0].pause < 75) ? rows[0] : null
      })
      await worker.stop()
      stripe.heal()
      return Math.ceil(Number(failed.pause) / 10) * 10 // it is read a moment after it was written
    }
    expect(await pauseAfter(0)).toBe(10)
    expect(await pauseAfter(1)).toBe(20)
    expect(await pauseAfter(20)).toBe(600)
    expect(linesOf('the sync of a subscription with Stripe failed and will be repeated', id).at(-1).level).toBe(50)
  })

  test('is sent once by two workers', async () => {
    const organizations = await Promise.all([subscriber('crab'), subscriber('crab'), subscriber('lobster')])
    for (const { key } of organizations) await create(key)
    for (const { key } of organizations) await create(key)
    const before = stripe.received.length
    for (const { id } of organizations) await endPause(id)
    const workers = await Promise.all([chowder.startWorker(), chowder.startWorker()])
    await until('all quantities', () => organizations.every(({ subscription }) => quantityOf(subscription) === 2))
    await Promise.all(workers.map((worker) => worker.stop()))
    const items = organizations.map(({ subscription }) => `/v1/subscription_items/${subscription.items.data[0]?.id}`)
    const updated = stripe.received.slice(before).map(({ path }) => path)
    expect(updated.filter((path) => items.includes(path)).sort()).toEqual(items.sort())
  })
})

test('an organization with two subscriptions has the higher tier, and a log line tells', async () => {
  const { id, key, session } = await subscriber('crab')
  const second = stripe.subscribe(session.customer, stripePrices.lobster, 1)
  await deliver(stripe.deliver(stripe.event('customer.subscription.created', second)))
  await until('lobster', async () => (await read(key)).tier === 'lobster')
  expect(linesOf('an organization has two paid subscriptions', id).length).toBe(1)
})

test('no log line holds a secret', () => {
  expect(chowder.logged.length).toBeGreaterThan(100)
  expect(chowder.logged.join('')).not.toContain('canary')
})
