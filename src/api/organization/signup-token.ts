import { hash, randomBytes, timingSafeEqual } from 'node:crypto'
import { type Static, Type } from '@sinclair/typebox'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Db } from '#database/client.ts'
import { readValue, storeOnce, storeValue } from '#database/installation.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { CountRequest } from '#http/rate-limit.ts'
import type { Place, Vault } from '#platform/secrets.ts'
import type { SignupMode } from '#settings/exposure.ts'

/** The headers of a sign-up. */
export const SignupHeaders = Type.Object({
  'x-signup-token': Type.Optional(
    Type.String({
      description:
        'The token of this server, on a server that asks for it. Its operator prints it with ' +
        '`npm run admin -- signup-token`.',
    }),
  ),
})

/** The name of the sealed token in the table `installation`. */
export const signupTokenName = 'signup-token'
export const signupTokenPlace: Place = `installation/${signupTokenName}/value`
const tokenBytes = 32

const makeSealed = (vault: Vault): string =>
  vault.seal(`chd_signup_${randomBytes(tokenBytes).toString('hex')}`, signupTokenPlace)

/** The token of this installation; the first call creates it. Concurrent calls create one. */
export async function findSignupToken(db: Db, vault: Vault): Promise<string> {
  const sealed = (await readValue(db, signupTokenName)) ?? (await storeOnce(db, signupTokenName, makeSealed(vault)))
  return vault.unseal(sealed, signupTokenPlace)
}

/** Creates a new token. Every process refuses the former one from then on. */
export async function renewSignupToken(db: Db, vault: Vault): Promise<string> {
  await storeValue(db, signupTokenName, makeSealed(vault))
  return findSignupToken(db, vault)
}

/** Compares hashes, so that the duration reveals nothing about the token. */
const isSame = (given: string, token: string): boolean =>
  timingSafeEqual(hash('sha256', given, 'buffer'), hash('sha256', token, 'buffer'))

interface SignupDeps {
  db: Db
  vault: Vault
  signup: SignupMode
  /** Counts a request without the right token. */
  countFailure: CountRequest
}

/**
 * Returns a hook that refuses a sign-up before the body is read: AppError `signup_closed` where sign-up is closed, and
 * `invalid_signup_token` where a token is required and missing or wrong.
 */
export const requireSignup =
  ({ db, vault, signup, countFailure }: SignupDeps) =>
  async (request: FastifyRequest, reply: FastifyReply): Promise<void> => {
    if (signup === 'open') return
    if (signup === 'closed') throw new AppError('signup_closed', texts.signupClosed)
    const { 'x-signup-token': given } = request.headers as Static<typeof SignupHeaders>
    if (given !== undefined && isSame(given, await findSignupToken(db, vault))) return
    await countFailure(request, reply)
    throw new AppError('invalid_signup_token', texts.invalidSignupToken)
  }
