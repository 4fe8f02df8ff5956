import type { Static } from '@sinclair/typebox'
import { checkEgress } from '#egress/schemas.ts'
import { checkSettings } from '#instances/agent-settings.ts'
import type { NewInstance } from '#instances/create.ts'
import { newToken } from '#instances/gateway/tokens.ts'
import { ownResources } from '#instances/resources.ts'
import { refusalOf } from '#openclaw/advisories.ts'
import { defaultRelease, knownReleases } from '#openclaw/releases.ts'
import { AppError } from '#platform/errors.ts'
import { newId } from '#platform/ids.ts'
import { texts } from '#platform/texts.ts'
import type { CreateInstance } from './requests.ts'

/** Throws conflict for a release that this server does not start. */
export function requireStartable(release: string, minOpenclawVersion: string): void {
  const refusal = refusalOf(release, minOpenclawVersion)
  if (refusal) throw new AppError('release_refused', refusal)
}

/**
 * Builds the row of a new instance. Throws invalid for an unknown version and for overrides that are not allowed, and
 * conflict for a release that this server does not start.
 */
export function newInstance(
  body: Static<typeof CreateInstance>,
  {
    organizationId,
    region,
    regionName,
    sandboxDriver,
    minOpenclawVersion,
  }: Pick<NewInstance, 'organizationId' | 'region' | 'regionName' | 'sandboxDriver'> & { minOpenclawVersion: string },
): NewInstance {
  const openclawVersion = body.openclaw_version ?? defaultRelease
  if (!knownReleases().includes(openclawVersion)) {
    throw new AppError('invalid_value', texts.unknownVersion(openclawVersion, knownReleases()), {
      param: 'openclaw_version',
    })
  }
  requireStartable(openclawVersion, minOpenclawVersion)
  const modelProvider = body.model_provider ?? 'anthropic'
  const settings = {
    model: body.model ?? null,
    instructions: body.instructions ?? null,
    openclawConfig: body.openclaw_config ?? null,
  }
  checkSettings(settings, openclawVersion, modelProvider)
  if (body.if_exists !== undefined && typeof body.external_id !== 'string') {
    throw new AppError('invalid_value', texts.ifExistsAlone, { param: 'if_exists' })
  }
  return {
    id: newId(),
    organizationId,
    name: body.name,
    externalId: body.external_id ?? null,
    metadata: body.metadata ?? {},
    resources: ownResources(body.resources),
    egress: body.egress ? checkEgress(body.egress) : null,
    modelProvider,
    sandboxDriver,
    region,
    regionName,
    openclawVersion,
    isolation: body.isolation ?? null,
    ...settings,
    gatewayToken: newToken(),
  }
}
