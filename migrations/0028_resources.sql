CREATE UNLOGGED TABLE "instance_use" (
	"instance_id" uuid PRIMARY KEY NOT NULL,
	"disk_bytes" bigint,
	"disk_step" integer DEFAULT 0 NOT NULL,
	"memory_step" integer DEFAULT 0 NOT NULL,
	"pids_step" integer DEFAULT 0 NOT NULL,
	"recycled_at" timestamp with time zone
);
--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "resources" jsonb DEFAULT '{}'::jsonb NOT NULL;--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "stopped_for" text;--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "limits" jsonb;--> statement-breakpoint
ALTER TABLE "organizations" ADD COLUMN "resources" jsonb DEFAULT '{}'::jsonb NOT NULL;--> statement-breakpoint
ALTER TABLE "organizations" ADD COLUMN "max_resources" jsonb DEFAULT '{}'::jsonb NOT NULL;