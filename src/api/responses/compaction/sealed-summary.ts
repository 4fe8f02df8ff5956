import type { OpenSummary } from '#api/responses/format/request.ts'
import type { Place, Vault } from '#platform/secrets.ts'
import type { TurnSession } from '#turns/admit.ts'

type Owner = Pick<TurnSession, 'organizationId' | 'instanceId'>

/** The sealing context of a summary: no other instance can open it. */
const placeOf = ({ organizationId, instanceId }: Owner): Place => `compactions/${organizationId}/${instanceId}`

/** The `encrypted_content` of a compaction. Only the client keeps it. */
export const sealSummary = (vault: Vault, owner: Owner, summary: string): string => vault.seal(summary, placeOf(owner))

/** Returns a function that opens the compactions of an instance. */
export const summaryOpener =
  (vault: Vault, owner: Owner): OpenSummary =>
  (encryptedContent) => {
    try {
      return vault.unseal(encryptedContent, placeOf(owner))
    } catch {
      return null
    }
  }
