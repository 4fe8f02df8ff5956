import { expect, test } from 'vitest'
import { kubernetesSettings } from '#composition/kubernetes-settings.ts'
import { StartupError } from '#errors/startup-error.ts'
import { loadConfig } from '#settings/config.ts'

const settingsOf = (role: 'all' | 'api' | 'worker' | 'relay') =>
  kubernetesSettings(
    {
      ...loadConfig({
        SANDBOX_DRIVER: 'kubernetes',
        KUBERNETES_IMAGE: 'registry.example.com/chowder-openclaw',
        RELAY_URL: 'http://chowder-relay.chowder.svc:8090',
      }),
      CHOWDER_ROLE: role,
    },
    '/var/lib/chowder',
  )

test.each(['all', 'api', 'worker'] as const)('in a pod without a service account, %s does not start', async (role) => {
  await expect(settingsOf(role)).rejects.toThrow(StartupError)
  await expect(settingsOf(role)).rejects.toThrow('its pod has no service account')
})

test('in a pod without a service account, a relay starts', async () => {
  expect(await settingsOf('relay')).toMatchObject({ namespace: 'chowder-agents' })
})
