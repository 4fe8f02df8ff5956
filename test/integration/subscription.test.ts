import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { createBilling } from '#api/subscription/stripe.ts'
import { errorBody } from '../support/error-body.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import {
  type Delivery,
  FakeStripe,
  stripePrices,
  stripeSecretKey,
  stripeWebhookSecret,
} from '../support/fake-stripe.ts'
import { present } from '../support/present.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

const stripeTimeoutMs = 4000

let stripe: FakeStripe
let chowder: TestChowder

const settings = () => ({
  secretKey: stripeSecretKey,
  webhookSecret: stripeWebhookSecret,
  prices: stripePrices,
  apiUrl: stripe.url,
  returnUrl: () => 'https://app.example.com/billing',
  timeoutMs: stripeTimeoutMs,
})

beforeAll(async () => {
  stripe = await new FakeStripe().open()
  const billing = await createBilling(settings())
  const sandboxes = new FakeDriver()
  // No agent gets anywhere here, so that no worker is kept.
  sandboxes.fail({ method: 'prepare', times: Number.POSITIVE_INFINITY })
  chowder = await openTestChowder({ sandboxes, defaultTier: 'shrimp', billing })
})
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

/** An organization that paid for a tier, and that Chowder knows of. */
async function subscriber(tier: 'crab' | 'lobster') {
  const { id, key } = await chowder.signUp()
  const session = sessionAt((await checkout(key, tier)).body.url)
  const subscription = stripe.pay(session)
  await deliver(stripe.deliver(stripe.event('checkout.session.completed', session)))
  await until('the tier', async () => (await read(key)).tier === tier)
  return { id, key, session, subscription }
}

const quantityOf = (subscription: { items: { data: { quantity: number }[] } }) => subscription.items.data[0]?.quantity
/** Pushes of a quantity pause for half a minute; a test does not. */
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
  test('answers the documented fields of an organization without a billing relation', async () => {
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
  ] as const)('without a key %s /v1/subscription%s is a 401', async (method, path) => {
    const body = path === '/checkout' ? { tier: 'crab' } : undefined
    expect((await chowder.call(method, `/v1/subscription${path}`, { body })).status).toBe(401)
  })
})

