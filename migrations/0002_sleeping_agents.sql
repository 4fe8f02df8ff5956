ALTER TABLE "instances" ADD COLUMN "idle_timeout_seconds" integer;--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "wake_on_request" boolean DEFAULT true NOT NULL;--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "wakes_at" timestamp with time zone;--> statement-breakpoint
CREATE INDEX "instances_wakes_at" ON "instances" USING btree ("wakes_at") WHERE wakes_at IS NOT NULL;