import { execFile } from 'node:child_process'
import { readdir, readFile, readlink } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import {
  CoreV1Api,
  type KubeConfig,
  NetworkingV1Api,
  type V1LabelSelector,
  type V1NetworkPolicy,
  type V1NetworkPolicyPeer,
  type V1NetworkPolicyPort,
  type V1Pod,
  type V1Service,
} from '@kubernetes/client-node'

const run = promisify(execFile)
const everyMs = 500
const restoreMs = 10_000

type Labels = Record<string, string>

interface Seen {
  pods: V1Pod[]
  services: V1Service[]
  policies: V1NetworkPolicy[]
  namespaces: Map<string, Labels>
}

function selects({ matchLabels = {}, matchExpressions = [] }: V1LabelSelector, labels: Labels): boolean {
  if (Object.entries(matchLabels).some(([key, value]) => labels[key] !== value)) return false
  return matchExpressions.every(({ key, operator, values = [] }) => {
    const value = labels[key]
    if (operator === 'Exists') return value !== undefined
    if (operator === 'DoesNotExist') return value === undefined
    return (value !== undefined && values.includes(value)) === (operator === 'In')
  })
}

const isOf = (policy: V1NetworkPolicy, { metadata }: V1Pod): boolean =>
  policy.metadata?.namespace === metadata?.namespace && selects(policy.spec?.podSelector ?? {}, metadata?.labels ?? {})

/** The addresses of a peer: those of its pods, and of the Services that lead to them; or of its block, but for some. */
function addressesOf(peer: V1NetworkPolicyPeer, own: string | undefined, { pods, services, namespaces }: Seen) {
  if (peer.ipBlock) return { refused: peer.ipBlock.except ?? [], taken: [peer.ipBlock.cidr] }
  const isIn = (namespace = '') =>
    peer.namespaceSelector ? selects(peer.namespaceSelector, namespaces.get(namespace) ?? {}) : namespace === own
  const found = pods.filter(
    ({ metadata }) => isIn(metadata?.namespace) && selects(peer.podSelector ?? {}, metadata?.labels ?? {}),
  )
  const leadsTo = ({ metadata, spec }: V1Service) =>
    spec?.selector !== undefined &&
    found.some(
      (pod) =>
        pod.metadata?.namespace === metadata?.namespace &&
        selects({ matchLabels: spec.selector as Labels }, pod.metadata?.labels ?? {}),
    )
  const addresses = [
    ...found.map(({ status }) => status?.podIP),
    ...services.filter(leadsTo).map(({ spec }) => spec?.clusterIP),
  ]
  return { refused: [], taken: addresses.filter((address) => address && address !== 'None') as string[] }
}

/** The rules of one direction of a pod: null when no policy speaks of it. */
function rulesOf(
  pod: V1Pod,
  direction: 'Ingress' | 'Egress',
  seen: Seen,
  newChain: (except: readonly string[], side: string) => string,
): string[] | null {
  const policies = seen.policies.filter(
    (policy) => isOf(policy, pod) && (policy.spec?.policyTypes ?? ['Ingress']).includes(direction),
  )
  if (policies.length === 0) return null
  const [chain, side] = direction === 'Ingress' ? ['INPUT', '-s'] : ['OUTPUT', '-d']
  return policies.flatMap(({ spec, metadata }) => {
    const allowed: { peers: V1NetworkPolicyPeer[] | undefined; ports: V1NetworkPolicyPort[] | undefined }[] =
      direction === 'Ingress'
        ? (spec?.ingress ?? []).map((rule) => ({ peers: rule._from, ports: rule.ports }))
        : (spec?.egress ?? []).map((rule) => ({ peers: rule.to, ports: rule.ports }))
    return allowed.flatMap(({ peers, ports }) => {
      const places = (peers ?? [{ ipBlock: { cidr: '0.0.0.0/0' } }]).map((peer) =>
        addressesOf(peer, metadata?.namespace, seen),
      )
      const matches = (ports ?? [null]).map((port) =>
        port ? `-p ${(port.protocol ?? 'TCP').toLowerCase()} --dport ${port.port}` : '',
      )
      return places.flatMap(({ refused, taken }) => {
        const accepting = refused.length > 0 ? newChain(refused, side) : 'ACCEPT'
        return matches.flatMap((match) =>
          taken
            .filter((address) => !address.includes(':'))
            .map((address) => `-A ${chain} ${side} ${address} ${match} -j ${accepting}`),
        )
      })
    })
  })
}

