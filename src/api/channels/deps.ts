import type { FindGateway } from '#instances/find.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import type { ChangeDeps } from '#instances/gateway/change.ts'

export interface ChannelDeps extends ChangeDeps {
  askGateway: AskGateway
  findGateway: FindGateway
}
