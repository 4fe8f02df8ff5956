ALTER TABLE "processes" SET UNLOGGED;--> statement-breakpoint
ALTER TABLE "processes" ALTER COLUMN "role" SET DEFAULT '';--> statement-breakpoint
ALTER TABLE "processes" ALTER COLUMN "version" SET DEFAULT '';--> statement-breakpoint
ALTER TABLE "processes" ALTER COLUMN "commit" SET DEFAULT '';--> statement-breakpoint
ALTER TABLE "processes" ALTER COLUMN "host" SET DEFAULT '';--> statement-breakpoint
ALTER TABLE "processes" ALTER COLUMN "pid" SET DEFAULT 0;--> statement-breakpoint
ALTER TABLE "processes" ADD COLUMN "is_alone" boolean;--> statement-breakpoint
-- The version before reports its processes in `turn_processes`. It goes on, through the view, in the same table: so each
-- version knows of the turns of the other.
LOCK TABLE "turn_processes" IN ACCESS EXCLUSIVE MODE;--> statement-breakpoint
INSERT INTO "processes" ("id", "is_alone", "seen_at") SELECT "id", "is_alone", "seen_at" FROM "turn_processes";--> statement-breakpoint
DROP TABLE "turn_processes";--> statement-breakpoint
CREATE VIEW "turn_processes" AS SELECT "id", "is_alone", "seen_at" FROM "processes" WHERE "is_alone" IS NOT NULL;
