export const exampleId = 'f47ac10b-58cc-4372-a567-0e02b2c3d479'
export const exampleUrl = `https://chowder.example.com/v1/instances/${exampleId}`

export const exampleInstance = {
  id: exampleId,
  organization_id: 'a1b2c3d4-e5f6-7890-abcd-ef1234567890',
  name: 'my-assistant',
  external_id: 'agent-of-cust-42',
  status: 'running' as const,
  step: null,
  metadata: { customer: 'cust-42' },
  model: 'claude-opus-5',
  instructions: 'You are a helpful assistant.',
  model_provider: 'anthropic' as const,
  sandbox_provider: 'sandbox' as const,
  sandbox_id: 'local-f47ac10b',
  gateway_url: exampleUrl,
  openclaw_version: 'v1',
  openclaw_config: { 'agents.defaults.thinkingDefault': 'low' },
  region: null,
  isolation: 'one_room' as const,
  resources: { memory_mb: 4096, cpus: null, pids: null, disk_mb: null },
  limits: {
    memory_mb: { value: 4096, kept_by: 'kernel' as const },
    cpus: { value: 2, kept_by: 'kernel' as const },
    pids: { value: 512, kept_by: 'kernel' as const },
    disk_mb: { value: 10_240, kept_by: 'watch' as const },
  },
  stopped_for: null,
  egress: null,
  budgets: [],
  error_message: null,
  created_at: '2026-02-14T16:00:00.000000+00:00',
  updated_at: '2026-02-14T16:00:09.000000+00:00',
}

/** The example in other statuses. */
export const stoppedInstance = { ...exampleInstance, status: 'stopped' as const }
export const startingInstance = { ...exampleInstance, status: 'provisioning' as const, step: 'startGateway' }
export const stoppingInstance = { ...stoppedInstance, step: 'stopSandbox' }
export const createdInstance = {
  ...{ ...exampleInstance, status: 'provisioning' as const, sandbox_id: null, gateway_url: null, limits: null },
  updated_at: exampleInstance.created_at,
}
