ALTER TABLE "api_keys" ADD COLUMN "session_ids" text[];--> statement-breakpoint
ALTER TABLE "api_keys" ADD COLUMN "session_prefix" text;