export async function measureStart(_: number, _say: unknown): Promise<never> {
  throw new Error('no')
}