/** The input of iptables-restore for the network of a pod. The node may always come in, as with every plugin. */
function tableOf(pod: V1Pod, node: string, seen: Seen): string {
  const chains: string[][] = []
  /** What a policy excepts is left to the other policies. */
  const newChain = (except: readonly string[], side: string): string => {
    const name = `BLOCK-${chains.length}`
    const left = except.filter((address) => !address.includes(':'))
    chains.push([...left.map((address) => `-A ${name} ${side} ${address} -j RETURN`), `-A ${name} -j ACCEPT`])
    return name
  }
  const [incoming, outgoing] = [rulesOf(pod, 'Ingress', seen, newChain), rulesOf(pod, 'Egress', seen, newChain)]
  const known = '-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT'
  return [
    '*filter',
    `:INPUT ${incoming ? 'DROP' : 'ACCEPT'}`,
    `:OUTPUT ${outgoing ? 'DROP' : 'ACCEPT'}`,
    ...chains.map((_, at) => `:BLOCK-${at} -`),
    ...['-A INPUT -i lo -j ACCEPT', '-A OUTPUT -o lo -j ACCEPT', `-A INPUT ${known}`, `-A OUTPUT ${known}`],
    `-A INPUT -s ${node} -j ACCEPT`,
    ...(incoming ?? []),
    ...(outgoing ?? []),
    ...chains.flat(),
    'COMMIT',
    '',
  ].join('\n')
}

/** The first process of a pod, in whose network it is. Others of its control group may still be in that of this host. */
async function firstProcessOf(uid: string): Promise<number | null> {
  const own = await readlink('/proc/self/ns/net')
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const groups = await readFile(`/proc/${name}/cgroup`, 'utf8').catch(() => '')
    if (!groups.includes(`pod${uid}`)) continue
    const command = await readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => '')
    const network = await readlink(`/proc/${name}/ns/net`).catch(() => own)
    if (command === '/pause\0' && network !== own) return Number(name)
  }
  return null
}

async function restore(pid: number, program: string, table: string): Promise<void> {
  const restoring = run('nsenter', ['-t', String(pid), '-n', program], { timeout: restoreMs })
  restoring.child.stdin?.end(table)
  await restoring
}

const closedToIPv6 = '*filter\n:INPUT DROP\n:OUTPUT DROP\n-A INPUT -i lo -j ACCEPT\n-A OUTPUT -o lo -j ACCEPT\nCOMMIT\n'

/**
 * Enforces the NetworkPolicies of a cluster of one node, in the network of each pod, as a network plugin does: no
 * plugin that does can be had here. Where it differs: a pod has some tenths of a second before it is done; and what comes
 * by a Service comes from the node. The name server of the cluster is on the node, at `port 53`, and its API is let
 * through at the address of its Service. Returns what ends it.
 */
export function enforcePolicies(admin: KubeConfig, node: string): () => void {
  const core = admin.makeApiClient(CoreV1Api)
  const networking = admin.makeApiClient(NetworkingV1Api)
  const done = new Map<string, string>()
  let isOver = false

  async function look(): Promise<Seen> {
    const [pods, services, policies, namespaces] = await Promise.all([
      core.listPodForAllNamespaces(),
      core.listServiceForAllNamespaces(),
      networking.listNetworkPolicyForAllNamespaces(),
      core.listNamespace(),
    ])
    return {
      pods: pods.items,
      services: services.items,
      policies: policies.items,
      // Kubernetes sets the label since version 1.21.
      namespaces: new Map(
        namespaces.items.map(({ metadata }) => [
          metadata?.name ?? '',
          { 'kubernetes.io/metadata.name': metadata?.name ?? '', ...metadata?.labels },
        ]),
      ),
    }
  }

  async function enforce(): Promise<void> {
    const seen = await look()
    const dns = ['udp', 'tcp'].map((protocol) => `-A OUTPUT -d ${node} -p ${protocol} --dport 53 -j ACCEPT\n`).join('')
    for (const pod of seen.pods) {
      const uid = pod.metadata?.uid ?? ''
      const hasName = pod.spec?.dnsPolicy !== 'None'
      const table = tableOf(pod, node, seen).replace('COMMIT', `${hasName ? dns : ''}COMMIT`)
      if (done.get(uid) === table) continue
      const pid = await firstProcessOf(uid)
      if (pid === null) continue
      await restore(pid, 'iptables-restore', table)
      if (!done.has(uid)) await restore(pid, 'ip6tables-restore', closedToIPv6)
      done.set(uid, table)
    }
  }

  const loop = async () => {
    while (!isOver) {
      await enforce().catch(() => {}) // a pod has ended, or the cluster has
      await sleep(everyMs)
    }
  }
  void loop()
  return () => {
    isOver = true
  }
}
