import { Type } from '@sinclair/typebox'
import type { SettingOptions } from './setting-options.ts'

const name = (description: string, more: Partial<SettingOptions>) =>
  Type.Optional(
    Type.String({
      pattern: '^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$',
      rule: 'must be the name of an object of Kubernetes: lower-case letters, digits, hyphens and dots',
      description,
      ...more,
    }),
  )

const namespace = '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'
const namespaceRule = 'must be the name of a namespace: lower-case letters, digits and hyphens'

/** The settings of the Kubernetes driver. */
export const kubernetes = {
  KUBECONFIG: Type.Optional(
    Type.String({
      minLength: 1,
      description: 'file that says how to reach the cluster, as of kubectl; without it Chowder runs in the cluster',
      example: '/etc/chowder/kubeconfig',
      defaultText: 'in the cluster',
      isSetByCompose: true,
    }),
  ),
  KUBERNETES_NAMESPACE: Type.String({
    default: 'chowder-agents',
    pattern: namespace,
    rule: namespaceRule,
    description: 'namespace of the agents, which exists already',
    isSetByCompose: true,
  }),
  KUBERNETES_IMAGE: Type.Optional(
    Type.String({
      pattern: '^[a-z0-9][A-Za-z0-9._/:-]*[A-Za-z0-9]$',
      rule: 'must be a repository of images without a tag, such as registry.example.com/chowder-openclaw',
      description:
        'repository of the images of agents, without a tag; required with `SANDBOX_DRIVER=kubernetes`: see ' +
        '[the image](kubernetes.md#the-image)',
      example: 'registry.example.com/chowder-openclaw',
      isSetByCompose: true,
    }),
  ),
  KUBERNETES_STORAGE_CLASS: name('class of the volumes of agents, if it is not the default of the cluster', {
    defaultText: 'the cluster’s default',
    isSetByCompose: true,
  }),
  KUBERNETES_REQUEST_PERCENT: Type.Integer({
    default: 25,
    minimum: 1,
    maximum: 100,
    description: 'how much of its memory and its processors an agent requests of its node, in percent of its limits',
    isSetByCompose: true,
  }),
  KUBERNETES_RUNTIME_CLASS: name('RuntimeClass of the pods of agents, such as that of gVisor', {
    isSetByCompose: true,
  }),
}
