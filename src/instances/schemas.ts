import { type Static, Type } from '@sinclair/typebox'
import { modelProviders, type Instance as Row } from '../database/schema.ts'
import { toMicroseconds } from '../platform/timestamps.ts'
import { Name, Nullable, OneOf } from '../platform/validation.ts'
import type { InstanceHead } from './lookup.ts'
import { instanceStatuses, publicStatus } from './status.ts'

const Overrides = Type.Record(Type.String(), Type.Unknown())

export const Instance = Type.Object(
  {
    id: Type.String(),
    organization_id: Type.String(),
    name: Type.String(),
    status: OneOf(instanceStatuses),
    /** What is being done right now; null when nothing is. */
    step: Nullable(Type.String()),
    model_provider: OneOf(modelProviders),
    sandbox_provider: Type.Literal('sandbox'),
    sandbox_id: Nullable(Type.String()),
    gateway_url: Nullable(Type.String()),
    openclaw_version: Type.String(),
    openclaw_config: Type.Unsafe<Record<string, unknown> | null>({}),
    region: Type.Null(),
    error_message: Nullable(Type.String()),
    created_at: Type.String(),
    updated_at: Type.String(),
  },
  { $id: 'Instance' },
)

export const CreateInstance = Type.Object(
  {
    name: Name,
    model_provider: Type.Optional(OneOf(modelProviders)),
    sandbox_provider: Type.Optional(OneOf(['sandbox'])),
    openclaw_version: Type.Optional(Type.String()),
    openclaw_config: Type.Optional(Nullable(Overrides)),
    region: Type.Optional(Type.Null()),
  },
  { additionalProperties: false },
)

export const PatchInstance = Type.Object(
  { name: Type.Optional(Name), openclaw_config: Type.Optional(Nullable(Overrides)) },
  { additionalProperties: false },
)

export const InstanceStatus = Type.Object({
  id: Type.String(),
  status: OneOf(instanceStatuses),
  step: Nullable(Type.String()),
  gateway_url: Nullable(Type.String()),
})

/** A row and its opened configuration, as callers see them. */
export interface Shown {
  row: Row
  openclawConfig: Record<string, unknown> | null
}

/** The instance's base URL for clients: stable and opaque; the real endpoint stays private. */
const gatewayUrl = (row: InstanceHead, publicUrl: string): string | null =>
  row.endpoint && publicStatus(row) !== 'error' ? `${publicUrl}/v1/instances/${row.id}` : null

export const toInstanceStatus = (row: InstanceHead, publicUrl: string): Static<typeof InstanceStatus> => ({
  id: row.id,
  status: publicStatus(row),
  step: row.step,
  gateway_url: gatewayUrl(row, publicUrl),
})

/** The one place where a row becomes what callers see: a new column stays private until it is named here. */
export const toInstance = ({ row, openclawConfig }: Shown, publicUrl: string): Static<typeof Instance> => ({
  ...toInstanceStatus(row, publicUrl),
  organization_id: row.organizationId,
  name: row.name,
  model_provider: row.modelProvider,
  sandbox_provider: 'sandbox',
  sandbox_id: row.sandboxId,
  openclaw_version: row.openclawVersion,
  openclaw_config: openclawConfig,
  region: null,
  error_message: publicStatus(row) === 'error' ? row.errorMessage : null,
  created_at: toMicroseconds(row.createdAt),
  updated_at: toMicroseconds(row.updatedAt),
})
