import { defineConfig } from 'drizzle-kit'

export default defineConfig({
  dialect: 'postgresql',
  schema: [
    './src/database/schema.ts',
    './src/database/response-schema.ts',
    './src/database/usage-schema.ts',
    './src/database/budget-schema.ts',
    './src/database/egress-schema.ts',
    './src/database/webhook-schema.ts',
    './src/database/schedule-schema.ts',
    './src/database/hook-schema.ts',
  ],
  out: './migrations',
  casing: 'snake_case',
})
