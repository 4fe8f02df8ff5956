ALTER TABLE "instances" ADD COLUMN "is_suspended" boolean DEFAULT false NOT NULL;--> statement-breakpoint
ALTER TABLE "organizations" ADD COLUMN "suspended_at" timestamp with time zone;--> statement-breakpoint
CREATE INDEX "instances_suspended" ON "instances" USING btree ("id") WHERE is_suspended;--> statement-breakpoint
CREATE INDEX "organizations_suspended" ON "organizations" USING btree ("id") WHERE suspended_at IS NOT NULL;