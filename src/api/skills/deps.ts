import type { FindGateway } from '#instances/find.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import type { ChangeDeps } from '#instances/gateway/change.ts'
import type { ClawHub } from '#openclaw/skills/clawhub.ts'

export interface SkillDeps extends ChangeDeps {
  askGateway: AskGateway
  findGateway: FindGateway
  clawhub: ClawHub
}
