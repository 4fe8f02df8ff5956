import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { parseAllDocuments } from 'yaml'

const run = promisify(execFile)
const root = join(import.meta.dirname, '../..')

/** An object of Kubernetes. */
export interface Manifest {
  apiVersion: string
  kind: string
  metadata: { name: string; namespace?: string; labels?: Record<string, string> }
  // biome-ignore lint/suspicious/noExplicitAny: an object of any kind
  [part: string]: any
}

export const overlays = ['try', 'production'] as const

/** The folder of an overlay, as operators name it. */
export const overlayFolder = (overlay: (typeof overlays)[number]): string =>
  join(root, 'deploy/kubernetes/overlays', overlay)

/** Reads the objects of a YAML file. */
export const manifestsIn = (text: string): Manifest[] => parseAllDocuments(text).map((document) => document.toJS())

/** Builds a folder by kustomize, which is on PATH. */
export async function buildManifests(folder: string): Promise<Manifest[]> {
  return manifestsIn((await run('kustomize', ['build', folder], { maxBuffer: 16 * 1024 * 1024 })).stdout)
}
