import type { Instance } from '#database/schema.ts'
import { connectChannels } from './channels.ts'
import { checkHealth } from './check-health.ts'
import type { PlannedStep } from './run-step.ts'
import {
  createSandbox,
  destroySandbox,
  limitSandbox,
  patchConfig,
  prepareRelease,
  startGateway,
  stopForRestart,
  stopSandbox,
  thawSandbox,
  waitForStarts,
  writeConfig,
} from './steps.ts'
import { warmUp } from './warm-up.ts'

/** Limit for platform calls, files and gateway RPC, which normally take far less. */
const defaultLimitMs = 60_000
/** The install has its own limit; this adds a margin. */
const prepareLimitMs = 16 * 60_000
/** The wait has its own limit; this adds a margin. */
const startsLimitMs = 31 * 60_000
/** Time to diagnose a hung gateway, stop it and start it again, with a margin. */
const healthLimitMs = 7 * 60_000
/** The step's own limit and one last change of the configuration, with a margin. */
const channelsLimitMs = 6 * 60_000
/** The step's own limit, with a margin. */
const warmUpLimitMs = 3 * 60_000

/** The life cycle of an instance: for each intent, the steps that fulfil it and their time limits. */
export const plans: Record<Instance['desiredState'], readonly PlannedStep[]> = {
  running: [
    { step: prepareRelease, limitMs: prepareLimitMs },
    { step: stopForRestart, limitMs: defaultLimitMs },
    { step: thawSandbox, limitMs: defaultLimitMs },
    { step: createSandbox, limitMs: defaultLimitMs },
    { step: writeConfig, limitMs: defaultLimitMs },
    { step: waitForStarts, limitMs: startsLimitMs },
    { step: startGateway, limitMs: defaultLimitMs },
    { step: limitSandbox, limitMs: defaultLimitMs },
    { step: checkHealth, limitMs: healthLimitMs },
    { step: patchConfig, limitMs: defaultLimitMs },
    { step: connectChannels, limitMs: channelsLimitMs },
    { step: warmUp, limitMs: warmUpLimitMs },
  ],
  stopped: [{ step: stopSandbox, limitMs: defaultLimitMs }],
  terminated: [{ step: destroySandbox, limitMs: defaultLimitMs }],
}
