ALTER TABLE "instances" ADD COLUMN "isolation" text DEFAULT 'one_room' NOT NULL;--> statement-breakpoint
ALTER TABLE "organizations" ADD COLUMN "isolation" text DEFAULT 'one_room' NOT NULL;