describe('POST /v1/subscription/checkout', () => {
  test('answers where to pay for the tier, one for each instance, on the organization’s own customer', async () => {
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

  test('asked several times, also at once, it stays with one customer', async () => {
    const { key } = await chowder.signUp()
    const answers = await Promise.all(Array.from({ length: 5 }, () => checkout(key, 'lobster')))
    answers.push(await checkout(key, 'crab'))
    expect(new Set(answers.map(({ body }) => sessionAt(body.url).customer))).toEqual(
      new Set([(await read(key)).stripe_customer_id]),
    )
  })

  test.each([['shrimp'], ['whale'], ['gold'], [7], [undefined]])(
    'the tier %s is a 422 that names the two',
    async (tier) => {
      const { key } = await chowder.signUp()
      const { status, body } = await checkout(key, tier)
      expect([status, body.detail[0].loc]).toEqual([422, ['body', 'tier']])
    },
  )

  test('with a subscription it is a 409 that points to the portal', async () => {
    const { key } = await subscriber('crab')
    const { status, body } = await checkout(key, 'lobster')
    expect(status).toBe(409)
    expect(body.detail).toContain('/v1/subscription/portal')
  })

  test('on whale, which no payment changes, it is a 409', async () => {
    const { id, key } = await chowder.signUp()
    await chowder.database.pool.query(`UPDATE organizations SET subscription_tier = 'whale' WHERE id = $1`, [id])
    expect((await checkout(key, 'crab')).status).toBe(409)
  })
})

describe('POST /v1/subscription/portal', () => {
  test('answers the address of the customer’s portal; without a customer it is a 400 that says what to do', async () => {
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

describe('Stripe fails', () => {
  test.each([
    ['answers 500', { status: 500 }],
    ['answers 429', { status: 429 }],
    ['hangs', { hangs: true }],
  ])('when it %s, checkout and portal are a 503 in words with Retry-After, and heal', async (_how, fault) => {
    const { key } = await chowder.signUp()
    await checkout(key, 'crab')
    stripe.fail({ path: /./, times: 9, ...fault })
    for (const ask of [() => checkout(key, 'crab'), () => chowder.call('POST', '/v1/subscription/portal', { key })]) {
      const { status, body, headers } = await ask()
      expect([status, body, headers['retry-after']]).toEqual([
        503,
        errorBody('unavailable', 'Stripe cannot be reached right now. Try again.'),
        '5',
      ])
    }
    stripe.heal()
    expect((await checkout(key, 'crab')).status).toBe(200)
  })

  test('a wrong setting is a 503 that sends the operator to the log; the log has Stripe’s reason and no secret', async () => {
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
})

test('without Stripe’s settings checkout, portal and webhook are a 501 for the operator; the tier can still be read', async () => {
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
  test('a completed checkout raises tier and limit without a worker', async () => {
    const { key, session, subscription } = await subscriber('lobster')
    expect(await read(key)).toEqual({
      tier: 'lobster',
      instance_limit: 500,
      instance_count: 0,
      stripe_customer_id: session.customer,
      stripe_subscription_id: subscription.id,
    })
  })

  test('a switch in the portal changes the tier, and a cancelled subscription ends at shrimp', async () => {
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

  test('a lower tier stops nothing: creates are 402 until there are fewer instances than the limit', async () => {
    const { key, subscription } = await subscriber('crab')
    const ids = [(await create(key)).body.id, (await create(key)).body.id]
    subscription.status = 'canceled'
    await deliver(stripe.deliver(stripe.event('customer.subscription.deleted', subscription)))
    await until('shrimp', async () => (await read(key)).tier === 'shrimp')
    const { body } = await chowder.call('GET', '/v1/instances', { key })
    expect(body.map((instance: { status: string }) => instance.status)).toEqual(['provisioning', 'provisioning'])
    const refused = await create(key)
    expect([refused.status, refused.body.detail]).toEqual([402, expect.stringContaining('(2/1)')])
    await chowder.call('DELETE', `/v1/instances/${ids[0]}`, { key })
    expect((await create(key)).status).toBe(402)
    await chowder.call('DELETE', `/v1/instances/${ids[1]}`, { key })
    expect((await create(key)).status).toBe(201)
  })

  test('a payment that failed changes nothing: Stripe reminds the customer', async () => {
    const { id, key, session, subscription } = await subscriber('crab')
    subscription.status = 'past_due'
    const invoice = { id: 'in_1', object: 'invoice', customer: session.customer }
    expect((await deliver(stripe.deliver(stripe.event('invoice.payment_failed', invoice)))).status).toBe(200)
    await until('the question', () => linesOf('an organization did not pay', id).length > 0)
    await until('the answer', () => isSettled(session.customer))
    expect((await read(key)).tier).toBe('crab')
  })

  test('A17: forged, altered, unsigned and stale events are a 400 and change nothing', async () => {
    const { key, subscription } = await subscriber('crab')
    stripe.switchTo(subscription, stripePrices.lobster)
    const event = stripe.event('customer.subscription.updated', subscription, { id: 'evt_forged' })
    const good = stripe.deliver(event)
    const asked = stripe.received.length
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
    expect(stripe.received.length).toBe(asked)
    const { rows } = await chowder.database.pool.query(`SELECT * FROM stripe_events WHERE id = 'evt_forged'`)
    expect(rows).toEqual([])
    expect((await read(key)).tier).toBe('crab')
    expect((await deliver(good)).status).toBe(200)
    await until('lobster', async () => (await read(key)).tier === 'lobster')
  })

  test('A17: replayed, and delivered ten times at once, an event counts once', async () => {
    const { id, key, subscription } = await subscriber('crab')
    stripe.switchTo(subscription, stripePrices.lobster)
    const delivery = stripe.deliver(stripe.event('customer.subscription.updated', subscription))
    const asked = stripe.received.length
    const answers = await Promise.all(Array.from({ length: 10 }, () => deliver(delivery)))
    await until('lobster', async () => (await read(key)).tier === 'lobster')
    answers.push(await deliver(delivery))
    expect(answers.map(({ status }) => status)).toEqual(Array(11).fill(200))
    await until('the log', () => linesOf('the tier has changed', id).length === 2)
    expect(stripe.received.length - asked).toBe(1)
  })

  test('A17: events out of order leave what holds at Stripe', async () => {
    const { key, session, subscription } = await subscriber('crab')
    const early = stripe.event('customer.subscription.updated', subscription)
    stripe.switchTo(subscription, stripePrices.lobster)
    await deliver(stripe.deliver(stripe.event('customer.subscription.updated', subscription)))
    await until('lobster', async () => (await read(key)).tier === 'lobster')
    const reading = stripe.received.length
    await deliver(stripe.deliver(early))
    await until('the early one to be asked for', () => stripe.received.length > reading)
    expect((await read(key)).tier).toBe('lobster')
    subscription.status = 'canceled'
    await deliver(stripe.deliver(stripe.event('customer.subscription.deleted', subscription)))
    await until('shrimp', async () => (await read(key)).tier === 'shrimp')
    await deliver(stripe.deliver(stripe.event('checkout.session.completed', session)))
    await until('both to be asked for', () => stripe.received.length >= reading + 3)
    await until('both to be settled', () => isSettled(session.customer))
    expect(await read(key)).toMatchObject({ tier: 'shrimp', instance_limit: 1, stripe_subscription_id: null })
  })

  test('A17: an unknown customer and an event of no interest are a 200, ignored', async () => {
    const stranger = stripe.subscribe('cus_stranger', stripePrices.crab, 1)
    const asked = stripe.received.length
    const answers = [
      await deliver(stripe.deliver(stripe.event('customer.subscription.updated', stranger, { id: 'evt_stranger' }))),
      await deliver(stripe.deliver(stripe.event('customer.created', { id: 'cus_stranger', object: 'customer' }))),
      await deliver(stripe.deliver(stripe.event('invoice.payment_failed', { object: 'invoice' }))),
    ]
    expect(answers).toEqual(Array(3).fill({ status: 200, body: { received: true } }))
    expect(stripe.received.length).toBe(asked)
    expect(chowder.logged.some((line) => line.includes('evt_stranger') && line.includes('not ours'))).toBe(true)
  })

  test('a price that is not ours gives no tier', async () => {
    const { key } = await chowder.signUp()
    await checkout(key, 'crab')
    const { stripe_customer_id } = await read(key)
    const other = stripe.subscribe(stripe_customer_id, 'price_of_something_else', 1)
    const asked = stripe.received.length
    await deliver(stripe.deliver(stripe.event('customer.subscription.updated', other)))
    await until('the question', () => stripe.received.length > asked)
    expect(await read(key)).toMatchObject({ tier: 'shrimp', stripe_subscription_id: null })
  })

  test('no event changes the tier whale, which is given by the operator', async () => {
    const { id, key, subscription } = await subscriber('crab')
    await chowder.database.pool.query(
      `UPDATE organizations SET subscription_tier = 'whale', instance_limit = NULL WHERE id = $1`,
      [id],
    )
    subscription.status = 'canceled'
    await deliver(stripe.deliver(stripe.event('customer.subscription.deleted', subscription)))
    await until('the subscription to be over', async () => (await read(key)).stripe_subscription_id === null)
    expect(await read(key)).toMatchObject({ tier: 'whale', instance_limit: null })
  })

  test('while Stripe hangs an event is answered at once, and a worker brings the tier later', async () => {
    const { key } = await chowder.signUp()
    const session = sessionAt((await checkout(key, 'crab')).body.url)
    stripe.pay(session)
    stripe.fail({ path: /subscriptions/, hangs: true, times: 99 })
    const startedAt = performance.now()
    const { status } = await deliver(stripe.deliver(stripe.event('checkout.session.completed', session)))
    expect(status).toBe(200)
    expect(performance.now() - startedAt).toBeLessThan(stripeTimeoutMs)
    const { id } = (await chowder.call('GET', '/v1/organization', { key })).body
    const failed = 'the subscription could not be brought in line with Stripe; it is tried again'
    await until('the failure', () => linesOf(failed, id).length > 0)
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
    await until('none to be charged', () => quantityOf(subscription) === 0)
    const { body } = await create(key)
    await create(key)
    await endPause(id)
    await until('two to be charged', () => quantityOf(subscription) === 2)
    await chowder.call('DELETE', `/v1/instances/${body.id}`, { key })
    await endPause(id)
    await until('one to be charged', () => quantityOf(subscription) === 1)
    await worker.stop()
  })

  test('while Stripe hangs creates and deletes are as quick as ever, and it is told afterwards', async () => {
    const { id, key, subscription } = await subscriber('crab')
    stripe.fail({ path: /./, hangs: true, times: 99 })
    await endPause(id)
    const worker = await chowder.startWorker()
    const startedAt = performance.now()
    const first = await create(key)
    const second = await create(key)
    const gone = await chowder.call('DELETE', `/v1/instances/${first.body.id}`, { key })
    expect([first.status, second.status, gone.status]).toEqual([201, 201, 204])
    expect(performance.now() - startedAt).toBeLessThan(stripeTimeoutMs)
    stripe.heal()
    await until('one to be charged', async () => {
      await endPause(id)
      return quantityOf(subscription) === 1
    })
    await worker.stop()
  })

  test('survives Stripe’s 500s, each try with a key of its own, and a restart of the worker in between', async () => {
    const { id, key, subscription } = await subscriber('crab')
    const pushes = () => stripe.received.filter(({ path }) => path.includes(subscription.items.data[0]?.id ?? ''))
    const before = pushes().length
    await create(key)
    await create(key)
    stripe.fail({ path: /subscription_items/, status: 500, times: 3 })
    const first = await chowder.startWorker()
    await until('a first failure', async () => {
      await endPause(id)
      return pushes().length > before
    })
    await first.stop()
    const second = await chowder.startWorker()
    await until('the quantity', async () => {
      await endPause(id)
      return quantityOf(subscription) === 2
    })
    await second.stop()
    const keys = pushes()
      .slice(before)
      .map(({ idempotencyKey }) => idempotencyKey)
    expect(keys.length).toBeGreaterThanOrEqual(4)
    expect(new Set(keys).size).toBe(keys.length)
  })

  test('retries pause longer and longer, up to ten minutes, and from the tenth on the log line is an error', async () => {
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
        // A minute is the lease of the try that is under way.
        return rows[0] && !(rows[0].pause > 45 && rows[0].pause < 75) ? rows[0] : null
      })
      await worker.stop()
      stripe.heal()
      return Math.ceil(Number(failed.pause) / 10) * 10 // it is read somewhat after it was written
    }
    expect(await pauseAfter(0)).toBe(10)
    expect(await pauseAfter(1)).toBe(20)
    expect(await pauseAfter(20)).toBe(600)
    expect(
      linesOf('the subscription could not be brought in line with Stripe; it is tried again', id).at(-1).level,
    ).toBe(50)
  })

  test('is told once by two workers at once', async () => {
    const organizations = await Promise.all([subscriber('crab'), subscriber('crab'), subscriber('lobster')])
    for (const { key } of organizations) await create(key)
    for (const { key } of organizations) await create(key)
    const before = stripe.received.length
    for (const { id } of organizations) await endPause(id)
    const workers = await Promise.all([chowder.startWorker(), chowder.startWorker()])
    await until('all', () => organizations.every(({ subscription }) => quantityOf(subscription) === 2))
    await Promise.all(workers.map((worker) => worker.stop()))
    const items = organizations.map(({ subscription }) => `/v1/subscription_items/${subscription.items.data[0]?.id}`)
    const pushed = stripe.received.slice(before).map(({ path }) => path)
    expect(pushed.filter((path) => items.includes(path)).sort()).toEqual(items.sort())
  })
})

test('an organization that pays twice has the better of the two, and the log says so', async () => {
  const { id, key, session } = await subscriber('crab')
  const second = stripe.subscribe(session.customer, stripePrices.lobster, 1)
  await deliver(stripe.deliver(stripe.event('customer.subscription.created', second)))
  await until('lobster', async () => (await read(key)).tier === 'lobster')
  expect(linesOf('an organization pays twice', id).length).toBe(1)
})

test('the secrets are in no log line', () => {
  expect(chowder.logged.length).toBeGreaterThan(100)
  expect(chowder.logged.join('')).not.toContain('canary')
})
